"""Communication between the ranks of a session."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from mpi4py import MPI

from mpickpt import LayoutError, MpickptError, StoreError, UsageError, WaitTimeout
from mpickpt.mpi import Commit, Coordinator, Share
from mpickpt.protocol import Epoch

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD


@pytest.fixture
def ranks() -> Iterator[Coordinator]:
    coordinator = Coordinator(COMM)
    yield coordinator
    coordinator.close()


def test_gather(ranks: Coordinator) -> None:
    for size in (0, 1, 100_000):
        found = ranks.gather((COMM.rank, b"x" * size * COMM.rank), "all")
        assert found == ([(r, b"x" * size * r) for r in range(COMM.size)] if COMM.rank == 0 else None)


def test_broadcast(ranks: Coordinator) -> None:
    for value in (None, [1, 2], np.arange(100_000), "ü"):
        found = ranks.broadcast(value if COMM.rank == 0 else "mine", "rank 0")
        assert type(found) is type(value)
        assert np.array_equal(found, value)


def test_scatter(ranks: Coordinator) -> None:
    for size in (0, 1, 100_000):
        values = [(r, b"y" * size * r) for r in range(COMM.size)] if COMM.rank == 0 else None
        assert ranks.scatter(values, "rank 0") == (COMM.rank, b"y" * size * COMM.rank)


def test_values_of_very_uneven_size(ranks: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms of the largest value's size for all would be too much."""
    monkeypatch.setattr("mpickpt.mpi.coordinator._EVEN_BYTES", 1000)
    values = [b"z" * 5000 * r for r in range(COMM.size)]
    assert ranks.gather(values[COMM.rank], "all") == (values if COMM.rank == 0 else None)
    assert ranks.scatter(values if COMM.rank == 0 else None, "rank 0") == values[COMM.rank]


def test_on_root(ranks: Coordinator) -> None:
    assert ranks.on_root(lambda: COMM.rank, "rank 0") == 0

    def fail() -> int:
        assert COMM.rank == 0
        raise StoreError("it is full", errno=28, path="/here")

    with pytest.raises(StoreError, match="it is full") as caught:
        ranks.on_root(fail, "rank 0")
    assert caught.value.errno == 28
    assert caught.value.everywhere
    with pytest.raises(StoreError, match="it is full"):
        ranks.scatter_from_root(lambda: [fail()], "rank 0")
    assert ranks.scatter_from_root(lambda: list(range(COMM.size)), "rank 0") == COMM.rank


def test_an_unforeseen_error_of_rank_0_reaches_all(ranks: Coordinator) -> None:
    with pytest.raises(MpickptError, match="Rank 0 failed: ZeroDivisionError"):
        ranks.on_root(lambda: 1 // 0, "rank 0")


def test_agree(ranks: Coordinator) -> None:
    ranks.agree(None, "all")
    last = COMM.size - 1
    with pytest.raises(LayoutError, match=f"^Rank {last}: too long$"):
        ranks.agree(LayoutError("too long") if COMM.rank == last else None, "all")


def _commit(ranks: Coordinator, share: Share) -> Commit:
    ranks.commits.post(share)
    found = ranks.wait(ranks.commits.next, "all")
    assert found is not None
    return found


def test_commit(ranks: Coordinator) -> None:
    last, alone = COMM.size - 1, COMM.size == 1
    assert ranks.commits.next() is None
    found = _commit(ranks, Share(Epoch(1, 10, 0), True, drain_seconds=1.0 + COMM.rank, lost_seconds=0.25))
    assert found == Commit(True, True, False, False, None, 1.0 + last, 0.25)
    assert ranks.commits.next() is None
    second = Epoch(2, 20, 1)
    found = _commit(ranks, Share(second, COMM.rank != last))
    assert found == Commit(False, True, False, False, None, 0.0, 0.0, last)
    hung = Share(second, False, hung=COMM.rank == last)
    assert _commit(ranks, hung) == Commit(False, True, False, True, None, 0.0, 0.0, 0)
    for cut in ((COMM.rank, 10, 0), (1, COMM.rank, 0), (1, 10, COMM.rank)):
        assert _commit(ranks, Share(Epoch(*cut), True)) == Commit(alone, alone, False, False, None, 0.0, 0.0)


def test_a_rank_that_missed_the_cut_says_nothing_of_it(ranks: Coordinator) -> None:
    last = COMM.rank == COMM.size - 1
    share = Share(Epoch(3, 31, 1), False, missed=True) if last else Share(Epoch(3, 30, 1), True)
    assert _commit(ranks, share) == Commit(False, True, True, False, None, 0.0, 0.0, COMM.size - 1)


def test_commits_and_meetings_do_not_wait_for_each_other(ranks: Coordinator) -> None:
    if COMM.rank % 2:
        ranks.commits.post(Share(Epoch(1, 10, 0), True))
        assert ranks.broadcast(COMM.rank, "rank 0") == 0
    else:
        assert ranks.broadcast(COMM.rank, "rank 0") == 0
        ranks.commits.post(Share(Epoch(1, 10, 0), True))
    found = ranks.wait(ranks.commits.next, "all")
    assert found is not None
    assert found.complete


@pytest.mark.mpi(min_size=2)
def test_a_time_out_names_those_who_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPICKPT_WAIT_LIMIT", "3")
    ranks = Coordinator(COMM)
    late = COMM.size - 1
    if COMM.rank == late:
        time.sleep(6)
    else:
        named = f"Not waiting, and therefore late: rank {late}." if COMM.rank in (0, 1) else ""
        with pytest.raises(WaitTimeout, match=f"waited 3 s for the others, .*{named}"):
            ranks.wait(lambda: None, "the others")
    COMM.barrier()


def test_only_intracommunicators() -> None:
    with pytest.raises(UsageError, match="must be an intracommunicator"):
        Coordinator(MPI.COMM_NULL)


def test_bad_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("MPICKPT_WAIT_LIMIT", bad)
        with pytest.raises(UsageError, match="MPICKPT_WAIT_LIMIT: .* is not a number of seconds"):
            Coordinator(COMM)
