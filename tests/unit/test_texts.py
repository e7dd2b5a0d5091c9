"""Parts of messages."""

from __future__ import annotations

import pytest

from mpickpt.texts import told_names, told_ranks


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ([3], "rank 3"),
        ([0, 1], "ranks 0 and 1"),
        ([0, 1, 2], "ranks 0 to 2"),
        ([0, 2, 3, 4, 9], "ranks 0, 2 to 4 and 9"),
        ([0, 2, 4, 6, 8], "ranks 0, 2, 4, 6 and 8"),
        ([*range(0, 20, 2), 90], "ranks 0, 2, 4, 6, 8 and 6 more"),
        (range(1000), "ranks 0 to 999"),
    ],
)
def test_ranks(ranks: list[int], told: str) -> None:
    assert told_ranks(ranks) == told


def test_names() -> None:
    assert told_names(["u"]) == "array 'u'"
    assert told_names(list("abcdefg")) == "arrays 'a', 'b', 'c', 'd', 'e' and 2 more"
