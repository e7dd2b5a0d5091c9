"""The lock of a checkpoint directory: one program uses it at a time.

It is a lock on a file (flock), which the kernel releases when the process that has it ends. The file names the process.
If several machines share the file system, the locks of a machine that dies stay until the server releases them, after
a while.
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
_LOOKS_SECONDS = 0.2  # `lock_holder`, which only checks for a lock, has it for a moment
_ENDS_SECONDS = 10.0  # the process that creates slots has it for a moment longer than the one that has died
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def take_lock(directory: Path, owner: str, patience: float) -> int:
    """Take the lock of a directory that exists, as `Store.lock` does; return the descriptor for `give_lock_back`.

    Raises
    ------
    InUseError
        If another process has it; on another machine, still after `patience` seconds.
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
    """Release the lock, even if a child process still has the descriptor."""
    os.ftruncate(fd, 0)
    _unlock(fd)
    os.close(fd)


def lock_holder(directory: Path) -> str | None:
    """Return which process has the lock, as far as this machine can see; None if none has."""
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
        except OSError as error:  # no locks here: only the file names a holder
            return named if named != _NAMELESS and error.errno in _NO_FLOCK else None
        _unlock(fd)  # a child that was forked meanwhile would keep it
        return None
    finally:
        os.close(fd)


def _unlock(fd: int) -> None:
    with suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_UN)


def _outlasts(directory: Path, patience: float, fd: int) -> bool:
    """Wait for the lock if its holder has died, or another machine with it may have; False if it is not released."""
    holder = _named_in(fd)
    named = re.search(r"process (\d+) on (\S+?)\)?$", holder)
    if named is not None and named[2] == socket.gethostname():
        return not _is_running(int(named[1])) and _locks_within(_ENDS_SECONDS, fd)
    if patience <= 0 or named is None:
        return False
    print(
        f"mpickpt: the checkpoint directory {directory} is in use by {holder}. If that machine died, its lock will be "
        f"gone after a while: waiting for up to {patience:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return _locks_within(patience, fd)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _locks_within(seconds: float, fd: int) -> bool:
    """Take a lock as soon as it is free; False if it is not free within that time."""
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
    """Open the file without waiting or following links: another user may have put something in its place."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return fd
