"""Long waits: what is reported of them, and what does not count."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from mpi4py import MPI

import mpickpt
from mpickpt import waiting
from mpickpt.errors import WaitTimeout
from mpickpt.mpi import Coordinator, reports, started
from mpickpt.mpi import coordinator as coordinator_module

pytestmark = pytest.mark.mpi(min_size=2)
COMM = MPI.COMM_WORLD
LAST = COMM.size - 1
SOON = 0.3


def _said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "has waited" in line]


@pytest.mark.parametrize("late", [0, LAST])
def test_a_long_wait_is_said_once_with_the_ranks_that_are_late(
    late: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coordinator_module, "SAY_AFTER", SOON)
    coordinator = Coordinator(COMM)
    COMM.barrier()
    for turn in range(2):  # the second one is not misled by what ranks reported in the first
        if COMM.rank == late:
            time.sleep(4 * SOON)
        coordinator.broadcast(coordinator.gather(None, f"all in turn {turn}"), "rank 0")
        said = sum(COMM.allgather(_said(capfd)), [])
        assert len(said) == 1
        assert f"has waited {SOON:g} s for " in said[0]
        assert f"Not waiting, and therefore late: rank {late}." in said[0]
    coordinator.close()


@pytest.mark.parametrize("master", [0, LAST])
def test_a_master_whose_workers_wait_inside_a_library_says_so(
    master: int, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No other rank comes to a safe point, nor reports anything; here they do in the end."""
    monkeypatch.setattr(coordinator_module, "SAY_AFTER", SOON)
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        COMM.barrier()
        if COMM.rank != master:
            time.sleep(4 * SOON)
        for _ in ckpt.range(2):
            pass
    said = sum(COMM.allgather(_said(capfd)), [])
    assert len(said) == 1
    begins = (
        f"mpickpt: rank {master} has waited {SOON:g} s for all ranks to come to their first safe point (workers that "
    )
    assert said[0].startswith(begins) and "MPI.COMM_SELF" in said[0] and "therefore late: rank" in said[0]


def test_ranks_that_do_not_come_to_the_beginning(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said once by each of the two lowest ranks and by the last, and has a limit."""
    monkeypatch.setattr(started, "SAY_AFTER", SOON)
    for late in (LAST, 0):
        COMM.barrier()
        if COMM.rank == late:
            time.sleep(3 * SOON)
        started.meet(COMM, limit=100.0).Free()
        assert len(_said(capfd)) == (COMM.rank in (0, 1, LAST) and COMM.rank != late)
    COMM.barrier()
    if COMM.rank != LAST:
        with pytest.raises(WaitTimeout, match=f"Rank {COMM.rank} waited 0.3 s for all {COMM.size} ranks of comm"):
            started.meet(COMM, limit=SOON)
    COMM.barrier()
    if COMM.rank == LAST:  # what the others left behind is a barrier
        COMM.Ibarrier().Wait()
    for _ in range(20):  # and none of its kind disturbs those who meet after it
        started.meet(COMM, limit=100.0).Free()


def test_the_wait_for_an_epoch_is_said_once(
    mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coordinator_module, "SAY_AFTER", SOON)
    with mpickpt.open(mpi_tmp_path, COMM, every=1) as ckpt:
        u = ckpt.array("u", 1000)
        for step in ckpt.range(5):
            u += 1
            if step == 3 and COMM.rank == LAST:
                time.sleep(4 * SOON)
    said = sum(COMM.allgather(_said(capfd)), [])
    assert len(said) == 1
    assert f"late: rank {LAST}" in said[0]


def test_a_rank_that_waits_for_its_storage_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It says so itself, and so do those who wait for it; nobody asks whether all ranks take the same steps."""
    monkeypatch.setattr(coordinator_module, "SAY_AFTER", SOON)
    coordinator = Coordinator(COMM)
    monkeypatch.setattr(coordinator, "_limit", 4 * SOON if COMM.rank == 0 else 60.0)
    COMM.barrier()
    if COMM.rank == LAST:
        end = time.monotonic() + 6 * SOON
        coordinator.wait(lambda: time.monotonic() > end or None, f"{reports.STORAGE}which saves epoch 3 in FILE")
    elif COMM.rank == 0:
        with pytest.raises(WaitTimeout, match="waits for the storage, which saves epoch 3 in FILE") as caught:
            coordinator.wait(lambda: None, "all ranks to finish epoch 3")
        assert "same steps" not in str(caught.value)
    said = _said(capfd)
    if COMM.rank == LAST:
        assert any(f"rank {LAST} has waited {SOON:g} s for the storage, which saves" in line for line in said), said
    COMM.barrier()
    coordinator.close()


def test_time_in_which_a_rank_is_suspended_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rank is late beyond the limit by the clock, in most of which rank 0 was stopped."""
    monkeypatch.setattr(waiting, "LONGEST_GAP", 0.1)
    coordinator = Coordinator(COMM)
    monkeypatch.setattr(coordinator, "_limit", 1.2 if COMM.rank == 0 else 60.0)
    COMM.barrier()
    suspended = None
    if COMM.rank == 0:
        pid = os.getpid()
        suspended = subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -STOP {pid}; sleep 1.6; kill -CONT {pid}"])
    elif COMM.rank == LAST:
        time.sleep(2.1)
    began = time.monotonic()
    coordinator.gather(None, "all")
    if suspended is not None:
        assert time.monotonic() - began > 1.6, "otherwise this tests nothing"
        suspended.wait()
    COMM.barrier()
    coordinator.close()


def test_a_wait_that_ended_leaves_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "SAY_AFTER", 0.1)
    coordinator = Coordinator(COMM)
    if COMM.rank == LAST:
        time.sleep(0.3)
    coordinator.broadcast(None, "rank 0")
    coordinator.gather(None, "all")
    COMM.barrier()
    if COMM.rank in reports.collectors(COMM.size):
        coordinator._reports.late()
        assert not any(coordinator._reports._waiting.values())
    coordinator.close()
