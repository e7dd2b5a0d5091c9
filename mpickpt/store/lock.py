"""The lock of a checkpoint directory: one program uses it at a time.

It is a lock on a file (flock), so that it goes with the process that has it, however that ends. The file says who
that is. Where several machines share the file system, a machine that dies takes its processes with it, but not their
locks: the server lets go of those only after a while.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

from mpickpt.errors import InUseError, warn
from mpickpt.store.files import FILE_MODE
from mpickpt.texts import visible

LOCK = "lock"  # the file in the checkpoint directory
_NAMELESS = "a process that gives no name"
_LOOKS_SECONDS = 0.2  # who only looks whether there is a lock (`lock_holder`) has it for a moment
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def take_lock(directory: Path, owner: str, patience: float) -> int:
    """Take the lock of a directory that exists, as `Store.lock` does; gives the descriptor for `give_lock_back`.

    Raises
    ------
    InUseError
        If another process has it, also after `patience` seconds.
    OSError
        If the file cannot be written.
    """
    path = directory / LOCK
    fd = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _locks_within(_LOOKS_SECONDS, fd) and not _outlasts(directory, patience, fd):
            raise InUseError(
                f"The checkpoint directory {directory} is in use by {_named_in(fd)}. "
                "Wait for it to end, or choose another directory.",
                errno=errno.EWOULDBLOCK,
                path=path,
            )
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            os.close(fd)
            raise
        warn(
            f"The file system of {directory} has no file locks ({error.strerror}): "
            "take care that no two runs use this directory at once."
        )
    except BaseException:
        os.close(fd)
        raise
    os.ftruncate(fd, 0)
    named = f"{owner} (process {os.getpid()}" if owner else f"process {os.getpid()}"
    os.pwrite(fd, f"{named} on {socket.gethostname()}{')' if owner else ''}\n".encode(), 0)
    return fd


def give_lock_back(fd: int) -> None:
    """Let go of the lock, also where a child process still has the descriptor."""
    os.ftruncate(fd, 0)
    _unlock(fd)
    os.close(fd)


def lock_holder(directory: Path) -> str | None:
    """Tell which process has the lock, as far as that can be seen from here; None if none has."""
    try:
        fd = _open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        named = _named_in(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return named
        except OSError as error:  # no locks here: what the file says is all there is
            return named if named != _NAMELESS and error.errno in _NO_FLOCK else None
        _unlock(fd)  # which a child that was made meanwhile would keep
        return None
    finally:
        os.close(fd)


def _unlock(fd: int) -> None:
    with suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_UN)


def _outlasts(directory: Path, patience: float, fd: int) -> bool:
    """Wait for the lock if its holder is on another machine, which may have died; False if it is not to be had."""
    holder = _named_in(fd)
    elsewhere = re.search(r"process \d+ on (\S+?)\)?$", holder)
    if patience <= 0 or elsewhere is None or elsewhere[1] == socket.gethostname():
        return False
    print(
        f"mpickpt: the checkpoint directory {directory} is in use by {holder}. If that machine died, its lock will be "
        f"gone after a while: waiting for up to {patience:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return _locks_within(patience, fd)


def _locks_within(seconds: float, fd: int) -> bool:
    """Take a lock as soon as it is free, if it becomes so in that time."""
    end, pause = time.monotonic() + seconds, 0.01
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        else:
            return True


def _named_in(fd: int) -> str:
    """Read the name of a lock's holder."""
    return visible(os.pread(fd, 1000, 0).decode(errors="replace").strip()) or _NAMELESS


def _open(path: Path, flags: int) -> int:
    """Open the file, without waiting and through no link: what stands for it may be another one's doing."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return fd
