"""Calls of MPI that may not return after the loss of a rank: they get a time limit, which ends the process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def limited(seconds: float, text: str, code: int) -> Iterator[None]:
    """End this process with exit code `code` if the block takes longer; `text` says on stderr what did not come."""
    watch = Watch(seconds, text, code)
    watch.begin()
    try:
        yield
    finally:
        watch.end()


class Watch:
    """A thread that ends the process if `end` does not come in time after `begin`.

    The thread starts with the object: the interpreter starts none while it ends.

    Parameters
    ----------
    seconds : float
        The limit.
    text : str
        What to say on stderr then; empty for nothing.
    code : int
        The exit code then.
    """

    def __init__(self, seconds: float, text: str, code: int) -> None:
        self._seconds = seconds
        self._text = text
        self._code = code
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="mpickpt limit", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Count from now on."""
        self._begun.set()

    def end(self) -> None:
        """End the thread."""
        self._ended.set()
        self._begun.set()
        self._thread.join()

    def _watch(self) -> None:
        self._begun.wait()
        if self._ended.wait(self._seconds):
            return
        with suppress(OSError, ValueError):
            if self._text:
                sys.stderr.write(f"mpickpt: {self._text} within {self._seconds:g} s: process {os.getpid()} ends\n")
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self._code)
