"""Retries of failed reads, and the reason for a failure in one line.

A storage error may be transient: a server comes back, a path fails over, a signal interrupts a call. One such error
must not cost the newest epoch, so a read is tried a few times before a restart falls back to an older one.
The native core does the same for each of its reads (native/src/retry.c).
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mpickpt.errors import MpickptError

PAUSES = (0.05, 0.5)  # seconds before the second and the third try, which is the last one
TRANSIENT = frozenset(
    (errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENOTCONN)
)
LONGEST = 200  # characters of a reason
_ERRNO = re.compile(r"\berrno = (\d+)")  # as HDF5 words it

_T = TypeVar("_T")
_told: set[tuple[str, int]] = set()


def read_again(path: Path, read: Callable[[], _T]) -> _T:
    """Call `read`, and retry it after a transient error; the error of the last try is raised.

    Parameters
    ----------
    path : pathlib.Path
        What is read, for the message.
    read : callable
        Opens the file each time: a stale descriptor stays stale.
    """
    for pause in PAUSES:
        try:
            return read()
        except (OSError, MpickptError) as error:
            number = system_errno(error)
            if number not in TRANSIENT:
                raise
            tell(path, number)
        time.sleep(pause)
    return read()


def tell(path: Path, number: int) -> None:
    """Report on stderr that a file is read again, once for each file and error in a process."""
    if (str(path), number) in _told:
        return
    _told.add((str(path), number))
    if sys.stderr is not None:
        print(f"mpickpt: {path} is read again, as it failed once: {os.strerror(number)}", file=sys.stderr, flush=True)


def system_errno(error: BaseException) -> int | None:
    """Return the operating system's error number; h5py gives it only in the text of errors such as KeyError."""
    number = getattr(error, "errno", None)
    if number is None and (found := _ERRNO.search(str(error))):
        number = int(found[1])
    return number


def reason_of(error: BaseException) -> str:
    """Return in one line why something failed, without a full stop; the messages of h5py have many lines."""
    number = system_errno(error)
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if number and ("\n" in told or _ERRNO.search(told)):
        told = os.strerror(number)
    line = " ".join(told.split()).strip("'\"").rstrip(".")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
