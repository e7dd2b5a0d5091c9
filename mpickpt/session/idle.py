"""An idle period of a rank: it has nothing to do but poll for the end of the period."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class IdlePeriod:
    """What a rank polls for; the period ends with the next event.

    Attributes
    ----------
    end : int
        It is over at this step,
    tests : list of callable
        and when one of these says so,
    until : float
        and maybe from this time on, of `time.perf_counter`: then the triggers have to be asked.
    seconds, steps : float, int
        So many go by between two polls, of what comes first.
    drains : bool
        The drain has to be polled.
    """

    end: int
    tests: list[Callable[[], bool]]
    until: float
    seconds: float
    steps: int
    drains: bool
