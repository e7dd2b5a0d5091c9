"""Markers and answers by themselves: many in a row, and ranks that leave while some are on their way."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from mpi4py import MPI

from mpickpt.mpi.pending import Pending, Repeated
from mpickpt.mpi.rounds import Rounds
from mpickpt.protocol import Agreed, Ended, Event, Marked

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1


@pytest.fixture(params=[True, False], ids=["persistent", "posted again"])
def rounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Give those of this library, and those of one that has no persistent collectives."""
    if not request.param:
        made = Repeated.__init__

        def refuse(*buffers: object, **options: object) -> MPI.Prequest:
            raise NotImplementedError

        def without(self: Repeated, prepare: Callable[..., MPI.Prequest], *others: object, **options: object) -> None:
            made(self, refuse, *others, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Repeated, "__init__", without)
    rounds = Rounds(COMM, MPI.MAX)
    if MPI.Get_version() >= (4, 0):
        assert [one._prepared is not None for one in (*rounds._markers, *rounds._answers)] == [request.param] * 4
    return rounds


def event(rounds: Rounds) -> Event:
    """Wait for the next one."""
    end = time.monotonic() + 20
    while (found := rounds.next_event()) is None:
        assert time.monotonic() < end, "nothing came"
        time.sleep(1e-4)
    return found


def wait(pending: Pending) -> None:
    """Wait until it is complete."""
    while not pending.test():
        time.sleep(1e-4)


def listen(rounds: Rounds, *, stop: bool = False) -> None:
    """Send the marker on rank 0, hear of it on the others."""
    if COMM.rank == 0:
        rounds.announce(stop=stop)
    else:
        heard = event(rounds)
        assert isinstance(heard, Marked)
        assert heard.stop == stop


def agree(rounds: Rounds) -> tuple[int, int | None]:
    """Wait for the answer."""
    found = event(rounds)
    assert isinstance(found, Agreed)
    return found.step, found.departed


def end(rounds: Rounds) -> None:
    """Tell all ranks that there are no more."""
    if COMM.rank == 0:
        rounds.announce_end(None)
    else:
        assert event(rounds) == Ended(None)


def finish(rounds: Rounds) -> None:
    """Give the communicator back when all have left, whatever is on its way."""
    rounds.finish(COMM.allreduce(rounds.calls, MPI.MAX), wait)
    assert rounds._comm == MPI.COMM_NULL


def test_many_rounds(rounds: Rounds) -> None:
    """Ranks at different speeds, so that markers and answers of two rounds are on their way at once."""
    for k in range(50):
        listen(rounds, stop=k % 3 == 0)
        rounds.propose(100 * k + COMM.rank)
        assert agree(rounds) == (100 * k + LAST, None)
        time.sleep(1e-4 * ((COMM.rank + k) % COMM.size))
    end(rounds)
    requests = [one._prepared for one in (*rounds._markers, *rounds._answers)]
    rounds.close(wait)
    assert all(request is None or request == MPI.REQUEST_NULL for request in requests)


def test_one_look_is_enough_for_what_has_come(rounds: Rounds) -> None:
    """Ranks look seldom, and markers go from rank to rank: a second look for the same one would cost as much again."""
    for step in range(10):
        COMM.barrier()
        if COMM.rank == 0:
            rounds.announce(stop=False)
        time.sleep(0.03 * (1 + COMM.rank))  # those who pass it on have lower numbers
        if COMM.rank != 0:
            assert isinstance(rounds.next_event(), Marked)
        rounds.propose(step)
        assert agree(rounds) == (step, None)
    end(rounds)
    rounds.close(wait)


@pytest.mark.mpi(min_size=2)
def test_a_rank_leaves_between_its_proposal_and_the_answer(rounds: Rounds) -> None:
    """It does not wait for that answer, which comes to all others; the next one names it."""
    listen(rounds)
    if COMM.rank != 0:
        rounds.propose(COMM.rank)
    if COMM.rank == LAST:
        rounds.leave()
    COMM.barrier()
    if COMM.rank == 0:
        rounds.propose(LAST + 7)
    if COMM.rank != LAST:
        assert agree(rounds) == (LAST + 7, None)
        listen(rounds)
        rounds.propose(1000)
        assert agree(rounds)[1] == LAST
        rounds.leave()
    finish(rounds)


@pytest.mark.mpi(min_size=2)
def test_rank_0_leaves_after_its_proposal(rounds: Rounds) -> None:
    listen(rounds)
    if COMM.rank == 0:
        rounds.propose(3)
        rounds.announce_end(0)
        rounds.leave()
    COMM.barrier()
    if COMM.rank != 0:
        rounds.propose(4)
        assert agree(rounds) == (4, None)
        assert event(rounds) == Ended(0)
        rounds.leave()
    finish(rounds)


@pytest.mark.mpi(min_size=2)
def test_all_have_left_but_one_was_ahead(rounds: Rounds) -> None:
    """The others make the calls that they lack, and receive what it sent."""
    listen(rounds)
    if COMM.rank == LAST:
        rounds.propose(3)
        rounds.forward(1, stop=False)
    rounds.leave()
    assert sorted(COMM.allgather(rounds.calls)) == [1] * LAST + [4]
    finish(rounds)
