"""Calls of MPI that may not return after the loss of a rank: they get a time limit, which ends the process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def limited(seconds: float, text: str) -> Iterator[None]:
    """End this process with exit code 1 if the block takes longer; `text` says on stderr what did not happen."""
    ended = threading.Event()

    def watch() -> None:
        if ended.wait(seconds):
            return
        with suppress(OSError, ValueError):
            sys.stderr.write(f"mpickpt: process {os.getpid()} ends: in {seconds:g} s {text}\n")
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)

    thread = threading.Thread(target=watch, name="limit", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
