"""The last words of a process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import sys
import termios
import time

_LAUNCHER_LIMIT = 2.0  # seconds that a launcher gets to read a rank's last words


def flush() -> None:
    """Hand on what was printed, and wait until the launcher has read it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads any more
            stream.flush()
            _wait_until_read(stream.fileno())


def _wait_until_read(output: int) -> None:
    """Let a launcher empty its pipe first: MPICH's drops output that comes together with the request to abort."""
    if not stat.S_ISFIFO(os.fstat(output).st_mode):
        return
    limit = time.monotonic() + _LAUNCHER_LIMIT
    while time.monotonic() < limit and _unread(output) > 0:
        time.sleep(0.001)


def _unread(pipe: int) -> int:
    """Return the number of bytes in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)
