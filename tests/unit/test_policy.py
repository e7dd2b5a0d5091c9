"""Options from three places, schedules on skewed ranks, and the choice of slots."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpickpt.errors import UsageError
from mpickpt.options import (
    DEFAULT_INTERVAL,
    DEFAULT_MTBF,
    Options,
    PoolSize,
    parse_interval,
    parse_pool,
    parse_restart,
    parse_switch,
    resolve,
)
from mpickpt.protocol.policy import DOWNTIME, FIRST_INTERVAL, Clock, best_interval, choose_slot, should_boost

# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_value", "seconds"),
    [
        (90, 90),
        (0.5, 0.5),
        ("90", 90),
        ("90s", 90),
        ("10min", 600),
        ("1h", 3600),
        ("1h30min", 5400),
        ("1 h 30 min", 5400),
    ]
    + [("500ms", 0.5), ("1.5h", 5400), ("2d", 172800), (".5s", 0.5)],
)
def test_interval(given_value: object, seconds: float) -> None:
    assert parse_interval(given_value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "bad", ["", "0", 0, -1, "-5s", "10 parsecs", "min", "1h30", "30 1h", True, None, float("nan"), float("inf"), "1e3s"]
)
def test_bad_interval(bad: object) -> None:
    with pytest.raises(UsageError, match="is not a time span"):
        parse_interval(bad)


@pytest.mark.parametrize(
    ("given_value", "size"),
    [
        (1000, PoolSize(nbytes=1000)),
        ("1000", PoolSize(nbytes=1000)),
        ("256MiB", PoolSize(nbytes=256 << 20)),
        ("1.5 GiB", PoolSize(nbytes=3 << 29)),
        ("2GB", PoolSize(nbytes=2_000_000_000)),
        ("25%", PoolSize(fraction=0.25)),
        ("100 %", PoolSize(fraction=1.0)),
    ],
)
def test_pool(given_value: object, size: PoolSize) -> None:
    assert parse_pool(given_value) == size


@pytest.mark.parametrize("bad", ["", "0", 0, -5, 0.25, True, "0%", "101%", "25 B%", "lots", "5 XiB", "-1MiB", None])
def test_bad_pool(bad: object) -> None:
    with pytest.raises(UsageError, match="is not a pool size"):
        parse_pool(bad)


def test_pool_in_bytes() -> None:
    block = 1000
    assert PoolSize().bytes_for(1_000_000, block) == 250_000
    assert PoolSize().bytes_for(100, block) == 16 * block
    assert PoolSize(fraction=0.5).bytes_for(1_000_000, block) == 500_000
    assert PoolSize(fraction=0.5).bytes_for(100, block) == block
    assert PoolSize(nbytes=1).bytes_for(1_000_000, block) == block
    assert PoolSize(nbytes=4096).bytes_for(1_000_000, block) == 4096


def test_restart() -> None:
    assert [parse_restart(value) for value in ("auto", "never", 7, "7")] == ["auto", "never", 7, 7]
    for bad in ("", "0", -1, "newest", 1.5, True, None):
        with pytest.raises(UsageError, match="'auto', 'never' or the number of an epoch"):
            parse_restart(bad)


def test_switch() -> None:
    assert [parse_switch(value) for value in (True, "yes", "1", "On", False, "no", "0", "OFF")] == [True] * 4 + [
        False
    ] * 4
    with pytest.raises(UsageError, match="neither yes nor no"):
        parse_switch("maybe")


def test_defaults() -> None:
    found = resolve({"dir": "d"}, {})
    assert found == Options(Path("d"), None, DEFAULT_INTERVAL, 2, "auto", PoolSize(), True)
    assert resolve({"dir": "d"}, {}, base=Path("/there")).directory == Path("/there/d")
    assert resolve({"dir": "/d"}, {}, base=Path("/there")).directory == Path("/d")


def test_precedence() -> None:
    code = {"dir": "code", "every": None, "interval": "1h", "keep": 3, "pool": "10%", "direct": True}
    environment = {"MPICKPT_DIR": "env", "MPICKPT_EVERY": "5", "MPICKPT_DIRECT": "no", "MPICKPT_KEEP": ""}
    typed = {"dir": "typed", "restart": "3"}
    found = resolve(code, environment, typed)
    assert found == Options(Path("typed"), 5, None, 3, 3, PoolSize(fraction=0.1), False)
    assert resolve(code, environment).directory == Path("env")
    assert resolve(code, {}).interval == 3600
    found = resolve({"dir": "d", "every": 5}, {}, {"interval": "2min"})
    assert (found.every, found.interval) == (None, 120)


@pytest.mark.parametrize(
    ("code", "environment", "typed", "message"),
    [
        ({"dir": ""}, {}, {}, r"Argument directory= of mpickpt.open\(\): '' is not a directory"),
        (
            {"dir": "d", "every": 0},
            {},
            {},
            r"Argument every= of mpickpt.open\(\): 0 is not a whole number of at least 1",
        ),
        ({"dir": "d", "every": 2.5}, {}, {}, "2.5 is not a whole number"),
        ({"dir": "d", "keep": True}, {}, {}, "True is not a whole number of at least 2"),
        (
            {"dir": "d"},
            {"MPICKPT_KEEP": "1"},
            {},
            "Environment variable MPICKPT_KEEP: '1' is not a whole number of at least 2",
        ),
        ({"dir": "d"}, {"MPICKPT_POOL": "big"}, {}, "Environment variable MPICKPT_POOL: 'big' is not a pool size"),
        ({"dir": "d"}, {}, {"interval": "soon"}, "Option --interval: 'soon' is not a time span"),
        ({"dir": "d", "every": 1, "interval": 1}, {}, {}, "Argument every= .* and Argument interval= .* contradict"),
        ({"dir": "d"}, {}, {"every": "1", "interval": "1"}, "Option --every and Option --interval contradict"),
    ],
)
def test_complaints_name_their_source(code: dict, environment: dict, typed: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(code, environment, typed)


def test_a_bad_value_that_is_overruled_does_no_harm() -> None:
    assert resolve({"dir": "d", "keep": 1}, {}, {"keep": "4"}).keep == 4


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_clock() -> None:
    clock = Clock(10.0, DEFAULT_MTBF)
    assert not clock.due(1e9), "time runs from the first safe point on"
    clock.start(100.0)
    assert not clock.due(109.9)
    assert clock.seconds_left(104.0) == 6.0
    assert clock.due(110.0)
    assert not clock.due(119.0)
    clock.measured(1.0, 1.0, 1.0)
    assert clock.interval == 10.0


def test_clock_that_chooses() -> None:
    clock = Clock(None, 86400.0)
    assert clock.interval == FIRST_INTERVAL
    clock.measured(drain=20.0, lost=0.5, restart=30.0)
    assert clock.interval == best_interval(20.0, 0.5, 86400.0, DOWNTIME, 30.0)
    clock.measured(drain=1000.0, lost=0.5, restart=30.0)
    assert clock.interval == pytest.approx(1100.0), "no shorter than a drain"


def test_no_interval_never_comes() -> None:
    clock = Clock(math.inf, DEFAULT_MTBF)
    clock.start(0.0)
    assert not clock.due(1e300)
    assert clock.seconds_left(0.0) == math.inf


@given(lost=st.floats(0.01, 50), drain=st.floats(0.01, 200), mtbf=st.floats(2e4, 1e7))
def test_best_interval_is_the_best(lost: float, drain: float, mtbf: float) -> None:
    """Against the waste itself: what checkpoints take, and what a failure loses, as shares of the time."""
    downtime, restart = 60.0, 30.0

    def waste(interval: float) -> float:
        undisturbed = 1 - lost / interval
        failure = 1 - (downtime + restart + drain - lost + interval / 2) / mtbf
        return 1 - undisturbed * failure

    best = best_interval(drain, lost, mtbf, downtime, restart)
    if best > 1.1001 * drain:
        assert waste(best) <= min(waste(best * 0.9), waste(best * 1.1)) + 1e-12


def test_best_interval_is_youngs_for_a_blocking_checkpoint() -> None:
    assert best_interval(50.0, 50.0, 1e8, 0.0, 0.0) == pytest.approx((2 * 50.0 * 1e8) ** 0.5, rel=1e-3)


# -- slots -------------------------------------------------------------------------------------------------------------


def test_choice_of_slot() -> None:
    assert choose_slot(2, {}, None) == 0
    assert choose_slot(2, {0: 1}, 0) == 1
    assert choose_slot(2, {0: 1, 1: 2}, 1) == 0
    assert choose_slot(2, {0: 1, 1: None}, 0) == 1  # a failed epoch's slot again
    assert choose_slot(3, {0: 4, 1: 2, 2: 3}, 0) == 1
    assert choose_slot(3, {0: 4, 1: 2}, 0) == 2  # an unused slot before any epoch
    assert choose_slot(2, {2: 9}, 2) == 0  # there were more slots once
    assert choose_slot(3, {0: 4, 1: 2, 2: 3}, 0, 1) == 2  # the oldest is being archived
    assert choose_slot(3, {0: 4, 1: 2, 2: 3}, 0, 0) == 1
    assert choose_slot(2, {0: 1, 1: 2}, 1, 0) == 0  # there is no other one
    with pytest.raises(ValueError, match="1 slots"):
        choose_slot(1, {0: 1}, 0)


@settings(deadline=None)
@given(
    keep=st.integers(2, 5),
    outcomes=st.lists(st.sampled_from(["complete", "failed", "crash", "crash, then damage"]), max_size=40),
)
def test_the_only_complete_epoch_is_never_overwritten(keep: int, outcomes: list[str]) -> None:
    """Follow the slots through runs that fail and crash: what was complete, or something newer, is always there."""
    disk: dict[int, int | None] = {}
    known = dict(disk)
    protected: int | None = None
    ever_complete = False
    for epoch, outcome in enumerate(outcomes, 1):
        target = choose_slot(keep, known, protected)
        assert target < keep
        newest = max((e for e in disk.values() if e), default=None)
        disk[target] = known[target] = None  # the drain has begun: what was there is gone
        left = [e for e in disk.values() if e]
        assert left or not ever_complete
        if newest is not None:
            assert newest in left
        if outcome == "complete":
            disk[target] = known[target] = epoch
            protected, ever_complete = target, True
        elif outcome.startswith("crash"):
            complete = sorted(((e, i) for i, e in disk.items() if e), reverse=True)
            if outcome == "crash, then damage" and len(complete) > 1:
                disk[complete[0][1]] = None  # the restart falls back to the older one
                complete = complete[1:]
            known = dict(disk)
            protected = complete[0][1] if complete else None


@settings(deadline=None)
@given(saved=st.floats(0, 1), elapsed=st.floats(0, 1e6), left=st.floats(0, 1e6))
def test_boost(saved: float, elapsed: float, left: float) -> None:
    boost = should_boost(saved, elapsed, left)
    if saved == 1.0 or elapsed < left:
        assert not boost
    if saved == 0.0 and elapsed >= left and elapsed > 0:
        assert boost


def test_no_boost_without_an_end() -> None:
    assert not should_boost(0.0, 5.0, float("inf"))
