"""Slots that are created beside the program: all ranks are cut before there is one, and hear what becomes of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.session import creation, slots

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1
CELLS = 100_000
WAIT_SECONDS = 60.0


@pytest.fixture
def creators(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The processes that create slots, on rank 0; each is stopped before it does anything."""
    found: list[int] = []
    start = creation._start

    def start_stopped(*args: object) -> subprocess.Popen[bytes]:
        process = start(*args)  # type: ignore[arg-type]
        os.kill(process.pid, signal.SIGSTOP)
        found.append(process.pid)
        return process

    monkeypatch.setattr(creation, "_start", start_stopped)
    monkeypatch.setattr(slots, "MANY_ARRAYS", 0)
    yield found
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            pytest.fail("a process that creates slots is left")
    COMM.barrier()


def declare(ckpt: mpickpt.Session) -> np.ndarray:
    part = mpickpt.Part((COMM.size, CELLS), (COMM.rank, 0))
    return ckpt.array("u", (1, CELLS), part=part, fill=float(COMM.rank))


def tell(creators: list[int], number: int) -> None:
    if creators:
        os.kill(creators[-1], number)


def go_on_until(ckpt: mpickpt.Session, done: Callable[[], bool]) -> None:
    """All ranks take the same number of steps."""
    end = time.monotonic() + WAIT_SECONDS
    while not COMM.allreduce(done(), MPI.LAND):
        assert time.monotonic() < end
        ckpt.step()
        time.sleep(0.001)


def check_values(directory: Path, epoch: int, added: float) -> None:
    COMM.barrier()
    checkpoint = mpickpt.Checkpoint(directory)
    assert (checkpoint.epoch, checkpoint.verify()) == (epoch, [])
    assert (checkpoint["u"][:, 0] == np.arange(COMM.size) + added).all()
    COMM.barrier()


def test_a_cut_does_not_wait_for_its_slot(mpi_tmp_path: Path, creators: list[int]) -> None:
    with mpickpt.open(mpi_tmp_path, COMM, record=False) as ckpt:
        u = declare(ckpt)
        ckpt.step()
        ckpt.request()
        go_on_until(ckpt, lambda: ckpt.stats().cuts == 1)
        u += 1
        assert COMM.allreduce(ckpt.stats().complete) == 0
        tell(creators, signal.SIGCONT)
        go_on_until(ckpt, lambda: ckpt.stats().complete == 1)
        check_values(mpi_tmp_path, 1, 0)
        for _ in range(3):
            assert ckpt.save()
    check_values(mpi_tmp_path, 4, 1)


def test_it_is_saved_at_the_end(mpi_tmp_path: Path, creators: list[int]) -> None:
    """The news comes while the ranks close the session; the last one is late."""
    with mpickpt.open(mpi_tmp_path, COMM, every=3, record=False) as ckpt:
        u = declare(ckpt)
        for _ in ckpt.range(5):
            u += 1
        if COMM.rank == LAST:
            time.sleep(0.2)
        tell(creators, signal.SIGCONT)
    check_values(mpi_tmp_path, 1, 3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_slot_is_created(mpi_tmp_path: Path, creators: list[int]) -> None:
    """The epoch fails on all ranks, and all of them meet for the next one, for which all wait."""
    with mpickpt.open(mpi_tmp_path, COMM, record=False) as ckpt:
        u = declare(ckpt)
        ckpt.step()
        ckpt.request()
        go_on_until(ckpt, lambda: ckpt.stats().cuts == 1)
        u += 1
        tell(creators, signal.SIGKILL)
        go_on_until(ckpt, lambda: ckpt.stats().failed == 1)
        assert ckpt.save()
        failed = ckpt.save()  # into the other slot
        assert not failed
        assert "it could not be created, and rank 0 says why" in failed.reason
        assert ckpt.save()
    check_values(mpi_tmp_path, 4, 1)


def test_arrays_that_come_meanwhile(mpi_tmp_path: Path, creators: list[int]) -> None:
    """What rank 0 says of the slots that do not fit any more is not taken for the new ones."""
    with mpickpt.open(mpi_tmp_path, COMM, record=False) as ckpt:
        u = declare(ckpt)
        ckpt.step()
        more = ckpt.array("more", 100, fill=7.0)
        ckpt.request()
        go_on_until(ckpt, lambda: ckpt.stats().cuts == 1)
        u += 1
        go_on_until(ckpt, lambda: ckpt._coordinator.news.expected <= 2)
        tell(creators, signal.SIGCONT)
        go_on_until(ckpt, lambda: ckpt.stats().complete + ckpt.stats().failed == 1)
        assert ckpt.stats().complete == 1
        assert (more == 7).all()
    check_values(mpi_tmp_path, 1, 0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_rank_has_no_room(mpi_tmp_path: Path, creators: list[int]) -> None:
    """Its pool is full before there is a slot: the epoch fails on all, and the slot is used for the next one."""
    with mpickpt.open(mpi_tmp_path, COMM, pool="256KiB", record=False) as ckpt:
        u = declare(ckpt)
        ckpt.step()
        ckpt.request()
        go_on_until(ckpt, lambda: ckpt.stats().cuts == 1)
        if COMM.rank == LAST:
            u += 1
        go_on_until(ckpt, lambda: COMM.allreduce(ckpt._driver._protocol.posted) == 1)
        tell(creators, signal.SIGCONT)
        go_on_until(ckpt, lambda: ckpt.stats().failed == 1)
        if COMM.rank != LAST:
            u += 1
        for _ in range(3):
            assert ckpt.save()
    check_values(mpi_tmp_path, 4, 1)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("who", [0, LAST])
def test_a_rank_leaves(mpi_tmp_path: Path, creators: list[int], who: int) -> None:
    """Nobody waits for the slot any more; the next session of the same ranks is as any other."""
    with warnings.catch_warnings(), suppress(ZeroDivisionError, mpickpt.EpochError):
        warnings.simplefilter("ignore", RuntimeWarning)
        with mpickpt.open(mpi_tmp_path, COMM, record=False) as ckpt:
            u = declare(ckpt)
            ckpt.step()
            ckpt.request()
            go_on_until(ckpt, lambda: ckpt.stats().cuts == 1)
            u += 1
            if COMM.rank == who:
                _ = 1 / 0
            ckpt.save()
            pytest.fail("the others are not told")
    with mpickpt.open(mpi_tmp_path, COMM, record=False) as ckpt:
        u = declare(ckpt)
        ckpt.step()
        tell(creators, signal.SIGCONT)
        assert ckpt.save()
    check_values(mpi_tmp_path, 1, 0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_many_sessions(mpi_tmp_path: Path, creators: list[int]) -> None:
    """The creator goes on, or is killed, at an instant that has nothing to do with what the ranks do."""
    rng, own = random.Random(COMM.size), random.Random(COMM.rank)
    complete = 0
    for number in range(5):
        directory = mpi_tmp_path / str(number)
        pause, kills = rng.uniform(0, 0.6), rng.random() < 0.3
        with mpickpt.open(directory, COMM, every=4, record=False) as ckpt:
            u = declare(ckpt)
            later = None
            for step in ckpt.range(rng.randrange(1, 40)):
                if step == 0 and creators:
                    act = f"sleep {pause}; kill -{'KILL' if kills else 'CONT'} {creators[-1]} 2>/dev/null"
                    later = subprocess.Popen(["/bin/sh", "-c", act])
                time.sleep(own.uniform(0, 0.01))
                u += 1
        if later is not None:
            later.wait()
        stats = ckpt.stats()
        assert COMM.allgather((stats.complete, stats.failed)) == [(stats.complete, stats.failed)] * COMM.size
        complete += stats.complete
        if stats.complete:
            checkpoint = mpickpt.Checkpoint(directory)
            assert checkpoint.verify() == []
            assert (checkpoint["u"][:, 0] == np.arange(COMM.size) + checkpoint.step).all()
        COMM.barrier()
    assert complete
