"""Signals that come after the loss of a rank, between two sessions of one program.

They mean the program, and not this process alone, so that they must not end it. The next session takes them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

_Handler = Callable[[int, FrameType | None], object] | int | None


class Deferral:
    """A handler that notes that a signal came.

    Parameters
    ----------
    before : callable or int or None
        The handler to return to.
    has_come : bool
        Whether the signal had come before.

    Attributes
    ----------
    before : callable or int or None
        As given.
    has_come : bool
        Whether the signal has come.
    """

    def __init__(self, before: _Handler, *, has_come: bool) -> None:
        self.before = before
        self.has_come = has_come
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take in the signal."""
        if os.getpid() == self._process:
            self.has_come = True
            return
        signal.signal(number, self.before)  # a child, which was made by fork
        os.kill(os.getpid(), number)


def end_deferral(numbers: tuple[int, ...]) -> None:
    """Have signals that no session has taken over take the effect that they had before."""
    for number in numbers:
        handler = signal.getsignal(number)
        if isinstance(handler, Deferral):
            with suppress(ValueError):  # not the main thread
                signal.signal(number, handler.before)
                if handler.has_come:
                    os.kill(os.getpid(), number)
