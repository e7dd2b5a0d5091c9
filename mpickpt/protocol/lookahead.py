"""How many steps ahead of its own a rank proposes to cut: so many that the answer comes before the rank gets there.

A rank that reaches its own proposal too early is blocked. Others may wait for it in a receive and so never answer:
then all lose the time of its patience. Answers are late mostly because ranks poll at some of their safe points only.
How often they poll is known. Their pace is not, so the quickest recent one counts, within bounds: the pace of a program
whose steps are of unequal length must not be taken from a slow one.
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
SLOWING = 1.2  # the quickest pace becomes slower by so much at a poll that finds something, if no step is as quick,
UNEVEN = 32  # and counts for at most so many times the last one: otherwise slow steps would put off a cut
REMEMBERED = 24  # of the polls that find nothing: what was quick before them counts no more


def idle_poll_seconds(interval: float) -> float:
    """Return the longest time between two polls of an idle rank, for cuts `interval` seconds apart; inf: by steps."""
    return min(max(IDLE_POLL_SECONDS, interval / POLLS_IN_INTERVAL), LONGEST_IDLE_POLL_SECONDS)


class Lookahead:
    """One rank's pace, and how long answers take.

    Parameters
    ----------
    size : int
        Number of ranks.
    poll, idle_poll : float
        The longest time between two polls, in seconds: of a rank that takes part in something, and of an idle one.
    """

    def __init__(self, size: int, poll: float, idle_poll: float) -> None:
        self._polls: deque[tuple[int, float, float]] = deque(maxlen=REMEMBERED)
        self._quickest = math.inf  # not known
        self._last = 0.0  # seconds that a step took recently
        self._poll = poll
        self._seen: tuple[int, float] | None = None
        self._polls_until_known = POLLS_UNTIL_KNOWN
        self._levels = (size - 1).bit_length()
        # A marker goes down a tree: at each level an idle rank has to poll before the marker goes on, and on its way
        # back the answer waits for ranks that take part. It may have come quicker last time, by chance.
        self._least = self._levels * (poll + idle_poll)
        self._latency = self._least

    def seen(self, step: int, now: float) -> None:
        """Take in that the rank is at the safe point of `step`, at `now` seconds; what follows is worked out later."""
        self._polls.append((step, now, SLOWING))

    def polled(self, step: int, now: float) -> None:
        """Take in a poll that found nothing: there are many of these, and they make the quickest pace no slower."""
        self._polls.append((step, now, 1.0))

    def blocked(self, seconds: float) -> None:
        """Take in that the rank was blocked for so long since the last poll: that is no part of its pace.

        If it were, a rank that waited for as long as its patience would have more of it the next time, without a bound.
        """
        self._work_out()
        if self._seen is not None:
            step, now = self._seen
            self._seen = step, now + seconds

    def _work_out(self) -> None:
        """Find out the pace from the polls since the last time."""
        while self._polls:
            step, now, slowing = self._polls.popleft()
            self._polls_until_known -= 1
            if self._seen is not None:
                steps, seconds = step - self._seen[0], now - self._seen[1]
                if steps <= 0 or seconds <= self._poll:  # too short a time to tell the pace
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
        """Whether the pace is known; until then all ranks have to poll at each safe point."""
        self._work_out()
        return self._quickest < math.inf and self._polls_until_known < 0

    def steps_in(self, seconds: float) -> int:
        """Return how many steps `seconds` have at the quickest recent pace, at least 1."""
        self._work_out()
        return max(1, math.floor(seconds / self._quickest))

    def answered(self, seconds: float) -> None:
        """Take in how long an answer took."""
        self._latency = max(seconds, FORGETTING * self._latency, self._least)

    @property
    def steps(self) -> int:
        """How many steps an answer takes, with a margin; at least one for each level, down the tree and up."""
        self._work_out()
        return max(2 * self._levels, math.floor(MARGIN * self._latency / self._quickest))
