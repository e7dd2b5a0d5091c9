"""Figures from notes that were made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpickpt.protocol.policy import DOWNTIME, best_interval
from mpickpt.report.figures import costs_of_epochs, fault_rates, figures_of
from mpickpt.report.notes import COSTS, FORMAT, EndNote, EpochNote, Header, RankNotes, RunNotes, Sums, fold, total

HEADER = Header(FORMAT, 0, 2, "n0", 10**18, 10, "", 86400.0, restart_seconds=0.5)


def epoch(number: int, cut: float, **values: object) -> EpochNote:
    """Make an epoch whose drain takes a second; some of its bytes are drained by each."""
    made = EpochNote(
        epoch=number, step=10 * number, cut=cut, drained=cut + 1.0, drain=1.0, blocked=0.01, faults=20, stall=0.01,
        fault_seconds=0.02, bytes_written=1000, bytes_waiting=100, bytes_urgent=300, blocks_due=8, blocks_copied=3,
    )  # fmt: skip
    return replace(made, **values)  # type: ignore[arg-type]


def rank(number: int, *epochs: EpochNote, end: EndNote | None = None, sums: Sums | None = None) -> RankNotes:
    return RankNotes(replace(HEADER, rank=number, host=f"n{number}"), epochs, sums or Sums(), end)


def run(*ranks: RankNotes) -> RunNotes:
    return RunNotes("run", {notes.header.rank: notes for notes in ranks})


END = EndNote(closing=30.0, closed=30.5, complete=2, late_faults=6, late_fault_seconds=0.06)
USUAL = run(
    rank(0, epoch(1, 10.0), epoch(2, 20.0, late_faults=4, late_fault_seconds=0.04), end=END),
    rank(1, epoch(1, 11.0, blocked=0.1, waited=0.5, drain=4.0), epoch(2, 22.0, bytes_written=3000), end=END),
)


def test_an_epoch_of_two_ranks() -> None:
    first, second = figures_of(USUAL).epochs
    assert (first.epoch, first.step, first.ranks, first.complete, first.cut) == (1, 10, 2, True, 10.0)
    assert (first.blocked, first.faulted, first.waited) == (0.1, 0.02, 0.5), "those of the rank that lost most"
    assert first.added == pytest.approx(0.62)
    assert (first.nbytes, first.bytes_idle, first.bytes_urgent, first.bytes_waiting) == (2000, 1200, 600, 200)
    assert (first.drain, first.bandwidth) == (4.0, 500.0), "the longest drain"
    assert (first.blocks_copied, first.blocks_drained) == (6, 10)
    assert (first.faults, second.faults) == (44, 52), "with those until the next cut, or the end"
    assert second.added == pytest.approx(0.01 + 0.02 + 0.06)


def test_what_a_rank_lost() -> None:
    zero, one = figures_of(USUAL).ranks
    assert (zero.rank, zero.host, zero.seconds, zero.end) == (0, "n0", 30.5, 0.0)
    assert zero.lost == pytest.approx(0.02 + 0.04 + 0.04 + 0.06)
    assert one.lost == pytest.approx(0.11 + 0.5 + 0.04 + 0.06)
    assert one.share == pytest.approx(0.71 / 30.5)
    figures = figures_of(USUAL)
    assert figures.most_lost == one
    assert figures.mean_share == pytest.approx((zero.share + one.share) / 2)
    assert figures.ended


def test_waiting_for_the_last_drain_is_lost_and_for_other_ranks_at_the_end_is_not() -> None:
    late = epoch(2, 29.5)
    (one,) = figures_of(run(rank(0, epoch(1, 10.0), late, end=replace(END, closing=30.0, closed=99.0)))).ranks
    assert one.end == pytest.approx(0.5)
    (one,) = figures_of(run(rank(0, late, end=replace(END, closing=31.0, closed=99.0)))).ranks
    assert one.end == 0.0


def test_the_best_interval_is_that_of_the_policy() -> None:
    interval = figures_of(USUAL).interval
    assert interval is not None
    lost = (0.12 + (0.01 + 0.02 + 0.06)) / 2  # rank 1's first epoch without its wait, and the second of either
    assert interval.lost == pytest.approx(lost)
    assert (interval.drain, interval.restart, interval.mtbf, interval.measured) == (2.5, 0.5, 86400.0, 10.0)
    assert interval.best == best_interval(2.5, interval.lost, 86400.0, DOWNTIME, 0.5)
    other = figures_of(USUAL, mtbf=3600.0).interval
    assert other is not None
    assert other.best == best_interval(2.5, interval.lost, 3600.0, DOWNTIME, 0.5) < interval.best


def test_failed_and_missing_epochs() -> None:
    figures = figures_of(run(rank(0, epoch(1, 10.0), epoch(2, 20.0, errno=28, drain=99.0)), rank(1, epoch(2, 20.0))))
    first, second = figures.epochs
    assert (first.complete, first.ranks, first.errno) == (False, 1, 0)
    assert (second.complete, second.ranks, second.errno) == (False, 2, 28)
    assert not figures.ended
    assert figures.interval is not None
    assert (figures.interval.drain, figures.interval.measured) == (1.0, 10.0), "what failed tells nothing of the drain"


def test_a_run_before_its_first_epoch() -> None:
    figures = figures_of(run(rank(0)))
    assert (figures.epochs, figures.interval, figures.seconds, figures.most_lost.share) == ((), None, 0.0, 0.0)


def test_a_rank_that_left_alone_or_is_not_there_has_not_ended() -> None:
    alone = rank(1, end=replace(END, by_itself=True))
    assert not figures_of(run(rank(0, end=END), alone)).ended
    assert not figures_of(run(rank(0, end=END))).ended
    assert figures_of(run(rank(0, end=END), rank(1, end=END))).ended


def test_epochs_that_a_rank_has_as_sums_are_not_among_the_others() -> None:
    epochs = [epoch(number, 10.0 * number) for number in range(1, 6)]
    figures = figures_of(
        run(rank(0, *epochs[2:], sums=fold(Sums(), epochs[:2])), rank(1, *epochs[1:], sums=fold(Sums(), epochs[:1])))
    )
    assert [one.epoch for one in figures.epochs] == [3, 4, 5]
    assert figures.summed == 2
    assert [one.costs.bytes_written for one in figures.ranks] == [5000, 5000]


def test_fault_rates() -> None:
    notes = rank(0, epoch(1, 10.0, late_faults=30), epoch(2, 15.0, late_faults=8), end=END)
    expected = [(0.0, 10.0, 3.0), (10.0, 11.0, 20.0), (11.0, 15.0, 2.0), (15.0, 16.0, 20.0), (16.0, 30.5, 6 / 14.5)]
    assert fault_rates(notes) == expected
    assert fault_rates(rank(0, epoch(3, 5.0, drained=5.0), sums=Sums(until=5.0))) == [], "no time, no rate"


FIGURES = st.integers(0, 10**6)


@st.composite
def ranks(draw: st.DrawFn) -> RankNotes:
    """Give a rank with epochs one after another, some of them in its sums."""
    at, epochs = 0.0, []
    for number in range(draw(st.integers(0, 6))):
        cut = at + draw(FIGURES) / 1000
        at = cut + draw(FIGURES) / 1000
        drained, waiting, copied = draw(FIGURES), draw(FIGURES), draw(FIGURES)
        costs = {name: draw(FIGURES) / 1e6 for name in ("blocked", "waited", "fault_seconds", "late_fault_seconds")}
        epochs.append(
            epoch(
                number + 1,
                cut,
                drained=at,
                drain=at - cut,
                bytes_written=drained + waiting,
                bytes_waiting=waiting,
                bytes_urgent=drained,
                faults=draw(FIGURES),
                late_faults=draw(FIGURES),
                blocks_copied=copied,
                blocks_due=copied + draw(FIGURES),
                errno=draw(st.sampled_from([0, 0, 0, 5])),
                **costs,
            )  # fmt: skip
        )
    folded = draw(st.integers(0, len(epochs)))
    end = draw(st.none() | st.just(replace(END, closing=at, closed=at + 1.0)))
    return rank(0, *epochs[folded:], sums=fold(Sums(), epochs[:folded]), end=end)


@given(st.lists(ranks(), min_size=1, max_size=4))
def test_figures_add_up(found: list[RankNotes]) -> None:
    made = run(*(replace(notes, header=replace(notes.header, rank=number)) for number, notes in enumerate(found)))
    figures = figures_of(made)
    for one, notes in zip(figures.ranks, found, strict=True):
        everything = total([notes.sums, *notes.epochs, *([notes.end] if notes.end else [])])
        for name in COSTS:
            assert getattr(one.costs, name) == pytest.approx(getattr(everything, name))
        assert 0.0 <= one.share <= 1.0
        assert one.costs.bytes_idle == 0
        late = sum(costs.late_faults for _, costs in costs_of_epochs(notes))
        first = notes.epochs[0].late_faults if notes.epochs else notes.end.late_faults if notes.end else 0
        told = sum(note.late_faults for note in notes.epochs) + (notes.end.late_faults if notes.end else 0)
        assert late == told - first, "each fault is counted for one epoch"
        spans = fault_rates(notes)
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
        noted = sum(note.faults for note in notes.epochs if note.drained > note.cut)
        assert sum((stop - start) * rate for start, stop, rate in spans) >= noted - 1e-3
    for one_epoch in figures.epochs:
        parts = one_epoch.bytes_idle + one_epoch.bytes_urgent + one_epoch.bytes_waiting
        assert parts == one_epoch.nbytes
        assert one_epoch.epoch > max(notes.sums.last for notes in found)
    assert (figures.interval is None) == (not any(e.errno == 0 for notes in found for e in notes.epochs))
