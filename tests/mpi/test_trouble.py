"""One rank is in trouble: the others report which, and no rank waits for ever."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

pytestmark = pytest.mark.mpi(min_size=2)
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1


def test_object_that_cannot_be_pickled_at_the_start(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        ckpt.object("box", threading.Lock() if COMM.rank == LAST else 1)
        with pytest.raises(mpickpt.LayoutError, match=f"Rank {LAST}: Object 'box' cannot be pickled"):
            ckpt.step()


def test_object_that_cannot_be_pickled_later(mpi_tmp_path: Path) -> None:
    """The rank is told which object it is; on the others the epoch fails, and the next one is complete."""
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        box: list[object] = ckpt.object("box", [])
        ckpt.step()
        ckpt.step()  # epoch 1
        if COMM.rank == LAST:
            box.append(threading.Lock())
            with pytest.raises(mpickpt.LayoutError, match="Object 'box' cannot be pickled"):
                ckpt.step()
            box.clear()
        else:
            ckpt.step()
        ckpt.step()  # epoch 3
    stats = ckpt.stats()
    assert (stats.complete, stats.failed, stats.last_complete) == (2, 1, 3)
    COMM.barrier()
    assert {slot.index: slot.epoch for slot in Store(mpi_tmp_path, crc32c).slots()} == {0: 1, 1: 3}


def test_one_rank_does_not_hold_what_it_saves(mpi_tmp_path: Path) -> None:
    """It is told before its cut; on the others the epoch fails, and the one before stays."""
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        u = ckpt.array("u", 1000)
        ckpt.step()
        ckpt.step()  # epoch 1
        if COMM.rank == LAST:
            u = u + 1
            with pytest.raises(mpickpt.UsageError, match=f"Rank {LAST}: the program does not hold array 'u' any more"):
                ckpt.step()
        else:
            ckpt.step()
        ckpt.drop("u")  # and goes on with another one
        u = ckpt.array("u", 1000, fill=u)
        ckpt.step()  # epoch 3
    stats = ckpt.stats()
    assert (stats.complete, stats.failed, stats.last_complete) == (2, 1, 3)
    COMM.barrier()
    assert sorted(slot.epoch or 0 for slot in Store(mpi_tmp_path, crc32c).slots()) == [1, 3]


def test_no_rank_holds_what_it_saves(mpi_tmp_path: Path) -> None:
    """Each rank is told of its own array, unless it hears before that another has left because of this."""

    def program() -> None:
        with mpickpt.open(mpi_tmp_path, COMM, every=2) as ckpt:
            u = ckpt.array("u", 1000)
            for step in ckpt.range(9):
                u = u + step if step > 4 else u

    with pytest.raises((mpickpt.UsageError, mpickpt.EpochError)) as caught:
        program()
    own = caught.type is mpickpt.UsageError
    assert caught.match(f"Rank {COMM.rank}: the program does not hold array 'u'" if own else "left the session by an")
    assert any(COMM.allgather(own))
    COMM.barrier()
    assert mpickpt.Checkpoint(mpi_tmp_path).step == 4


def test_rank_that_leaves_by_an_exception(mpi_tmp_path: Path) -> None:
    def program() -> None:
        with mpickpt.open(mpi_tmp_path, COMM, every=2) as ckpt:
            u = ckpt.array("u", 100_000)
            for step in ckpt.range(20):
                u += step
                if step == 7 and COMM.rank == LAST:
                    raise KeyError("lost")

    if COMM.rank == LAST:
        with pytest.raises(KeyError, match="lost"):
            program()
    else:
        with pytest.raises(mpickpt.EpochError, match=f"because rank {LAST} left the session"):
            program()
    COMM.barrier()
    assert max(slot.epoch or 0 for slot in Store(mpi_tmp_path, crc32c).slots()) == 3


def test_ranks_that_take_different_steps(mpi_tmp_path: Path) -> None:
    """With every=5 a stride of 3 is cut at step 6, and one of 4 at step 8: that is no image of one instant.

    A rank that has found it out leaves, and another may hear of that first.
    """
    with (
        pytest.raises((mpickpt.UsageError, mpickpt.EpochError)) as caught,
        mpickpt.open(mpi_tmp_path, COMM, every=5) as ckpt,
    ):
        _u = ckpt.array("u", 10)
        for _ in ckpt.range(0, 30, 4 if COMM.rank == LAST else 3):
            pass
    found_out = isinstance(caught.value, mpickpt.UsageError)
    assert any(COMM.allgather(found_out))
    assert caught.match("cut for it at step .* at another step" if found_out else "left the session by an exception")
    assert not any(slot.complete for slot in Store(mpi_tmp_path, crc32c).slots())


def settle(ckpt: mpickpt.Session) -> None:
    """Wait for the last epoch inside a step, as a call of ckpt.comm would."""
    while ckpt._driver._protocol.epoch is not None:
        ckpt._driver.idle()
        time.sleep(0.001)


def test_storage_that_fails_one_rank(mpi_tmp_path: Path) -> None:
    """The rank warns, all know that the epoch failed, and the older one stays."""
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        u = ckpt.array("u", 1_000_000, fill=1.0)
        ckpt.step()
        ckpt.step()  # epoch 1
        ckpt.step()  # epoch 2, both slots exist and epoch 1 is complete
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        u += 1
        if COMM.rank == LAST:
            ckpt._checkpointer.snapshotter.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
            with pytest.warns(
                RuntimeWarning, match=rf"Epoch 3 \(step 3\) failed on rank {LAST}: .*slot-0.h5: File too large"
            ):
                ckpt.step()
                settle(ckpt)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        else:
            ckpt.step()
            settle(ckpt)
        signal.signal(signal.SIGXFSZ, handler)
        assert {slot.index: slot.epoch for slot in Store(mpi_tmp_path, crc32c).slots()} == {0: None, 1: 2}
        COMM.barrier()
        ckpt.step()
    stats = ckpt.stats()
    assert (stats.complete, stats.failed) == (3, 1)
    COMM.barrier()
    assert {slot.index: slot.epoch for slot in Store(mpi_tmp_path, crc32c).slots()} == {0: 4, 1: 2}


@pytest.mark.filterwarnings("ignore:Epoch:RuntimeWarning")
@pytest.mark.parametrize("how", ["delete", "cut off", "replace"])
@pytest.mark.parametrize("indices", [[0], [0, 1]], ids=["one", "both"])
def test_slots_that_are_lost_are_made_anew(
    mpi_tmp_path: Path, indices: list[int], how: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Somebody tidies up while the program runs: one epoch fails for each slot, and the next ones are complete."""
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        u = ckpt.array("u", 100_000)
        for step in ckpt.range(12):
            u += 1
            if step == 6:
                ckpt.wait()
                if COMM.rank == 0:
                    for index in indices:
                        path = mpi_tmp_path / f"slot-{index}.h5"
                        if how == "cut off":
                            os.truncate(path, 10)
                        else:
                            path.unlink()
                        if how == "replace":
                            os.mkfifo(path)
                COMM.barrier()
    stats = ckpt.stats()
    assert 1 <= stats.failed <= len(indices)
    told = {str(warning.message).partition(". ")[2] for warning in recwarn}
    gone = how == "delete" and len(indices) == 2
    assert ("Epoch 6 is gone with slot-1.h5, too, and the program goes on." in told) == gone, told
    COMM.barrier()
    for slot in Store(mpi_tmp_path, crc32c).slots():
        saved = mpickpt.Checkpoint(slot.path)
        assert saved.verify() == []
        assert saved.step >= 10
        assert (saved.rank(COMM.rank)["u"][...] == saved.step).all()


@pytest.mark.parametrize("rank", [0, LAST])
@pytest.mark.parametrize("what", ["block", "objects", "record"])
def test_damage_of_one_rank_sends_all_to_the_older_epoch(
    mpi_tmp_path: Path, rank: int, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def program() -> int | None:
        with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
            u = ckpt.protect("u", np.zeros(100_000))
            ckpt.object("rank", COMM.rank, on_rebind="ignore")
            if ckpt.restored:
                assert (u == ckpt.restored.step).all()
                return ckpt.restored.epoch
            for _ in ckpt.range(3):
                u += 1
            return None

    program()
    COMM.barrier()
    if COMM.rank == 0:
        place = Store(mpi_tmp_path, crc32c).offsets(1)[rank]
        with (mpi_tmp_path / "slot-1.h5").open("r+b") as file:
            file.seek({"block": place.arrays[0] + 700_000, "objects": place.objects, "record": place.record + 17}[what])
            file.write(b"\xa5")
    COMM.barrier()
    capfd.readouterr()
    assert program() == 1
    told = capfd.readouterr().err
    if COMM.rank == 0:
        named = {"block": "array 'u', block 2", "objects": "objects in slot-1.h5", "record": "record of"}[what]
        assert named in told
        assert f"rank {rank}" in told
        assert "restored epoch 1 (step 1)" in told


def test_waiting_has_a_limit(mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank whose limit is over says so; the others may hear that it left before theirs is."""
    ckpt = mpickpt.open(mpi_tmp_path, COMM, every=1)
    _u = ckpt.array("u", 1000)
    ckpt.step()
    ckpt.step()
    monkeypatch.setattr(ckpt._coordinator, "_limit", 0.3)
    waited = COMM.size == 1
    if COMM.rank == LAST:
        COMM.barrier()  # comes late
        with suppress(mpickpt.WaitTimeout, mpickpt.EpochError):  # the others do not help any more
            ckpt.close()
    else:
        told = rf"Rank {COMM.rank} waited 0.3 s for all ranks to finish epoch 1 \(cut at|left the session"
        with pytest.raises((mpickpt.WaitTimeout, mpickpt.EpochError), match=told) as caught:
            ckpt.close()
        waited = caught.type is mpickpt.WaitTimeout
        COMM.barrier()
    assert any(COMM.allgather(waited))


@contextmanager
def nothing_can_be_written(refused: bool) -> Iterator[None]:
    """Have the storage of this process refuse all beyond the first 4 KiB of a file."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if refused:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.warns(RuntimeWarning, match=f"failed on rank {LAST}") if refused else nullcontext():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("how", ["close", "save", "goes on"])
def test_the_last_epoch_fails(mpi_tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    """At the end rank 0 says why, and what is saved; nothing if a later epoch is complete."""
    ckpt = mpickpt.open(mpi_tmp_path, COMM, every=1, record=False)
    u = ckpt.array("u", 100_000)
    for _ in range(3):
        ckpt.step()
    ckpt.wait()  # epoch 2, at step 2, is complete
    u += 1
    COMM.barrier()
    with nothing_can_be_written(COMM.rank == LAST):
        if how == "save":
            outcome = ckpt.save(next_step=True)
            assert not outcome and outcome.rank == LAST and f"Rank {LAST}: File too large" in outcome.reason
        else:
            ckpt.step()
            if how == "goes on":
                ckpt.wait()
            else:
                ckpt.close()
    if how == "goes on":
        ckpt.step()
    ckpt.close()
    told = [line for line in capfd.readouterr().err.splitlines() if "the last epoch" in line]
    expected = (
        f"mpickpt: the last epoch of this session, 3 (step 3), failed, so that the last state is not saved: "
        f"{mpi_tmp_path / 'slot-0.h5'}: Rank {LAST}: File too large. "
        f"Epoch 2 (step 2) of {mpi_tmp_path} is the newest complete one, from which the next start goes on."
    )
    assert told == ([expected] if COMM.rank == 0 and how != "goes on" else [])
    COMM.barrier()


def test_no_epoch_can_be_saved(mpi_tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And the one of an older session is told of."""
    for newest in ("No epoch in", "Epoch 2 of"):
        ckpt = mpickpt.open(mpi_tmp_path, COMM, every=1, record=False)
        u = ckpt.array("u", 100_000)
        ckpt.step()
        COMM.barrier()
        with nothing_can_be_written(COMM.rank == LAST):
            ckpt.step()
            ckpt.close()
        if COMM.rank == 0:
            told = capfd.readouterr().err
            assert f"File too large. {newest} {mpi_tmp_path} is " in told
        with mpickpt.open(mpi_tmp_path, COMM, restart="never", record=False) as ckpt:
            u = ckpt.array("u", 100_000)
            assert ckpt.save()
        del u
        COMM.barrier()


def test_a_signal_that_one_rank_does_not_see_any_more(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        ckpt.step()
        before = signal.signal(signal.SIGUSR1, signal.SIG_IGN) if COMM.rank == LAST else None
        told = f"Rank {LAST}: the handler of SIGUSR1 was replaced after mpickpt.open, by the action to ignore it"
        with pytest.warns(RuntimeWarning, match=told) if COMM.rank == LAST else nullcontext():
            ckpt.step()
            ckpt.step()
        if before is not None:
            signal.signal(signal.SIGUSR1, before)
