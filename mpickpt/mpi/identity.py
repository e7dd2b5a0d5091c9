"""Which process a rank is, and whether it has ended.

A rank that MPI takes for dead may still have a write under way, or only be cut off. Before the survivors write to the
same files, its process has to be gone.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mpickpt.errors import MpickptError

_END_SECONDS = 60.0  # for a process that was killed to be gone: it may be in a call of a storage that hangs
_PAUSE_SECONDS = 0.002
_STARTED = 19  # field of /proc/PID/stat behind the name of the program


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, so that it can be told from a later one of the same number.

    Attributes
    ----------
    host : str
        The name of the machine.
    space : int
        The space of process numbers: that of the machine, or of a container.
    process : int
        Its number there.
    started : int
        When it started, in ticks of that machine.
    """

    host: str
    space: int
    process: int
    started: int

    @property
    def text(self) -> str:
        """How a message names it."""
        return f"process {self.process} on {self.host}"


def own_identity() -> Identity:
    """Return which process this is."""
    process = os.getpid()
    return Identity(socket.gethostname(), _space(), process, _started(process) or 0)


def end_process(identity: Identity) -> None:
    """Kill a process of this machine that still runs, and wait until it is gone; leave those of others alone.

    Raises
    ------
    MpickptError
        If it does not end.
    """
    if (identity.host, identity.space) != (socket.gethostname(), _space()):
        return
    end = time.monotonic() + _END_SECONDS
    while _runs(identity):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(identity.process, signal.SIGKILL)
        if time.monotonic() > end:
            raise MpickptError(
                f"The {identity.text} was lost, but does not end within {_END_SECONDS:g} s of being killed, and could "
                f"still write to the checkpoint. Does its storage hang? When it is gone, the same command resumes the "
                f"program."
            )
        time.sleep(_PAUSE_SECONDS)


def _runs(identity: Identity) -> bool:
    """Return whether any thread of the process is left; of one that nobody waited for, only the first is, and dead."""
    if _started(identity.process) != identity.started:
        return False
    folder = Path("/proc") / str(identity.process)
    try:
        state = _stat(identity.process)[0]
        return state not in ("Z", "X") or len(list((folder / "task").iterdir())) > 1
    except OSError:
        return False


def _started(process: int) -> int | None:
    try:
        return int(_stat(process)[_STARTED])
    except OSError:
        return None


def _stat(process: int) -> list[str]:
    return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()


def _space() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino
