"""What ranks say to each other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from mpi4py import MPI

from mpickpt import LayoutError, MpickptError, StoreError, UsageError
from mpickpt.coordinator import Commit, Coordinator

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


def test_maximum(ranks: Coordinator) -> None:
    assert ranks.maximum("nothing") is None
    ranks.post_maximum((float(COMM.rank), -float(COMM.rank)))
    assert ranks.maximum("all") == (COMM.size - 1, 0.0)
    assert ranks.maximum("nothing") is None


def test_commit(ranks: Coordinator) -> None:
    last = COMM.size - 1
    ranks.post_commit(True, (1, 10, 0))
    assert ranks.commit("all") == Commit(True, True, None)
    ranks.post_commit(COMM.rank != last, (2, 20, 1))
    assert ranks.commit("all") == Commit(False, True, None)
    alone = COMM.size == 1
    for cut in ((COMM.rank, 10, 0), (1, COMM.rank, 0), (1, 10, COMM.rank)):
        ranks.post_commit(True, cut)
        assert ranks.commit("all") == Commit(alone, alone, None)


def test_commits_and_meetings_do_not_wait_for_each_other(ranks: Coordinator) -> None:
    if COMM.rank % 2:
        ranks.post_commit(True, (1, 10, 0))
        ranks.post_maximum((1.0,))
    else:
        ranks.post_maximum((1.0,))
        ranks.post_commit(True, (1, 10, 0))
    assert ranks.maximum("all") == (1.0,)
    assert ranks.commit("all").whole


def test_only_intracommunicators() -> None:
    with pytest.raises(UsageError, match="must be an intracommunicator"):
        Coordinator(MPI.COMM_NULL)


def test_bad_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("MPICKPT_WAIT_LIMIT", bad)
        with pytest.raises(UsageError, match="MPICKPT_WAIT_LIMIT: .* is not a number of seconds"):
            Coordinator(COMM)
