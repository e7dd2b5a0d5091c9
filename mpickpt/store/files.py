"""Files and folders of a checkpoint directory: durable names, and protection against links of other users.

A name is on the disk only after its folder was synced: fsync of a file does not guarantee it. Code that relies on a
name syncs the folder first. Other users may be able to write to the folder. So only new files, and files that are not
links, are opened for writing: nothing is written elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpickpt.errors import StoreError, warn
from mpickpt.retry import reason_of, system_errno

FOLDER_MODE = 0o755  # of new folders; the umask removes more
FILE_MODE = 0o600


def make_folder(directory: Path) -> None:
    """Create a folder and its missing parents; their names are on the disk afterwards.

    Raises
    ------
    OSError
        If one of them cannot be created.
    """
    above = (directory, *directory.parents)
    missing = above[: next((n for n, folder in enumerate(above) if folder.exists()), len(above))]
    for folder in reversed(missing):
        folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        sync_folder_above(folder)
    directory.mkdir(mode=FOLDER_MODE, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk.

    A file system that cannot sync folders returns EINVAL, which is ignored.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def sync_folder_above(folder: Path) -> None:
    """Make sure that the name of a folder is on the disk, unless this user may not read the folder above it."""
    with suppress(PermissionError):
        sync_folder(folder.resolve().parent)


def tell_who_may_write(directory: Path) -> None:
    """Warn if other users may write to a checkpoint directory.

    A group with the user's own number counts as the user: many systems give each user such a group.
    """
    found = directory.stat()
    own_group = found.st_gid == os.getegid() == os.geteuid()
    if found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not own_group):
        warn(
            f"Others may write to the checkpoint directory {directory} (mode {stat.S_IMODE(found.st_mode):04o}), and "
            f"so delete or replace what is saved there. If they are not to: chmod go-w {directory}"
        )


def create_file(path: Path) -> int:
    """Create an empty file of mode 0600 in place of any file of that name; return its descriptor.

    Raises
    ------
    OSError
        If it cannot be created.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


def replace_text(path: Path, text: str) -> None:
    """Replace the text of a file of mode 0600 atomically: a reader finds the old text or the new one.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    fd = create_file(new)
    try:
        with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123  (of a descriptor)
            file.write(text)
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def reserve(fd: int, nbytes: int) -> bool:
    """Make a file `nbytes` long and reserve room for all of it.

    If the file system cannot reserve room, only the length is set, and a full disk shows later:
    posix_fallocate() would write to each block of it.

    Returns
    -------
    bool
        Whether the room is reserved.

    Raises
    ------
    OSError
        If there is not enough room.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)) != 0:
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            os.ftruncate(fd, nbytes)
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


@contextmanager
def os_errors(what: str, path: Path, need: int | None = None) -> Iterator[None]:
    """Turn errors of the operating system into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        number = system_errno(error)
        reason = os.strerror(number) if number not in (None, errno.EINVAL) else reason_of(error)
        advice = "See to it and try again."
        if number in (errno.ENOSPC, errno.EDQUOT):
            there = next(p for p in (path, *path.parents) if p.exists())
            reason += f" ({need} bytes are needed, {free_bytes(there)} are free)" if need is not None else ""
            advice = "Make room or choose another directory."
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = f"User {os.geteuid()} needs permission to write there; or choose another directory."
        elif number == errno.ELOOP:
            advice = f"Nothing is written through a symbolic link: delete it, and see who may write to {path.parent}."
        elif number in (errno.ENOTDIR, errno.EEXIST):
            advice = "A file is in the way; choose another directory."
        raise StoreError(f"{what}: {reason}. {advice}", errno=number, path=path) from error


def free_bytes(where: int | Path) -> int:
    """Return the bytes that are free for this user on a file system."""
    found = os.statvfs(where)
    return found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)


def revalidate(*directories: Path) -> None:
    """Refresh this machine's cache of directories: NFS asks its server only when one is opened.

    Otherwise files that another machine created or replaced can stay invisible for a minute.
    """
    for directory in directories:
        with suppress(OSError):
            os.close(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
