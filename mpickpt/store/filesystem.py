"""What a file system does with room that was reserved: on some, writing to a file takes new room all the same.

Reserved room is the file's as long as its blocks are overwritten where they are. A copy-on-write file system writes
each block to a new place; and a block that a clone shares gets a place of its own when it is written to. There a full
disk shows when an epoch is written, and not when its slot is created.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

COPY_ON_WRITE = frozenset(("btrfs", "bcachefs", "zfs", "nilfs2"))
MOUNTS = Path("/proc/self/mountinfo")

_GETFLAGS = 0x80086601  # FS_IOC_GETFLAGS of linux/fs.h, on 64-bit machines
_NOCOW = 0x00800000  # FS_NOCOW_FL
_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP
_LAST, _SHARED = 0x1, 0x2000  # FIEMAP_EXTENT_LAST, FIEMAP_EXTENT_SHARED
# Of linux/fiemap.h: start, length, flags, extents that are mapped, and for how many there is room; then the extents,
# each with its place in the file, on the disk, its length, and its flags.
_REQUEST = struct.Struct("=QQIII4x")
_EXTENT = struct.Struct("=QQQ16xI12x")
_ROOM = 256  # extents of one call


def kind_of_file_system(path: Path) -> str:
    """Return the type of the file system that holds a file or folder, such as ``"ext4"``; "unknown" if it is not told.

    By the mount, not by the number of the device, which on btrfs is another one in stat than in the list of mounts.
    """
    with suppress(OSError, ValueError):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            about = Path(f"/proc/self/fdinfo/{fd}").read_text().split()
        finally:
            os.close(fd)
        mount = about[about.index("mnt_id:") + 1]
        for line in MOUNTS.read_text().splitlines():
            fields = line.split()
            if fields[0] == mount:
                return fields[fields.index("-") + 1]
    return "unknown"


def copies_on_write(path: Path) -> bool:
    """Return whether overwriting a file, or one that is created in a folder, takes new room: not with ``chattr +C``."""
    if kind_of_file_system(path) not in COPY_ON_WRITE:
        return False
    flags = array.array("i", [0])
    with suppress(OSError):  # it has no such flags
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _GETFLAGS, flags)
        finally:
            os.close(fd)
    return not flags[0] & _NOCOW


def shares_blocks(path: Path) -> bool:
    """Return whether a file has blocks that are another one's as well, as far as the file system tells."""
    start = 0
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                found = bytearray(_REQUEST.size + _ROOM * _EXTENT.size)
                _REQUEST.pack_into(found, 0, start, 2**63 - 1 - start, 0, 0, _ROOM)
                fcntl.ioctl(fd, _FIEMAP, found)
                count = _REQUEST.unpack_from(found)[3]
                for i in range(count):
                    at, _, length, flags = _EXTENT.unpack_from(found, _REQUEST.size + i * _EXTENT.size)
                    if flags & _SHARED:
                        return True
                    if flags & _LAST:
                        return False
                    start = at + length
                if count == 0:
                    return False
        finally:
            os.close(fd)
    return False


def why_full(path: Path, number: int) -> str:
    """Return why there is no room to write to a slot whose room was reserved; empty if that is not the reason.

    Parameters
    ----------
    path : pathlib.Path
        The slot.
    number : int
        The error number of the write that failed.
    """
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    if shares_blocks(path):
        return (
            "its room was reserved, but it shares blocks with an archive that was cloned from it, and each that is "
            "overwritten takes new room; make room, or delete archives"
        )
    if copies_on_write(path):
        return (
            f"its room was reserved, but {kind_of_file_system(path)} writes each block to a new place; make room for "
            f"one slot more than there are"
        )
    return ""
