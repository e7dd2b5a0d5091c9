"""When to cut, which slot to write, and when to hurry. Pure decisions: no I/O, no clock, no messages.

All ranks must take the same decisions without asking each other each time. So a schedule looks at nothing but the
number of the step and at figures that all ranks have agreed on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

NEVER = 2**63 - 1  # a step that no program reaches
LONGEST_GAP = 1 / 8  # between two looks at the pace of all ranks, in intervals


class Pace(NamedTuple):
    """How a rank, or by their maximum all ranks together, get on."""

    elapsed: float  # seconds since the last cut
    per_step: float  # seconds that a step takes


class Schedule(Protocol):
    """Says at which safe points to look up, and whether to cut there.

    The session calls `arrive` at the first safe point and at each whose step is at least `next_step`.
    """

    @property
    def next_step(self) -> int:
        """The next step at which there is something to do."""

    def arrive(self, step: int, now: float, agreed: Pace | None) -> bool:
        """Tell that the rank is at `step`; returns whether it is cut here."""

    def seconds_left(self, step: int, now: float) -> float:
        """Estimate how long it is to the next cut."""

    def proposal(self) -> Pace | None:
        """Give what this rank has to tell the others, to be agreed on by the next arrival; None for nothing."""


class EverySteps:
    """Cut at the steps N, 2N, 3N, …, or at the first safe point after each.

    Parameters
    ----------
    every : int
        N.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._last: tuple[int, float] | None = None
        self.next_step = 0

    def arrive(self, step: int, now: float, agreed: Pace | None) -> bool:
        """Tell that the rank is at `step`; the first safe point is never a cut: there is nothing new to save."""
        cut = self._last is not None and step >= self.next_step
        self._last = step, now
        self.next_step = (step // self._every + 1) * self._every
        return cut

    def seconds_left(self, step: int, now: float) -> float:
        """Estimate how long it is to the next cut, at the pace since the last one."""
        if self._last is None or step <= self._last[0]:
            return math.inf
        return (self.next_step - step) * (now - self._last[1]) / (step - self._last[0])

    def proposal(self) -> Pace | None:
        """Nothing to agree on: the number of the step says it all."""
        return None


class EveryInterval:
    """Cut when so many seconds went by on the slowest rank, at a step that all ranks find without waiting.

    The ranks meet at *points*, p0 < p1 < …: at p(i) each posts a non-blocking maximum of its `Pace`, and takes the
    result of the one posted at p(i-1), which had a whole gap of time to arrive. From that all compute the same: the
    time that will have passed at p(i), whether to cut there, and p(i+1), half of the estimated steps to the next cut
    further on: the points close in on it. A gap is at most twice the one before it, as the pace at the start is
    unknown, and at most an eighth of the interval, so that a program whose steps become slower is noticed.

    Parameters
    ----------
    interval : float
        Seconds.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._step = 0
        self._gap = 1
        self._arrived = math.nan
        self._last_cut = math.nan
        self._own = Pace(0.0, 0.0)
        self.next_step = 0

    def arrive(self, step: int, now: float, agreed: Pace | None) -> bool:
        """Tell that the rank is at point `step` at `now` seconds, with the pace `agreed` on since the last point."""
        if agreed is None:
            self._last_cut, per_step, elapsed, cut = now, 0.0, 0.0, False
        else:
            per_step = agreed.per_step
            elapsed = agreed.elapsed + (step - self._step) * per_step
            cut = elapsed >= self._interval
        own_per_step = (now - self._arrived) / (step - self._step) if agreed is not None else 0.0
        if cut:
            self._last_cut, elapsed = now, 0.0
        self._own = Pace(now - self._last_cut, own_per_step)
        longest = min((self._interval - elapsed) / 2, self._interval * LONGEST_GAP)
        self._gap = max(1, int(min(longest / per_step if per_step > 0 else math.inf, 2 * self._gap)))
        self._step, self._arrived = step, now
        self.next_step = step + self._gap
        return cut

    def seconds_left(self, step: int, now: float) -> float:
        """Tell how much of the interval is left by this rank's own clock."""
        return max(0.0, self._interval - (now - self._last_cut))

    def proposal(self) -> Pace | None:
        """Give this rank's own pace as of the last arrival."""
        return self._own


def choose_slot(keep: int, epochs: Mapping[int, int | None], protected: int | None) -> int:
    """Choose the slot that the next epoch overwrites.

    Parameters
    ----------
    keep : int
        Number of slots to use, at least 2.
    epochs : mapping of int to int or None
        The slots that exist: index, and the epoch that is whole in it, or None where it holds nothing of use.
    protected : int or None
        The slot to go back to if all fails now: the newest epoch known whole everywhere, or the one restored.

    Returns
    -------
    int
        The lowest index that holds nothing of use, otherwise the oldest epoch; never `protected`.
    """
    if keep < 2:
        raise ValueError(f"{keep} slots cannot keep one epoch safe while the next is written")
    free = [index for index in range(keep) if index != protected]
    return min(free, key=lambda index: (epochs.get(index) or 0, index))


def should_hurry(saved: float, elapsed: float, left: float) -> bool:
    """Whether the urgent threads must take over, so that the drain ends before the next cut.

    Parameters
    ----------
    saved : float
        Share of the blocks that is saved, 0 to 1.
    elapsed, left : float
        Seconds since this cut and, by estimate, to the next.

    Returns
    -------
    bool
        From half time on: whether less is saved than a steady drain would have saved by now.
    """
    total = elapsed + left
    return 2 * elapsed >= total > 0 and saved * total < elapsed
