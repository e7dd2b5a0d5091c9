"""How long a process has waited, without the time in which it was suspended."""

from __future__ import annotations

from itertools import accumulate

import pytest

from mpickpt.waiting import LONGEST_GAP, Stopwatch


@pytest.mark.parametrize(
    ("gaps", "waited"),
    [([0.001] * 500, 0.5), ([0.2, 9.0, 0.3], 0.5 + LONGEST_GAP), ([3600.0], LONGEST_GAP)],
)
def test_a_gap_between_two_polls_is_not_waiting(gaps: list[float], waited: float) -> None:
    times = accumulate(gaps, initial=1e6)
    watch = Stopwatch(lambda: next(times))
    for _ in gaps:
        seconds = watch.seconds()
    assert seconds == pytest.approx(waited)


def test_it_counts_again_from_a_restart() -> None:
    times = iter([0.0, 0.5, 0.75, 1.0])
    watch = Stopwatch(lambda: next(times))
    assert watch.seconds() == 0.5
    watch.restart()
    assert watch.seconds() == 0.25
