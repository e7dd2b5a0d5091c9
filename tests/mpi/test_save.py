"""ckpt.save() and ckpt.wait() on several ranks: all get the same result, and no rank waits for ever."""

from __future__ import annotations

import resource
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1


class Ended(Exception):
    """The program ends here, as by a crash."""


@pytest.mark.parametrize("options", [{"every": 3}, {"interval": 0.02}], ids=["every", "interval"])
def test_all_are_told_the_same_beside_other_cuts(mpi_tmp_path: Path, options: dict[str, float]) -> None:
    """Saves at heads and ends of steps, while epochs are in progress and rounds are under way."""
    told: list[mpickpt.Outcome | None] = []
    with mpickpt.open(mpi_tmp_path, COMM, **options) as ckpt:
        u = ckpt.array("u", 100_000)
        told.append(ckpt.save())
        for step in ckpt.range(60):
            if step % 10 == 3:
                told.append(ckpt.save())
            time.sleep(0.002 * (step % (COMM.rank + 2)))
            u += 1
            if step % 10 == 8:
                told.append(ckpt.save(next_step=True))
        told.append(ckpt.save())
    assert COMM.allgather(told) == [told] * COMM.size
    assert all(told)
    assert [one.step for one in told if one] == [0, *(n + d for n in range(0, 60, 10) for d in (3, 9)), 60]
    assert COMM.allgather(ckpt.stats().cuts) == [ckpt.stats().cuts] * COMM.size
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        assert ckpt.restored is not None
        assert told[-1] is not None
        assert ckpt.restored.epoch >= told[-1].epoch, "by time there may be one more, at the same step"
        assert ckpt.restored.step == 60
        assert (ckpt.array("u", 100_000) == 60).all()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("tracked", [False, True])
def test_a_save_before_the_cut_that_is_being_agreed_on(mpi_tmp_path: Path, tracked: bool) -> None:
    """One rank asks for cuts all the time, one is late all the time: the save's epoch has one number everywhere."""
    told = []
    with mpickpt.open(mpi_tmp_path, COMM, interval="1h") as ckpt:
        if tracked:
            assert ckpt.comm is not None
        u = ckpt.array("u", 1000)
        for step in ckpt.range(40):
            if COMM.rank == LAST:
                ckpt.request()
            if COMM.rank == step % COMM.size:
                time.sleep(0.003)
            if step % 2:
                told.append(ckpt.save())
            u += 1
    assert COMM.allgather(told) == [told] * COMM.size
    assert all(told)
    assert len(told) == 20


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("rank", sorted({0, LAST}))
def test_all_know_on_which_rank_it_failed_and_why(mpi_tmp_path: Path, rank: int) -> None:
    with mpickpt.open(mpi_tmp_path, COMM, every=1000, record=False) as ckpt:
        u = ckpt.array("u", 1_000_000)
        assert ckpt.save()
        assert ckpt.save()
        u += 1
        if COMM.rank == rank:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
            with pytest.warns(RuntimeWarning, match=f"Epoch 3 .* failed on rank {rank}"):
                failed = ckpt.save()
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)
        else:
            failed = ckpt.save()
        assert not failed
        assert (failed.epoch, failed.rank, failed.reason) == (3, rank, f"Rank {rank}: File too large")
        assert ckpt.wait() == failed
        COMM.barrier()
        saved = ckpt.save()
        assert (saved.epoch, saved.complete) == (4, True)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("tracked", [False, True])
def test_a_rank_that_does_not_call_it_is_named(
    mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracked: bool
) -> None:
    ckpt = mpickpt.open(mpi_tmp_path, COMM, every=1000)
    if tracked:
        assert ckpt.comm is not None
    _u = ckpt.array("u", 1000)
    ckpt.step()
    monkeypatch.setattr(ckpt._coordinator, "_limit", 0.5)
    if COMM.rank == LAST:
        COMM.barrier()
    else:
        told = rf"Rank {COMM.rank} waited 0.5 s for all ranks to call save\(\) at step 0 and finish epoch 1, .*"
        told += f"Not waiting, and therefore late: rank {LAST}\\." if COMM.rank < 2 else ""
        with pytest.raises(mpickpt.WaitTimeout, match=told):
            ckpt.save()
        COMM.barrier()
    with warnings.catch_warnings(action="ignore"):  # the messages in flight of the epoch are not known
        ckpt._leave()
    COMM.barrier()
    assert not any(slot.complete for slot in Store(mpi_tmp_path, crc32c).slots())


@pytest.mark.mpi(min_size=2)
def test_ranks_that_save_at_different_steps(mpi_tmp_path: Path) -> None:
    with (
        pytest.raises((mpickpt.UsageError, mpickpt.EpochError)) as caught,
        mpickpt.open(mpi_tmp_path, COMM, every=1000) as ckpt,
    ):
        _u = ckpt.array("u", 10)
        ckpt.step()
        ckpt.save(next_step=COMM.rank == LAST)
    found_out = isinstance(caught.value, mpickpt.UsageError)
    assert any(COMM.allgather(found_out))
    assert caught.match("All ranks must take the same steps" if found_out else "left the session by an exception")
    assert not any(slot.complete for slot in Store(mpi_tmp_path, crc32c).slots())


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("call", ["save", "wait"])
@pytest.mark.parametrize("size", [1, 200_000])
def test_messages_across_it_are_received_meanwhile(mpi_tmp_path: Path, call: str, size: int) -> None:
    """Rank 0 sends before it comes to the save, and rank 1 receives behind it; large messages need a receiver."""
    got: list[float] = []

    def program(end_at: int | None) -> None:
        with mpickpt.open(mpi_tmp_path, COMM, every=4) as ckpt:
            comm, pair = ckpt.comm, ckpt.comm.Split(0 if COMM.rank < 2 else 1)
            sums = ckpt.array("sums", 8)
            for step in ckpt.range(9):
                outcome = ckpt.save() if call == "save" or step == end_at else ckpt.wait()
                assert outcome is None or outcome.complete
                if step == end_at:
                    COMM.barrier()  # else a rank may hear of another one's end before it hears what it waits for
                    raise Ended
                if step and COMM.rank == 1:
                    buffer = np.empty(size)
                    for number in range(3):
                        status = MPI.Status()
                        comm.Recv(buffer, MPI.ANY_SOURCE, MPI.ANY_TAG, status)
                        assert (status.Get_source(), status.Get_tag()) == (0, 5)
                        assert (buffer == 10.0 * step + number).all()
                        sums[number] += buffer[0]
                    assert pair.recv(source=0) == {"for": step}
                if step < 8 and COMM.rank == 0:
                    for number in range(3):
                        comm.Send(np.full(size, 10.0 * (step + 1) + number), 1, 5)
                    pair.send({"for": step + 1}, 1)
            got.append(sums[:3].sum())

    for end_at in (5, None):
        try:
            program(end_at)
        except Ended:
            pass
        COMM.barrier()
    wanted = sum(3 * 10.0 * step + 3 for step in range(1, 9)) if COMM.rank == 1 else 0.0
    assert got == [wanted]


@pytest.mark.mpi(min_size=2)
def test_the_end_of_the_program_while_it_saves(mpi_tmp_path: Path) -> None:
    """All ranks get Stopped, at a save or at a safe point, and the last epoch is complete."""
    with pytest.raises(mpickpt.Stopped) as caught, mpickpt.open(mpi_tmp_path, COMM, interval="1h") as ckpt:
        u = ckpt.array("u", 1000)
        for step in ckpt.range(10_000):
            if step == 5 and COMM.rank == LAST:
                ckpt.request(stop=True)
            assert ckpt.save()
            u += 1
    COMM.barrier()
    checkpoint = mpickpt.Checkpoint(mpi_tmp_path)
    assert checkpoint.epoch == caught.value.epoch
    assert all((checkpoint.rank(rank)["u"][:] == checkpoint.step).all() for rank in range(COMM.size))


@pytest.mark.mpi(min_size=2)
def test_a_lazy_restart_saves_when_all_have_loaded(mpi_tmp_path: Path) -> None:
    for lazy in (False, True):
        with mpickpt.open(mpi_tmp_path, COMM, every=1000, lazy=lazy) as ckpt:
            u = ckpt.array("u", 500_000, fill=1.0)
            assert (ckpt.restored is not None) == lazy
            saved = ckpt.save()
            assert (saved.complete, saved.epoch) == (True, 1 + 2 * lazy)
            u += 1
            assert ckpt.save()
    COMM.barrier()
    assert (mpickpt.Checkpoint(mpi_tmp_path).rank(LAST)["u"][:] == 3).all()
