"""The preface of a slot: a header before its HDF5 file, by which damage is found before HDF5 reads a byte.

HDF5 itself keeps no checksums of most of its structure, and damage there can make it loop for ever. So the first bytes
of a slot, which HDF5 skips as its "user block", list the byte ranges of raw data, and hold one CRC-32C of everything
else. Structure and preface are written once, when the slot is created. The preface is read without HDF5. A file that
begins with HDF5's own signature is a slot of an older version, without a preface.

h5py is not imported here: `mpickpt.store.structure` opens a file only after `check` found nothing wrong.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpickpt.errors import StoreError
from mpickpt.layout.arrays import PAGE_BYTES

MAGIC = b"MPKPREF1"
FORMAT_VERSION = 2
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
PIECE_BYTES = 1 << 20
REMEMBERED = 64  # files: an archive is opened again for each piece of an array
QUIET_SECONDS = 2.0  # a later change to a file that is this old shows in the file's times

# magic, format version, bytes of the preface, where the structure ends, number of ranges of raw data, CRC-32C of the
# structure, of the ranges, of these fields. The ranges follow, each as its first byte and the byte after its last one.
_HEAD = struct.Struct("<8sIIQQII20xI")
_RANGE = struct.Struct("<QQ")

Checksum = Callable[..., int]
Range = tuple[int, int]
_checked: dict[str, tuple[int, ...]] = {}  # files whose structure was valid when they had these properties


@contextmanager
def plain(path: Path) -> Iterator[int]:
    """Open a regular file for reading; anything else is refused at once, without waiting.

    Raises
    ------
    OSError
        EISDIR or EINVAL if it is not a regular file; otherwise the error of opening it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:  # as for a socket
            raise OSError(errno.EINVAL, "it is a socket or a device", str(path)) from None
        raise
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a FIFO" if stat.S_ISFIFO(mode) else "it is a device", str(path))
        yield fd
    finally:
        os.close(fd)


def preface_bytes(ranges: int) -> int:
    """Return the size of a preface with room for `ranges` ranges: whole pages, and a power of two for HDF5."""
    needed = _HEAD.size + ranges * _RANGE.size
    return max(PAGE_BYTES, 1 << (needed - 1).bit_length())


def write_preface(path: Path, room: int, raw: Iterable[Range], checksum: Checksum) -> bytes:
    """Write the preface of a file whose structure is complete and does not change any more; return it.

    Parameters
    ----------
    path : pathlib.Path
        The file, in which `room` bytes are left free before HDF5's own.
    room : int
        What `preface_bytes` returned.
    raw : iterable of (int, int)
        The byte ranges that are not structure, in any order.
    checksum : callable
        CRC-32C of a bytes-like object, continued from a second argument.
    """
    ranges = _merged(raw)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = os.fstat(fd).st_size
        table = b"".join(_RANGE.pack(*one) for one in ranges)
        structure = _sum_of(fd, room, end, ranges, checksum)
        fields = (MAGIC, FORMAT_VERSION, room, end, len(ranges), structure, checksum(table))
        preface = _HEAD.pack(*fields, checksum(_HEAD.pack(*fields, 0)[:-4])) + table
        assert len(preface) <= room
        os.pwrite(fd, preface.ljust(room, b"\0"), 0)
        return preface
    finally:
        os.close(fd)


def check(fd: int, path: Path, checksum: Checksum) -> bytes:
    """Compare the structure of an open file with its preface.

    Returns
    -------
    bytes
        The preface; empty for a file of an older version, which has none.

    Raises
    ------
    ValueError
        If the file is not a slot, or its preface is corrupt; the text continues "cannot be read".
    StoreError
        If the structure is corrupt.
    """
    preface = read_preface(fd, checksum)
    if not preface:
        return preface
    status = os.fstat(fd)
    seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, hash(preface))
    if _checked.get(str(path)) == seen:
        return preface
    _, _, room, end, _, expected, *_ = _HEAD.unpack_from(preface)
    if status.st_size < end:
        raise ValueError("it ends before its structure does")
    ranges = _RANGE.iter_unpack(preface[_HEAD.size :])
    if _sum_of(fd, room, end, ranges, checksum) != expected:
        raise StoreError(f"The structure of {path} is not the one that it was created with: it is corrupt.", path=path)
    if time.time() - max(status.st_mtime, status.st_ctime) > QUIET_SECONDS:
        if len(_checked) >= REMEMBERED:
            _checked.clear()
        _checked[str(path)] = seen
    return preface


def copy_structure(source: Path, target: Path, count: int, preface: bytes, checksum: Checksum) -> bool:
    """Make `target` a file with the first `count` bytes of `source`, and of its size.

    Returns
    -------
    bool
        False if `source` is not the slot that has this `preface`: nothing was written then.

    Raises
    ------
    OSError
        If one of them cannot be read or written.
    ValueError, StoreError
        If `source` is not a slot, or its structure is corrupt.
    """
    with plain(source) as fd:
        if check(fd, source, checksum) != preface:
            return False
        with target.open("r+b") as new:
            for at in range(0, count, PIECE_BYTES):
                new.write(os.pread(fd, min(PIECE_BYTES, count - at), at))
            new.truncate(os.fstat(fd).st_size)
    return True


def read_preface(fd: int, checksum: Checksum) -> bytes:
    """Read the preface of an open file, without the room behind it; empty if it has none, ValueError if corrupt."""
    head = os.pread(fd, _HEAD.size, 0)
    if head.startswith(HDF5_SIGNATURE):
        return b""
    if not head.startswith(MAGIC) or len(head) < _HEAD.size:
        raise ValueError("it begins neither as a slot nor as an HDF5 file")
    _, version, _, _, count, _, table_sum, own = _HEAD.unpack(head)
    table = os.pread(fd, count * _RANGE.size, _HEAD.size) if checksum(head[:-4]) == own else None
    if table is None or checksum(table) != table_sum:
        raise ValueError("its preface is corrupt")
    if version > FORMAT_VERSION:
        raise ValueError(f"it has format {version}, written by a newer mpickpt; this one reads {FORMAT_VERSION}")
    return head + table


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and join those that touch."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        elif start < stop:
            merged.append((start, stop))
    return merged


def _sum_of(fd: int, start: int, end: int, raw: Iterable[Range], checksum: Checksum) -> int:
    """Compute the CRC-32C of all bytes of a file from `start` to `end` but those in `raw`."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    crc = 0
    for first, stop in _between(start, end, raw):
        at = first
        while at < stop:
            count = os.preadv(fd, [buffer[: min(PIECE_BYTES, stop - at)]], at)
            if count == 0:
                raise ValueError("it ends before its structure does")
            crc = checksum(buffer[:count], crc)
            at += count
    return crc


def _between(start: int, end: int, raw: Iterable[Range]) -> Iterator[Range]:
    for first, stop in raw:
        yield start, min(first, end)
        start = stop
    yield start, end
