"""Calls of MPI that may not return after the loss of a rank: they get a time limit, which ends the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mpickpt.mpi.output import flush

_ABORT_SECONDS = 10.0  # for the launcher to end all ranks


@contextmanager
def limited(seconds: float, text: str, end_all: Callable[[], object] | None = None) -> Iterator[None]:
    """End this process if the block takes longer; `text` says on stderr what did not happen.

    Parameters
    ----------
    seconds : float
        How long it may take.
    text : str
        What did not happen, for "in 1 s ...".
    end_all : callable, optional
        Ends all ranks. Without it this process alone is killed: Open MPI does not tell the other ranks of one that ends
        by an exit code.
    """
    ended = threading.Event()

    def watch() -> None:
        if ended.wait(seconds):
            return
        with suppress(OSError, ValueError):
            sys.stderr.write(f"mpickpt: process {os.getpid()} ends: in {seconds:g} s {text}\n")
        flush()
        if end_all is not None:
            ending = threading.Thread(target=end_all, daemon=True)
            ending.start()
            ending.join(_ABORT_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=watch, name="limit", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
