"""How long this process has waited: by time in which it was awake, however its waits are cut into pieces.

A process that is suspended (SIGSTOP, a debugger, a virtual machine that is paused) does not notice: the clock goes on,
and a limit that counts by the clock alone is over the moment the process continues. Whoever waits polls in short
intervals, so an interval that took far longer than it should have is time in which the process did not run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_GAP = 1.0  # seconds between two polls that count at the most; polls are 0.1 s apart or less
SAY_AFTER = 30.0  # seconds of a wait, after which it is said once what it is for
REPORT_AFTER = 0.8  # of that, or of the limit of a wait: then a rank reports what it waits for to those who say it


class Stopwatch:
    """Measures one wait; it has to be asked all the time.

    Parameters
    ----------
    clock : callable
        Gives seconds of a steady clock.

    Attributes
    ----------
    reported, said : bool
        For its owner: the ranks that name those who are late were told of the wait, and standard error was.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.reported = self.said = False
        self._clock = clock
        self._last = clock()
        self._seconds = 0.0

    def seconds(self) -> float:
        """Give the seconds waited so far, without those in which the process was suspended."""
        now = self._clock()
        self._seconds += min(now - self._last, LONGEST_GAP)
        self._last = now
        return self._seconds

    def restart(self) -> None:
        """Count from now on."""
        self._last, self._seconds = self._clock(), 0.0
