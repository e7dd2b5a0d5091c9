"""The protocol with a simulated rank set: what must hold for all delays, and what an epoch costs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sampling import examples
from simulator import Job, Simulation

from mpickpt import protocol as p
from mpickpt.protocol.lookahead import IDLE_POLL_SECONDS, Lookahead


def _ran(job: Job) -> Simulation:
    simulation = Simulation(job)
    simulation.run()
    return simulation


SIZES = st.sampled_from([2, 2, 3, 4, 5, 6, 7, 8, 11, 16, 33, 64])

# -- any job -----------------------------------------------------------------------------------------------------------


Needs = Callable[[int, int], list[tuple[int, int]]]


def _needs(kind: str, size: int, steps: int, period: int, rnd: random.Random) -> Needs:
    """Who waits for whose messages: of its own step, or with "early" of a later one."""
    if kind == "ring":
        return lambda rank, step: [((rank - 1) % size, step), ((rank + 1) % size, step)]
    if kind == "chain":
        return lambda rank, step: [(rank - 1, step)] if rank else []
    if kind == "seldom":
        return lambda rank, step: [((rank + 1) % size, step)] if step % period == period - 1 else []
    if kind == "early":  # rank 0 needs what the others send some steps later; they run on by themselves
        ahead = [rnd.randrange(6) for _ in range(size)]
        return lambda rank, step: (
            [] if rank else [(other, min(step + ahead[other], steps - 1)) for other in range(1, size)]
        )
    return lambda rank, step: []


@st.composite
def _jobs(draw: st.DrawFn) -> Job:
    size = draw(SIZES)
    rnd = random.Random(draw(st.integers(0, 2**32)))
    steps = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["none", "ring", "chain", "seldom", "early"]))
    skew = draw(st.sampled_from([1.0, 3.0, 50.0]))
    unit = draw(st.sampled_from([1e-4, 0.01, 1.0, 30.0]))
    pace = [unit * skew ** rnd.random() for _ in range(size)]
    hop = unit * draw(st.sampled_from([1e-3, 0.1, 3.0]))
    drain = unit * draw(st.sampled_from([0.1, 3.0, 30.0]))
    hanging = draw(st.sampled_from([0.0, 0.0, 0.1]))
    failing = draw(st.sampled_from([0.0, 0.0, 0.02]))
    bad = rnd.randrange(2**32)
    length = steps * sum(pace) / size
    asks = [
        (rnd.uniform(0, length), rnd.randrange(size), stop)
        for stop in draw(st.lists(st.sampled_from([False, False, False, True]), max_size=6))
    ]
    if draw(st.booleans()) and asks:  # a signal to all
        asks += [(asks[0][0] + rnd.random() * unit, rank, asks[0][2]) for rank in range(size)]
    dies = (rnd.uniform(0, length), rnd.randrange(size)) if draw(st.integers(0, 5)) == 0 else None
    # Who waits for what another rank sends in a later step waits for ever for one that is in a save before.
    habits = ("", "", "", "head", "end") if kind != "early" and draw(st.booleans()) else ("",)
    saves = [rnd.choice(habits) for _ in range(steps + 1)]
    return Job(
        size=size,
        steps=steps,
        seconds=lambda rank, step: pace[rank] * (0.5 + rnd.random()),
        needs=_needs(kind, size, steps, draw(st.integers(2, 40)), rnd),
        in_mpi=draw(st.booleans()),
        tracked=kind == "early" or draw(st.booleans()),
        hop=lambda rank: hop * rnd.random(),
        longest_drain=1.5 * drain,
        asks=asks,
        fails=lambda rank, epoch: random.Random(f"{bad} {rank} {epoch}").random() < failing,
        hangs=lambda rank, epoch: (
            unit * random.Random(f"{bad} {epoch} {rank}").choice([5, 50, 500])
            if random.Random(f"{rank} {bad} {epoch}").random() < hanging
            else 0.0
        ),
        stall_limit=unit * draw(st.sampled_from([1.0, 20.0])),
        dies=dies,
        every=draw(st.sampled_from([None, None, 1, 7, 30])),
        keep=draw(st.integers(2, 4)),
        archives=lambda epoch: random.Random(f"{epoch} {bad}").choice([0, 1, 2, 5]),
        saves=saves.__getitem__,
    )


@settings(max_examples=examples(300), deadline=None)
@given(_jobs())
def test_nothing_breaks(job: Job) -> None:
    """The simulation itself asserts equal cuts, a complete epoch on disk at all times, and an end of all waits."""
    simulation = _ran(job)
    if simulation.complete:
        assert simulation.complete_on_disk()
    if simulation.is_ended_too_early:
        why = job.dies or job.tracked or any(rank.gave_up for rank in simulation.ranks)
        assert why, "ranks were ended that would have come"
    if job.dies or simulation.aborted is not None:
        return
    for number, cuts in simulation.cuts.items():
        assert len(cuts) == job.size or any(rank.protocol.missed for rank in simulation.ranks), f"epoch {number}"
    _check_saves(simulation)
    stops = {(rank.stopped is None, rank.stop_complete) for rank in simulation.ranks}
    assert len(stops) == 1, "some ranks were told to stop, others not"
    if not job.tracked and not any(rank.gave_up for rank in simulation.ranks):
        assert len({rank.stopped for rank in simulation.ranks}) == 1, "ranks stopped at different steps"


def _check_saves(simulation: Simulation) -> None:
    """All ranks are told the same of each save, and what is true; those that were stopped may lack the last one."""
    longest = max((rank.saved for rank in simulation.ranks), key=len)
    for rank in simulation.ranks:
        assert rank.saved == longest[: len(rank.saved)]
        assert len(rank.saved) >= len(longest) - (rank.stopped is not None)
    for step, number, complete in longest:
        assert complete == (number in simulation.complete)
        if number not in simulation.skipped:
            assert set(simulation.cuts[number].values()) == {step}


@settings(max_examples=examples(30), deadline=None)
@given(st.sampled_from([2, 5, 13]), st.integers(0, 2**32), st.sampled_from([1.0, 50.0]), st.booleans())
def test_every_request_is_fulfilled(size: int, seed: int, skew: float, tracked: bool) -> None:
    """Long before the end, each rank that was asked is cut thereafter, and one signal to all makes one epoch."""
    rnd = random.Random(seed)
    pace = [skew ** rnd.random() for _ in range(size)]
    steps = 800
    moments = [steps * max(pace) * k / 5 + rnd.random() for k in range(1, 4)]
    asks = [(moments[0], rnd.randrange(size), False), (moments[1], rnd.randrange(size), False)]
    asks += [(moments[2] + 0.1 * rnd.random(), rank, False) for rank in range(size)]
    job = Job(
        size,
        steps,
        lambda rank, step: pace[rank],
        needs=_needs("ring", size, steps, 1, rnd),
        tracked=tracked,
        asks=asks,
        hop=lambda rank: 0.05 * rnd.random(),
    )
    simulation = _ran(job)
    for rank in simulation.ranks:
        for moment in rank.asked_at:
            assert any(cut >= moment for cut in rank.cut_at), f"rank {rank.rank}, asked at {moment}"
    assert simulation.complete
    missed = sum(rank.protocol.missed for rank in simulation.ranks)
    assert len(simulation.cuts) == 3 or missed


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_hang_is_waited_for_once(size: int) -> None:
    """At the next cut by its step; the cuts thereafter are skipped, by all ranks, and made again when it has an end."""
    hangs = {(size - 1, 3): 150.0}
    job = Job(size, 300, lambda rank, step: 1.0, every=10, hangs=lambda *which: hangs.get(which, 0.0))
    simulation = _ran(job)
    assert sorted(simulation.skipped) == list(range(4, 18)), "from step 40 to step 170, when 160 s had gone by"
    assert all(len(ranks) == size for ranks in simulation.skipped.values())
    assert simulation.complete == [1, 2, *range(18, 30)]
    for rank in simulation.ranks:
        assert rank.blocked <= job.stall_limit + 12 * job.longest_drain
    assert simulation.now < 300 + job.stall_limit + 30


@pytest.mark.parametrize("tracked", [True, False])
def test_after_a_hang_a_cut_that_was_asked_for_is_made_at_once(tracked: bool) -> None:
    asks = [(100.0 * k, 1, False) for k in range(1, 6)]
    hangs = {(2, 2): 230.0}
    job = Job(4, 600, lambda rank, step: 1.0, asks=asks, tracked=tracked, hangs=lambda *which: hangs.get(which, 0.0))
    simulation = _ran(job)
    assert sorted(simulation.skipped) == [3, 4, 5], "asked for at 300, 400, and 500 s; the hang ends at some 435 s"
    assert simulation.complete == [1, 6]


@pytest.mark.parametrize("size", [1, 3, 16])
def test_a_slot_that_is_archived_is_not_written_to(size: int) -> None:
    """Two of three slots take turns for four epochs, on all ranks; the simulation asserts which."""
    job = Job(size, 300, lambda rank, step: 1.0, every=10, keep=3, archives=lambda epoch: 4)
    simulation = _ran(job)
    assert simulation.complete == list(range(1, 30))
    assert simulation.archives == 8, "of the epochs 1, 5, 9, ..."


def test_after_a_hang_a_save_is_made_at_once() -> None:
    """The hang ends between the second save, which is skipped, and the third one."""
    simulation = _ran(
        Job(
            *(3, 80, lambda rank, step: 1.0),
            saves=lambda step: "head" if step in (20, 40, 60) else "",
            hangs=lambda rank, epoch: 50.0 * ((rank, epoch) == (2, 1)),
        )
    )
    assert sorted(simulation.skipped) == [2, 3]
    for rank in simulation.ranks:
        assert rank.saved == [(20, 1, False), (40, 2, False), (60, 4, True)]


def test_a_program_that_is_to_stop_does_so_while_storage_hangs() -> None:
    asks = [(45.0, 1, True)]
    job = Job(3, 1000, lambda rank, step: 1.0, every=10, asks=asks, hangs=lambda rank, epoch: 1e6 * (epoch > 1))
    simulation = _ran(job)
    assert [rank.stop_complete for rank in simulation.ranks] == [False] * 3
    assert simulation.complete == [1]
    assert simulation.now < 150


@pytest.mark.parametrize("size", [1, 2, 3, 16])
@pytest.mark.parametrize("tracked", [True, False])
def test_stop(size: int, tracked: bool) -> None:
    rnd = random.Random(size)
    everybody = [(20.0 + rnd.random(), rank, True) for rank in range(size)]
    simulation = _ran(Job(size, 1000, lambda rank, step: 0.5 + rnd.random(), tracked=tracked, asks=everybody))
    assert [rank.stop_complete for rank in simulation.ranks] == [True] * size
    assert len(simulation.cuts) == 1, "one signal to all ranks makes one epoch"
    assert max(rank.step for rank in simulation.ranks) < 1000 or simulation.now < 200


def test_stop_hurries_past_an_epoch_that_still_drains() -> None:
    asks = [(10.0, 1, False), (20.0, 2, True)]
    simulation = _ran(Job(4, 1000, lambda rank, step: 1.0, asks=asks, longest_drain=300.0))
    assert len(simulation.cuts) == 2
    assert max(simulation.cuts[2].values()) <= 40, "the marker does not wait for the drain"
    assert simulation.complete == [1, 2]


def test_a_stop_that_storage_refuses_ends_all_the_same() -> None:
    job = Job(3, 1000, lambda rank, step: 1.0, asks=[(10.0, 1, True)], fails=lambda rank, epoch: rank == 2)
    simulation = _ran(job)
    assert [rank.stop_complete for rank in simulation.ranks] == [False] * 3
    assert len(simulation.cuts) == p.STOP_ATTEMPTS


@pytest.mark.parametrize("unit", [1.0, 10.0])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_ranks_that_stop_are_ended_at_the_limit_and_not_before(unit: float, share: float) -> None:
    """It is 20 s, or twelve steps. A rank below rank 0 hears of the end four hops after it comes to its own.

    Each step waits for a save, whose drain takes hundreds of steps: the limit must not become longer by that.
    """
    limit = max(20.0, 12 * unit)
    job = Job(
        4,
        40,
        lambda rank, step: unit,
        hop=lambda rank: share * limit / 4,
        longest_drain=300 * unit,
        asks=[(100 * unit, 0, True)],
        saves=lambda step: "head",
    )
    simulation = _ran(job)
    assert simulation.aborted == (None if share < 1 else pytest.approx(limit))
    assert not simulation.is_ended_too_early
    for rank in simulation.ranks:
        assert (rank.stopped, rank.stop_complete, rank.gave_up) == (6, True, 0)


@pytest.mark.parametrize("seed", range(10))
def test_time_in_which_a_rank_was_blocked_is_not_its_pace(seed: int) -> None:
    """Answers come late, so ranks give up; a rank that has waited once must not wait for longer the next time."""
    rnd = random.Random(seed)
    job = Job(
        8,
        40,
        lambda rank, step: 15 + 30 * rnd.random(),
        needs=_needs("ring", 8, 40, 1, rnd),
        every=1,
        asks=[(rnd.uniform(0, 600), rnd.randrange(8), True)],
        hop=lambda rank: 90 * rnd.random(),
        longest_drain=90.0,
    )
    simulation = _ran(job)
    assert any(rank.gave_up for rank in simulation.ranks), "otherwise this tests nothing"
    assert max(rank.blocked for rank in simulation.ranks) < 3600, "while the steps take 20 minutes"


def test_a_rank_that_others_wait_for_is_not_waited_for_without_end() -> None:
    """Rank 1 is ahead and waits for a message of rank 0, which stands at its own proposal: only giving up helps."""
    needs = {1: lambda step: [(0, step)] if step % 40 == 39 else []}
    job = Job(
        2,
        400,
        lambda rank, step: 1.0 if rank == 0 else 0.01,
        needs=lambda rank, step: needs[rank](step) if rank in needs else [],
        asks=[(5.0, 0, False), (200.0, 0, False)],
    )
    simulation = _ran(job)
    assert simulation.ranks[0].blocked >= p.PATIENCE, "otherwise this tests nothing"
    assert simulation.complete


def test_the_lookahead_adapts_to_a_slow_rank() -> None:
    """One rank is 50 times slower, and the others wait for it; after the first rounds nobody stands still any more."""
    asks = [(1000.0 + 1000 * k, 1, False) for k in range(12)]
    simulation = _ran(
        Job(
            4,
            300,
            lambda rank, step: 1.0 if rank else 50.0,
            needs=lambda rank, step: [(0, step)] if rank else [],
            asks=asks,
        )
    )
    assert len(simulation.complete) == 12
    assert sum(rank.protocol.waits for rank in simulation.ranks) <= 4


@settings(max_examples=examples(60), deadline=None)
@given(SIZES, st.sampled_from([1e-3, 5e-3, 0.02]), st.sampled_from([0.0, 0.01, 0.1]), st.integers(0, 2**32))
@example(6, 0.02, 0.1, 1911)  # needs steps for each level of the tree
@example(2, 1e-3, 0.1, 521)  # needs polls by steps as well as by time, or a pace that is not forgotten
@example(2, 1e-3, 0.1, 443)  # needs a pace that is not forgotten in an idle period
def test_idle_ranks_hold_up_nobody(size: int, unit: float, uneven: float, seed: int) -> None:
    """Ranks that wait for each other in each step are never blocked until their patience ends, if they poll seldom.

    A share of the steps, and the first one, is twenty times as long as the others: still short beside the patience.
    """
    rnd = random.Random(seed)
    steps = min(4000, round(20 / unit))
    long = [step == 0 or random.Random(seed + step).random() < uneven for step in range(steps)]
    length = unit * sum(20 if slow else 1 for slow in long)
    asks = [(rnd.uniform(0, 0.8 * length), rnd.randrange(size), False) for _ in range(6)]
    job = Job(
        size,
        steps,
        lambda rank, step: unit * (20 if long[step] else 1) * (0.8 + 0.4 * rnd.random()),
        needs=_needs("ring", size, steps, 1, rnd),
        asks=[*asks, (0.9 * length, rnd.randrange(size), True)],
        hop=lambda rank: 2e-5 * rnd.random(),
        longest_drain=0.05 * length,
        poll=0.002,
        idle_poll=0.05,
    )
    simulation = _ran(job)
    assert simulation.cuts
    assert [rank.gave_up for rank in simulation.ranks] == [0] * size


@pytest.mark.parametrize("size", [2, 3, 5, 8])  # in a larger ring ranks may be more steps apart than any lookahead
@pytest.mark.parametrize(
    ("first", "slow", "then"), [(1, 0.06, 1e-3), (1, 0.06, 0.02), (100, 0.06, 1e-3), (50, 0.5, 0.5)]
)
def test_a_request_before_steps_become_quick_holds_up_nobody(size: int, first: int, slow: float, then: float) -> None:
    """The pace that is known is that of slow steps: of the first one, or of a hundred, and quick ones follow."""
    for seed in range(20):
        rnd = random.Random(seed)
        asked = slow * first * rnd.uniform(0.5, 1.1)
        job = Job(
            size,
            first + 1000,
            lambda rank, step: (slow if step < first else then) * (0.9 + 0.2 * rnd.random()),  # noqa: B023
            needs=_needs("ring", size, first + 1000, 1, rnd),
            asks=[(asked, rnd.randrange(size), seed % 2 == 0)],
            hop=lambda rank: 2e-5 * rnd.random(),  # noqa: B023
            poll=0.002,
            idle_poll=0.05,
        )
        simulation = _ran(job)
        assert simulation.cuts
        assert [rank.gave_up for rank in simulation.ranks] == [0] * size, f"seed {seed}"


@pytest.mark.parametrize("quick", [1e-5, 1e-3])
def test_slow_steps_after_quick_ones_are_cut_soon(quick: float) -> None:
    """A lookahead for quick steps would take very long in slow ones."""
    first = round(1 / quick)
    job = Job(
        4,
        first + 1000,
        lambda rank, step: quick if step < first else 10.0,
        needs=_needs("ring", 4, first + 1000, 1, random.Random(1)),
        asks=[(25.0, 2, False)],
        poll=0.002,
        idle_poll=0.05,
    )
    simulation = _ran(job)
    (cut,) = simulation.ranks[0].cut_at
    assert 25.0 < cut < 150.0


def test_a_dead_rank_leaves_a_complete_epoch() -> None:
    for moment in range(5, 95, 3):
        job = Job(4, 100, lambda rank, step: 1.0, every=5, longest_drain=4.0, dies=(moment, moment % 4))
        simulation = _ran(job)
        assert simulation.complete_on_disk() or not simulation.complete


def test_ranks_that_end_early_stop_the_rounds() -> None:
    """A rank that has come to its end cannot be cut: the others find out, and ask no more."""
    job = Job(3, 50, lambda rank, step: 0.1 if rank == 2 else 1.0, asks=[(20.0 + k, 1, k == 5) for k in range(10)])
    simulation = _ran(job)
    assert not simulation.cuts
    assert all(rank.protocol.rounds <= 2 for rank in simulation.ranks)


# -- parts -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000))
def test_the_tree(size: int) -> None:
    found = {child: rank for rank in range(size) for child in p.children(rank, size)}
    assert found == {rank: p.parent(rank) for rank in range(1, size)}
    assert max(len(p.children(rank, size)) for rank in range(size)) <= math.ceil(math.log2(size)) if size > 1 else True
    depth = {0: 0}
    for rank in range(1, size):
        depth[rank] = depth[p.parent(rank)] + 1
    assert max(depth.values()) <= math.log2(size) if size > 1 else True


def test_every_needs_no_message() -> None:
    simulation = _ran(Job(8, 100, lambda rank, step: 1.0 + rank, every=10))
    assert [max(cuts.values()) for cuts in simulation.cuts.values()] == list(range(10, 100, 10))
    kinds = {kind for rank in simulation.ranks for kind in rank.sent}
    assert not {"share of answer", "answer"} & kinds
    assert simulation.ranks[0].sent["marker"] == 3, "one marker, to three children, that says that there are no more"


def test_answers_that_came_quickly_by_chance_leave_the_lookahead_as_long() -> None:
    lookahead = Lookahead(2, poll=0.002, idle_poll=0.05)
    for step in range(40):
        lookahead.seen(step, 0.01 * step)
    steps = lookahead.steps
    assert steps >= 0.052 / 0.01
    for _ in range(30):
        lookahead.answered(1e-4)
    assert lookahead.steps == steps


def test_a_rank_rests_unless_a_step_is_to_be_agreed_on() -> None:
    """Ranks that are some steps ahead of others wait long for an epoch to be decided."""
    machine = p.Protocol(1, 2, poll=0.004, idle_poll=0.1)

    def pause() -> float:
        return machine.seconds_to_next_poll(quiet=True)

    for step in range(31):
        assert (pause() == 0.0) == (step <= 16), "it polls at each step until its pace is known"
        machine.handle(p.Reached(step, float(step)))
    machine.handle(p.Resumed())
    assert (pause(), machine.seconds_to_next_poll(quiet=False)) == (0.1, 0.004)
    assert machine.handle(p.Requested()) == [p.Forward(0, False)]
    assert pause() == 0.004
    assert machine.handle(p.Marked(False, 30.0)) == [p.Propose(35)]
    assert pause() == 0.004
    machine.handle(p.Agreed(35, None, 30.5))
    assert pause() == 0.1
    assert machine.handle(p.Reached(35, 35.0)) == [p.Cut(p.Epoch(1, 35, 0))]
    assert pause() == IDLE_POLL_SECONDS
    machine.handle(p.Drained(True))
    assert pause() == IDLE_POLL_SECONDS
    machine.handle(p.Decided(True, False))
    assert pause() == 0.1


@pytest.mark.parametrize(("interval", "seconds"), [(0.375, 0.02), (10.0, 0.05), (600.0, 0.1), (math.inf, 0.1)])
def test_idle_ranks_poll_once_in_a_share_of_the_interval(interval: float, seconds: float) -> None:
    assert p.idle_poll_seconds(interval) == pytest.approx(seconds)


def test_a_poll_that_finds_nothing() -> None:
    whole, short = p.Protocol(1, 2, every=50), p.Protocol(1, 2, every=50)
    for step in range(31):
        for machine in (whole, short):
            machine.handle(p.Reached(step, float(step)))
            machine.handle(p.Resumed())
    assert whole.handle(p.Reached(40, 37.0)) == []
    whole.handle(p.Resumed())
    short.polled(40, 37.0)
    assert short.seconds_to_next_cut() == whole.seconds_to_next_cut() < 10
    assert whole.handle(p.Marked(False, 37.0)) == short.handle(p.Marked(False, 37.0))


def _rank_1_that_gave_up(every: int | None) -> p.Protocol:
    """It proposed step 34, stood there, and went on to step 35; nobody knows the answer."""
    machine = p.Protocol(1, 2, every=every)
    for step in range(31):  # enough of them for its pace to be known
        assert machine.handle(p.Reached(step, float(step))) == []
    assert machine.handle(p.Marked(False, 30.0)) == [p.Propose(34)]
    assert machine.blocked is p.Blocked.NO
    machine.handle(p.Reached(34, 34.0))
    assert machine.blocked is p.Blocked.LIMITED
    assert machine.handle(p.GaveUp()) == []
    assert machine.blocked is p.Blocked.NO
    machine.handle(p.Resumed())
    assert machine.next_step == 35
    machine.handle(p.Reached(35, 35.0))
    return machine


def test_a_missed_cut_is_told_at_once() -> None:
    machine = _rank_1_that_gave_up(None)
    assert machine.handle(p.Agreed(34, None, 35.5)) == [p.Miss(p.Epoch(1, 35, 0))]
    (post,) = machine.handle(p.Drained(False))
    assert isinstance(post, p.Post)
    assert (post.complete, post.missed) == (False, True)


def test_an_answer_that_comes_late_but_in_time() -> None:
    machine = _rank_1_that_gave_up(None)
    assert machine.handle(p.Agreed(35, None, 35.5)) == [p.Cut(p.Epoch(1, 35, 0))]


def test_a_cut_by_its_step_while_the_answer_is_unknown() -> None:
    """Its number depends on whether the cut that is being agreed on comes before it: it is missed, too."""
    machine = _rank_1_that_gave_up(36)
    machine.handle(p.Resumed())
    assert machine.handle(p.Reached(36, 36.0)) == []
    assert machine.blocked is p.Blocked.NO
    assert machine.handle(p.Agreed(34, None, 36.5)) == [p.Miss(p.Epoch(1, 36, 0))]
    first, *more = machine.handle(p.Drained(False))
    assert isinstance(first, p.Post)
    assert more == []
    assert machine.handle(p.Decided(False, True)) == [p.Miss(p.Epoch(2, 36, 0))]


def test_a_cut_by_its_step_that_is_the_one_agreed_on() -> None:
    machine = _rank_1_that_gave_up(36)
    machine.handle(p.Resumed())
    machine.handle(p.Reached(36, 36.0))
    machine.handle(p.Resumed())
    machine.handle(p.Reached(37, 37.0))
    assert machine.handle(p.Agreed(36, None, 37.5)) == [p.Miss(p.Epoch(1, 37, 0))]
    machine.handle(p.Drained(False))
    assert machine.handle(p.Decided(False, True)) == []


def test_no_cut_by_its_step_after_one_that_is_to_stop() -> None:
    machine = p.Protocol(0, 1, every=10)
    machine.hold = False
    machine.handle(p.Reached(3, 3.0))
    assert machine.handle(p.Requested(True)) == [p.Announce(True)]
    machine.handle(p.Marked(True, 3.0))
    assert p.Cut(p.Epoch(1, 3, 0)) in machine.handle(p.Agreed(3, None, 3.0))
    assert machine.next_step > 10**9


def test_a_save_waits_for_what_was_begun_before() -> None:
    """Rank 1 proposed step 34, lacks the answer there, and an epoch is in progress: both come before the save's cut."""
    machine = _rank_1_that_gave_up(33)
    assert machine.epoch is None
    machine.handle(p.Resumed())
    assert machine.handle(p.Reached(35, 36.0, save=True)) == []
    assert machine.blocked is p.Blocked.PATIENT
    assert machine.handle(p.Agreed(34, None, 36.5)) == [p.Miss(p.Epoch(1, 35, 0))]
    machine.handle(p.Drained(False))
    assert machine.handle(p.Decided(False, True)) == [p.Cut(p.Epoch(2, 35, 0)), p.Boost()]
    assert machine.blocked is p.Blocked.PATIENT
    machine.handle(p.Drained(True))
    assert machine.handle(p.Decided(True, False)) == [p.EndSave()]
    assert machine.blocked is p.Blocked.NO


def test_a_cut_that_is_due_at_a_save_is_the_same_one() -> None:
    machine = _rank_1_that_gave_up(None)
    assert machine.handle(p.Agreed(37, None, 35.5)) == []
    machine.handle(p.Resumed())
    assert machine.handle(p.Reached(37, 37.0, save=True)) == [p.Cut(p.Epoch(1, 37, 0)), p.Boost()]
    machine.handle(p.Drained(True))
    assert machine.handle(p.Decided(True, False)) == [p.EndSave()]


def test_a_save_behind_the_safe_point_of_its_step_misses_what_was_agreed_on_for_that() -> None:
    """Other ranks were cut at the head of the step. Theirs is the older epoch."""
    machine = _rank_1_that_gave_up(None)
    machine.handle(p.Resumed())
    machine.handle(p.Reached(35, 36.0, save=True))
    assert machine.handle(p.Agreed(35, None, 36.5)) == [p.Miss(p.Epoch(1, 35, 0))]


@pytest.mark.parametrize("stop", [False, True])
def test_a_request_in_a_save_of_a_rank_alone_is_for_a_later_step(stop: bool) -> None:
    machine = p.Protocol(0, 1)
    machine.handle(p.Reached(4, 4.0))
    machine.handle(p.Resumed())
    assert machine.handle(p.Reached(4, 4.0, save=True)) == [p.Cut(p.Epoch(1, 4, 0)), p.Boost()]
    machine.handle(p.Requested(stop))
    machine.handle(p.Drained(True))
    todo = machine.handle(p.Decided(True, False))
    if not stop:
        assert todo == [p.EndSave(), p.Announce(False)]
    assert p.Propose(5) in machine.handle(p.Marked(stop, 4.0))


def test_a_program_that_was_stopped_saves_no_more() -> None:
    machine = p.Protocol(0, 1)
    machine.hold = False
    machine.handle(p.Reached(3, 3.0))
    machine.handle(p.Requested(True))
    machine.handle(p.Marked(True, 3.0))
    machine.handle(p.Agreed(3, None, 3.0))
    machine.handle(p.Drained(True))
    machine.handle(p.Resumed())
    assert machine.handle(p.Reached(4, 4.0, save=True)) == []
    assert machine.handle(p.Decided(True, False)) == [p.Stop(True)]


def test_first_safe_point_is_no_cut() -> None:
    machine = p.Protocol(0, 2, every=10)
    assert machine.handle(p.Reached(20, 0.0)) == []
    assert machine.next_step == 30
    assert machine.handle(p.Reached(30, 1.0)) == [p.Cut(p.Epoch(1, 30, 0))]


@pytest.mark.parametrize("size", [16, 128, 1024])
def test_messages_grow_no_faster_than_log_n(size: int) -> None:
    """A request up the tree, a marker down, two reductions up and down: three to each child, three to the parent."""
    job = Job(size, 200, lambda rank, step: 1.0, asks=[(5.0, size - 1, False)], longest_drain=0.5)
    simulation = _ran(job)
    assert simulation.cuts
    rounds = simulation.ranks[0].protocol.rounds
    for rank in simulation.ranks:
        below, up = len(p.children(rank.rank, size)), int(rank.rank > 0)
        assert rank.sent.total() <= 3 * rounds * (below + up) + below + up
