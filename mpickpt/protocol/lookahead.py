"""How many steps ahead of its own a rank proposes to cut: so many that the answer is there before the rank is.

A rank that comes to its own proposal too early stands still, and others may wait for it in a receive and so never
give the answer: then all lose the time of its patience. What makes the answer late is mostly that ranks look for
messages at some of their safe points only. In how long they look is known; the pace is not, so the quickest one of
late counts, within bounds: that of a program whose steps are of unequal length must not be taken from a slow one.
"""

from __future__ import annotations

import math
from collections import deque

POLL_SECONDS = 0.004  # between two polls while a step is to be agreed on: often enough to answer in time
IDLE_POLL_SECONDS = 0.020  # the same until the epoch is decided: a poll is dear while its code is out of the caches
LONGEST_IDLE_POLL_SECONDS = 0.100  # the same thereafter, at most: at each level of the tree a marker may lie so long
POLLS_IN_INTERVAL = 200  # a cut may come later by some idle polls, which must be short beside the interval
MARGIN = 2.0  # lookahead, in latencies
FORGETTING = 0.7  # of a latency that the next round does not reach
POLLS_UNTIL_KNOWN = 16  # before the pace counts as known: the first steps of many a program are slow
SLOWING = 1.2  # the quickest pace becomes slower by so much at a look that finds something, if no step is as quick,
UNEVEN = 32  # and counts for no more than so many times as quick as the last one: else slow steps would put off a cut
REMEMBERED = 24  # looks of those that find nothing: what was quick before them counts no more


def idle_poll_seconds(interval: float) -> float:
    """Choose how long ranks rest between two looks, if cuts are `interval` seconds apart; infinite if by steps."""
    return min(max(IDLE_POLL_SECONDS, interval / POLLS_IN_INTERVAL), LONGEST_IDLE_POLL_SECONDS)


class Lookahead:
    """One rank's pace, and how long answers take.

    Parameters
    ----------
    size : int
        Number of ranks.
    look, rest : float
        At most so many seconds go by between two looks of a rank that takes part in something, and of one at rest.
    """

    def __init__(self, size: int, look: float, rest: float) -> None:
        self._looks: deque[tuple[int, float, float]] = deque(maxlen=REMEMBERED)
        self._quickest = math.inf  # not known
        self._last = 0.0  # seconds that a step took recently
        self._look = look
        self._seen: tuple[int, float] | None = None
        self._polls_until_known = POLLS_UNTIL_KNOWN
        self._levels = (size - 1).bit_length()
        # A marker goes down a tree: at each level a rank at rest has to look before it is passed on, and on its way
        # back the answer waits for ranks that take part. It may have come quicker last time, by chance.
        self._least = self._levels * (look + rest)
        self._latency = self._least

    def seen(self, step: int, now: float) -> None:
        """Take in that the rank is at the safe point of `step`, at `now` seconds; what follows is worked out later."""
        self._looks.append((step, now, SLOWING))

    def polled(self, step: int, now: float) -> None:
        """Take in the same of a look that found nothing: such looks are many, and make the quickest pace no slower."""
        self._looks.append((step, now, 1.0))

    def _work_out(self) -> None:
        """Find out the pace from the looks since the last time."""
        while self._looks:
            step, now, slowing = self._looks.popleft()
            self._polls_until_known -= 1
            if self._seen is not None:
                steps, seconds = step - self._seen[0], now - self._seen[1]
                if steps <= 0 or seconds <= self._look:  # too short a time to tell the pace
                    continue
                self._last = seconds / steps
                self._quickest = max(min(self._last, slowing * self._quickest), self._last / UNEVEN)
            self._seen = step, now

    @property
    def step_seconds(self) -> float:
        """How long a step took recently; 0 before it is known."""
        self._work_out()
        return self._last

    @property
    def is_known(self) -> bool:
        """Whether the pace is known; until then all ranks have to look at each safe point."""
        self._work_out()
        return self._quickest < math.inf and self._polls_until_known < 0

    def steps_in(self, seconds: float) -> int:
        """Give how many steps `seconds` have at the quickest pace recently, 1 at the least."""
        self._work_out()
        return max(1, math.floor(seconds / self._quickest))

    def answered(self, seconds: float) -> None:
        """Take in how long an answer took."""
        self._latency = max(seconds, FORGETTING * self._latency, self._least)

    @property
    def steps(self) -> int:
        """So many whole steps an answer takes, with a margin; one for each level at least, down the tree and up."""
        self._work_out()
        return max(2 * self._levels, math.floor(MARGIN * self._latency / self._quickest))
