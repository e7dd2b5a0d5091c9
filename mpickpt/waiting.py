"""How long this process has waited, without the time in which it was suspended.

A process does not notice that it is suspended (SIGSTOP, a debugger, a paused virtual machine): the clock goes on, and a
limit that counts by the clock alone has passed the moment the process continues. A wait polls at short intervals, so an
interval that took far longer than intended is time in which the process did not run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_GAP = 1.0  # most seconds between two polls that count; polls are 0.1 s apart or less
SAY_AFTER = 30.0  # seconds of a wait until it is reported once on stderr
REPORT_AFTER = 0.8  # of that, or of the limit of a wait, until a rank reports its wait to the collectors


class Stopwatch:
    """Measures one wait; it must be polled at short intervals.

    Parameters
    ----------
    clock : callable
        Returns seconds of a monotonic clock.

    Attributes
    ----------
    reported, said : bool
        Set by its owner: whether the wait was reported to the collectors, and on standard error.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.reported = self.said = False
        self._clock = clock
        self._last = clock()
        self._seconds = 0.0

    def seconds(self) -> float:
        """Return the seconds waited so far, without those in which the process was suspended."""
        now = self._clock()
        self._seconds += min(now - self._last, LONGEST_GAP)
        self._last = now
        return self._seconds

    def restart(self) -> None:
        """Count from now on."""
        self._last, self._seconds = self._clock(), 0.0
