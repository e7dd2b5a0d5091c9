"""Sessions that are left by exceptions: the next one frees what they left behind, and no rank hangs."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.mpi import leftovers
from mpickpt.session.session import Session

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1
EVERYBODY = frozenset(range(COMM.size))


class Lost(Exception):
    """What goes wrong in the program."""


@pytest.fixture(autouse=True)
def _wait_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long for what works, and short for a rank that waits for what never comes."""
    monkeypatch.setenv("MPICKPT_WAIT_LIMIT", "20")


def begin(directory: Path, comm: MPI.Intracomm = COMM) -> Session:
    return mpickpt.open(directory, comm, every=2, record=False, restart="never")


def communicators(ckpt: Session) -> dict[str, MPI.Comm]:
    """Give all of a session."""
    coordinator, traffic = ckpt._coordinator, ckpt._traffic
    assert coordinator._rounds is not None
    return {
        "meetings": coordinator._meetings,
        "commits": coordinator.commits._comm,
        "rounds": coordinator._rounds._comm,
        "first exchange": traffic._exchanges[0],
        "second exchange": traffic._exchanges[1],
        "tracked": traffic.comm,
        "loopback": traffic.loopback._comm,
    }


def kept(ckpt: Session) -> set[str]:
    """Name those that were not given back, here or on another rank."""
    here = {name for name, comm in communicators(ckpt).items() if comm != MPI.COMM_NULL}
    return set().union(*COMM.allgather(here))


def run(ckpt: Session, who: frozenset[int], step_of_end: int) -> None:
    """Have some ranks raise an exception at a step, and the others leave because of that."""
    with suppress(Lost, mpickpt.EpochError), ckpt:
        u = ckpt.array("u", 100, fill=0.0)
        for step in ckpt.range(5):
            u += 1
            if step == step_of_end and COMM.rank == LAST:
                ckpt.request()  # and a round is on its way
            if step == step_of_end and COMM.rank in who:
                raise Lost


def test_communicators_are_given_back(mpi_tmp_path: Path) -> None:
    """The ranks leave at different points, before the first safe point and behind the last, too."""
    run(begin(mpi_tmp_path), frozenset(), -1)  # makes the slots
    old: list[Session] = []
    for step_of_end, who in product(range(4), ({0}, {LAST}, EVERYBODY)):
        ckpt = begin(mpi_tmp_path)
        for one in old:
            assert kept(one) == set()
        run(ckpt, frozenset(who), step_of_end)
        old = [ckpt]
        assert kept(ckpt) == set(communicators(ckpt)), "nobody waits for the others while leaving"
        assert len(leftovers._left) == 1
    for late in (False, True):
        old.append(begin(mpi_tmp_path))
        with suppress(Lost, mpickpt.EpochError), old[-1] as ckpt:
            if late:
                for _ in ckpt.range(5):
                    pass
            if not late or COMM.rank == LAST:
                raise Lost
    with begin(mpi_tmp_path):
        assert [kept(one) for one in old] == [set()] * 3
        assert leftovers._left == {}


@pytest.mark.mpi(min_size=3)
def test_parts_of_the_ranks_wait_for_an_open_of_all(mpi_tmp_path: Path) -> None:
    """A session of all ranks gives back those of some of them, and not the other way round."""
    run(begin(mpi_tmp_path / "all"), frozenset(), -1)
    part = COMM.Split(COMM.rank % 2, COMM.rank)
    directory = mpi_tmp_path / f"part-{COMM.rank % 2}"
    run(begin(mpi_tmp_path / "all"), frozenset({0}), 3)
    for left in range(COMM.rank % 2 + 1):  # the parts have sessions of different numbers
        with suppress(Lost), begin(directory, part):
            assert len(leftovers._left) == 1, left
            raise Lost
    assert len(leftovers._left) == 2
    COMM.barrier()
    with begin(mpi_tmp_path / "all"):
        assert leftovers._left == {}
    run(begin(mpi_tmp_path / "all"), frozenset({0}), 3)
    with begin(mpi_tmp_path / "all"):
        assert leftovers._left == {}
    part.Free()


@pytest.mark.parametrize("what", ["nothing", "message", "receive", "collective"])
def test_comm_stays_if_something_is_left_on_it(mpi_tmp_path: Path, what: str) -> None:
    """What nobody received might come to another communicator, which gets its number in MPI."""
    ckpt = begin(mpi_tmp_path)
    with suppress(Lost, mpickpt.EpochError), ckpt:
        comm = ckpt.comm
        comm.allreduce(1)
        comm.sendrecv(1, (COMM.rank + 1) % COMM.size, source=(COMM.rank - 1) % COMM.size)
        ckpt.step()
        if what == "message" and COMM.rank == 0:
            comm.isend(1, LAST)
        elif what == "receive" and COMM.rank == LAST:
            comm.Irecv(np.empty(1), 0)
        COMM.barrier()
        if what == "collective" and COMM.rank != LAST:
            comm.allreduce(1)
        raise Lost
    with begin(mpi_tmp_path):
        stays = what in ("message", "receive") or (what == "collective" and COMM.size > 1)
        assert kept(ckpt) == ({"tracked"} if stays else set())


@pytest.mark.mpi(min_size=2)
@pytest.mark.filterwarnings("ignore:Epoch .* the session ended before all messages:RuntimeWarning")
def test_a_rank_leaves_before_a_cut_of_the_others(mpi_tmp_path: Path) -> None:
    """They have begun to exchange the counts of messages then, and it has not."""
    for last in (5, 1):
        ckpt = begin(mpi_tmp_path)
        with suppress(Lost), ckpt:
            assert ckpt.comm
            u = ckpt.array("u", 100, fill=0.0)
            for step in ckpt.range(5):  # the first time to the end, which makes the slots
                u += 1
                if step == (last if COMM.rank == LAST else last + 1):
                    COMM.barrier()
                    raise Lost
    assert sorted(COMM.allgather(ckpt._traffic.account()[0])) == [0] + [1] * LAST
    with begin(mpi_tmp_path):
        assert kept(ckpt) == set()


def test_an_open_that_is_refused(mpi_tmp_path: Path) -> None:
    """It has made communicators by then."""
    with begin(mpi_tmp_path / "a"):
        for _ in range(2):
            with pytest.raises(mpickpt.UsageError, match="another session open"):
                begin(mpi_tmp_path / "b")
    refused = list(leftovers._left.values())
    with begin(mpi_tmp_path / "a"):
        assert leftovers._left == {}
    assert [(one._meetings, one.commits._comm) for one in refused] == [(MPI.COMM_NULL,) * 2]  # type: ignore[attr-defined]


@pytest.mark.mpi(min_size=2)
def test_a_meeting_that_some_waited_for_in_vain(mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its communicator alone stays with MPI: there may be messages of that meeting which nobody receives."""
    with monkeypatch.context() as patch:
        patch.setenv("MPICKPT_WAIT_LIMIT", "0.3")
        ckpt = begin(mpi_tmp_path)
    with suppress(Lost, mpickpt.WaitTimeout), ckpt:
        if COMM.rank == LAST:
            raise Lost
        ckpt.step()
    with begin(mpi_tmp_path):
        assert kept(ckpt) == {"meetings"}
        assert leftovers._left == {}


def test_memory_of_the_session_is_freed_at_once(mpi_tmp_path: Path) -> None:
    """What is left behind holds neither the session nor its arrays, and goes itself with the next session."""
    ckpt = begin(mpi_tmp_path)
    u = ckpt.array("u", 1000)
    memory = u.base
    assert memory is not None
    found = [weakref.ref(one) for one in (ckpt, memory)]
    left = weakref.ref(ckpt._coordinator)
    with suppress(Lost, mpickpt.EpochError), ckpt:
        ckpt.step()
        raise Lost
    del ckpt, u, memory
    gc.collect()
    assert [one() for one in found] == [None, None]
    assert left() in leftovers._left.values()
    with begin(mpi_tmp_path):
        gc.collect()
        assert left() is None
