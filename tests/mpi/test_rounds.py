"""Cuts that no rank can foresee: requested by one rank, by all, by a signal, during a drain."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.protocol import PATIENCE
from mpickpt.session.driver import Driver
from mpickpt.session.triggers import leave_file

pytestmark = pytest.mark.mpi
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1
QUICKER = 1 if COMM.size > 1 else 8  # a rank that is alone agrees within a step, and needs so many times fewer of them


def run(directory: Path, stop: int, request: object, pause: float = 0.002, **options: object) -> mpickpt.Session:
    """Take steps, with `request` called in each; all ranks compute the same, and meet in each step."""
    with mpickpt.open(directory, COMM, **options) as ckpt:
        u = ckpt.array("u", 100_000)
        for step in ckpt.range(stop):
            request(ckpt, step)  # type: ignore[operator]
            u += 1
            time.sleep(pause)
            COMM.allreduce(step)
    return ckpt


def check_restart(directory: Path, ckpt: mpickpt.Session) -> None:
    """What is restored is what all ranks had at the step of the cut."""
    COMM.barrier()
    with mpickpt.open(directory, COMM) as again:
        assert again.restored is not None
        assert again.restored.epoch == ckpt.stats().last_complete
        assert COMM.allgather(again.restored.step) == [again.restored.step] * COMM.size
        assert (again.array("u", 100_000) == again.restored.step).all()


@pytest.mark.parametrize("who", [0, LAST])
def test_request_on_one_rank(mpi_tmp_path: Path, who: int) -> None:
    def request(ckpt: mpickpt.Session, step: int) -> None:
        if step == 20 and COMM.rank == who:
            ckpt.request()

    ckpt = run(mpi_tmp_path, 400 // QUICKER, request)
    stats = ckpt.stats()
    assert (stats.cuts, stats.complete, stats.rounds) == (1, 1, 1)
    check_restart(mpi_tmp_path, ckpt)


def test_a_signal_to_all_ranks_makes_one_epoch(mpi_tmp_path: Path) -> None:
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))

    def request(ckpt: mpickpt.Session, step: int) -> None:
        if step in (20, 250):
            os.kill(os.getpid(), signal.SIGUSR1)

    ckpt = run(mpi_tmp_path, 500, request)
    assert signal.signal(signal.SIGUSR1, before) is not before, "the handler that was there before is back"
    assert len(seen) == 2, "and was called all the time"
    assert ckpt.stats().complete == 2
    check_restart(mpi_tmp_path, ckpt)


def test_requests_beside_every(mpi_tmp_path: Path) -> None:
    def request(ckpt: mpickpt.Session, step: int) -> None:
        if step in (121 // QUICKER, 521 // QUICKER, 921 // QUICKER) and COMM.rank == step // 100 % COMM.size:
            ckpt.request()

    ckpt = run(mpi_tmp_path, 1600 // QUICKER, request, every=400 // QUICKER)
    assert (ckpt.stats().complete, ckpt.stats().rounds) == (6, 3)
    check_restart(mpi_tmp_path, ckpt)


def test_requests_hold_up_nobody(mpi_tmp_path: Path) -> None:
    """Ranks that meet in each step are not kept waiting for an answer until somebody's patience ends."""

    def request(ckpt: mpickpt.Session, step: int) -> None:
        if step % (97 // QUICKER) == 50 // QUICKER and COMM.rank == step % COMM.size:
            ckpt.request()

    ckpt = run(mpi_tmp_path, 4000 // QUICKER, request, pause=0.001)
    stats = ckpt.stats()
    assert stats.complete >= 5
    assert stats.waited_seconds < PATIENCE
    check_restart(mpi_tmp_path, ckpt)


def test_the_command(mpi_tmp_path: Path) -> None:
    def request(ckpt: mpickpt.Session, step: int) -> None:
        if step == 10 and COMM.rank == LAST:
            leave_file(mpi_tmp_path, stop=False)

    ckpt = run(mpi_tmp_path, 600, request)
    assert ckpt.stats().complete == 1
    assert not (mpi_tmp_path / "trigger").exists()


@pytest.mark.parametrize("who", [0, LAST])
def test_stop(mpi_tmp_path: Path, who: int) -> None:
    def request(ckpt: mpickpt.Session, step: int) -> None:
        if step == 30 and COMM.rank == who:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(mpickpt.Stopped) as caught:
        run(mpi_tmp_path, 100_000, request)
    assert caught.value.code == 75
    assert caught.value.epoch == 1
    assert COMM.allgather(caught.value.epoch) == [1] * COMM.size
    with mpickpt.open(mpi_tmp_path, COMM) as again:
        assert again.restored is not None
        assert (again.array("u", 100_000) == again.restored.step).all()


def test_a_request_while_the_last_epoch_drains(mpi_tmp_path: Path) -> None:
    """It is fulfilled when that epoch is decided."""

    def request(ckpt: mpickpt.Session, step: int) -> None:
        if step in (30, 32) and COMM.rank == 0:
            ckpt.request()

    ckpt = run(mpi_tmp_path, 600, request, pool=1)
    assert 1 <= ckpt.stats().complete <= 2
    check_restart(mpi_tmp_path, ckpt)


def test_what_is_agreed_on_while_a_rank_waits_counts_at_its_next_safe_point(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        u = ckpt.array("u", 1000)
        comm = ckpt.comm
        for step in ckpt.range(400 // QUICKER):
            if COMM.rank == 0 and step == 60 // QUICKER:
                ckpt.request()
            u += 1
            if COMM.rank == 0:
                time.sleep(0.003)
                for other in range(1, COMM.size):
                    comm.send(step, other)
            else:
                assert comm.recv(source=0) == step
    stats = ckpt.stats()
    assert (stats.cuts, stats.complete, stats.failed) == (1, 1, 0)


@pytest.mark.mpi(min_size=2)
def test_a_request_that_comes_while_rank_0_waits(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        u = ckpt.array("u", 1000)
        comm = ckpt.comm
        for step in ckpt.range(400):
            u += 1
            if COMM.rank == 1:
                time.sleep(0.003)
                for other in (0, *range(2, COMM.size)):
                    comm.send(step, other)
                continue
            if COMM.rank == 0 and step == 60:
                threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            assert comm.recv(source=1) == step
    stats = ckpt.stats()
    assert (stats.cuts, stats.complete, stats.failed) == (1, 1, 0)


def test_ranks_are_idle_before_anything_has_happened(mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polls = []
    fast_path = Driver.fast_path

    def poll(driver: Driver, step: int) -> bool:
        polls.append(time.perf_counter())
        return fast_path(driver, step)

    monkeypatch.setattr(Driver, "fast_path", poll)
    run(mpi_tmp_path, 600, lambda ckpt, step: None)
    decided = polls[0] + 0.3  # after so long the pace is known
    later = [poll for poll in polls if poll >= decided]
    assert len(later) <= 5 + (polls[-1] - decided) / 0.05, "twice as many as at most, and some at the end"


@pytest.mark.mpi(min_size=2)
def test_a_rank_fifty_times_slower(mpi_tmp_path: Path) -> None:
    with mpickpt.open(mpi_tmp_path, COMM, interval=0.4) as ckpt:
        u = ckpt.array("u", 100_000)
        for step in ckpt.range(60):
            u += 1
            time.sleep(0.05 if COMM.rank == LAST else 0.001)
            COMM.allreduce(step)
    stats = ckpt.stats()
    assert stats.complete >= 3
    assert COMM.allgather(stats.complete) == [stats.complete] * COMM.size
    check_restart(mpi_tmp_path, ckpt)


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_runs_ahead(mpi_tmp_path: Path) -> None:
    """Ranks that never meet, and so drift apart."""
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        u = ckpt.array("u", 1000)
        for step in ckpt.range(300):
            if step == 5 and COMM.rank == 0:
                ckpt.request()
            u += 1
            time.sleep(0.02 if COMM.rank == LAST else 0.004)
    stats = ckpt.stats()
    assert COMM.allgather(stats.complete) == [stats.complete] * COMM.size
    assert stats.complete >= 1


def test_interval_auto(mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpickpt.protocol.policy.FIRST_INTERVAL", 0.2)
    ckpt = run(mpi_tmp_path, 400, lambda ckpt, step: None, interval="auto", mtbf=120)
    assert ckpt.stats().complete >= 1
    if COMM.rank == 0:
        assert ckpt._driver._clock.interval != 0.2, "after the first epoch it is computed"
    check_restart(mpi_tmp_path, ckpt)


def test_ranks_that_end_early(mpi_tmp_path: Path) -> None:
    """A request that comes when some ranks are closing already makes no epoch, and does no harm."""
    with mpickpt.open(mpi_tmp_path, COMM) as ckpt:
        _u = ckpt.array("u", 1000)
        for step in ckpt.range(20):
            if step == 19 and COMM.rank == LAST:
                time.sleep(0.2)
                ckpt.request()
    assert ckpt.stats().complete <= 1


def test_rank_0_alone_tells_where_the_program_is(mpi_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(mpi_tmp_path, 20, lambda ckpt, step: None, every=5, progress=True)
    told = capsys.readouterr().err
    assert told.startswith("mpickpt: step 0; no epoch yet\n" if COMM.rank == 0 else "")
    assert bool(told) == (COMM.rank == 0)
