"""Signals to ranks and to mpiexec, and the command from another shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mpijob import MpiJob, mpi_job

JOB = Path(__file__).parent / "signal_job.py"
TERM_JOB = Path(__file__).parent / "term_job.py"
RANKS = 3


def _wait_until(condition: Callable[[], bool], job: MpiJob) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert job.running() and time.monotonic() < limit, job.output()
        time.sleep(0.02)


def _ls(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "mpickpt", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=150)
    assert found.returncode == 0, found.stderr
    return found.stdout


def _started(job: MpiJob) -> bool:
    return job.output().count("computes") == RANKS


@pytest.mark.parametrize("who", ["one", "all"])
def test_sigusr1(tmp_path: Path, who: str) -> None:
    with mpi_job(RANKS, [JOB], tmp_path / "log") as job:
        _wait_until(lambda: _started(job), job)
        pids = job.rank_pids()
        for rank in [2] if who == "one" else range(RANKS):
            os.kill(pids[rank], signal.SIGUSR1)
        _wait_until(lambda: "  complete" in _ls(tmp_path, "ls", "c"), job)
        os.kill(pids[0], signal.SIGTERM)
        assert job.wait(150) != 0
    table = _ls(tmp_path, "ls", "c")
    assert "in use" not in table
    assert table.count("  complete") == 2


@pytest.mark.parametrize("who", ["one", "all"])
def test_sigterm_ends_all_ranks_with_75(tmp_path: Path, who: str) -> None:
    """And the same command goes on where they were."""
    with mpi_job(RANKS, [JOB], tmp_path / "log") as job:
        _wait_until(lambda: _started(job), job)
        pids = job.rank_pids()
        for rank in [1] if who == "one" else range(RANKS):
            os.kill(pids[rank], signal.SIGTERM)
        assert job.wait(150) == 75, job.output()
    assert "stopped as asked, after epoch 1 of" in job.output()
    assert job.output().count("ends with 75") == RANKS
    with mpi_job(RANKS, [JOB, "--steps", "10"], tmp_path / "log") as again:
        assert again.wait(150) == 0, again.output()
    assert "restored epoch 1" in again.output()


def test_the_command_from_another_shell(tmp_path: Path) -> None:
    with mpi_job(RANKS, ["-m", "mpickpt", "run", JOB], tmp_path / "log") as job:
        _wait_until(lambda: _started(job), job)
        assert "asked process" in _ls(tmp_path, "trigger", "c")
        _wait_until(lambda: "  complete" in _ls(tmp_path, "ls", "c"), job)
        assert "and to stop" in _ls(tmp_path, "trigger", "--stop", "c")
        assert job.wait(150) == 75, job.output()
    assert "stopped as asked, after epoch 2" in job.output()


def test_the_command_needs_a_program(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    command = [sys.executable, "-m", "mpickpt", "trigger", "c"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=150)
    assert found.returncode == 2
    assert "No running program uses c" in found.stderr


def test_a_signal_to_mpiexec(tmp_path: Path) -> None:
    """Each library passes on what it will: both pass SIGUSR1; on SIGTERM the ranks get little or no time."""
    with mpi_job(RANKS, [JOB], tmp_path / "log") as job:
        _wait_until(lambda: _started(job), job)
        job.process.send_signal(signal.SIGUSR1)
        _wait_until(lambda: "  complete" in _ls(tmp_path, "ls", "c"), job)
        job.process.send_signal(signal.SIGTERM)
        assert job.wait(150) != 0
    assert "  complete" in _ls(tmp_path, "ls", "c"), "whatever became of the ranks, the last complete epoch stays"


def _lives_for(job: MpiJob, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while job.running() and time.monotonic() < limit:
        time.sleep(0.02)
    return job.running()


def test_a_second_sigterm_ends_a_rank_that_waits_for_others(tmp_path: Path) -> None:
    """It comes to no safe point, and to no instruction of Python, at which it could heed the first one."""
    with mpi_job(2, [TERM_JOB], tmp_path / "log") as job:
        _wait_until(lambda: "computes" in job.output(), job)
        waits = job.rank_pids()[0]
        os.kill(waits, signal.SIGTERM)
        os.kill(waits, signal.SIGTERM)
        assert _lives_for(job, 1.5), "neither two at once nor the time has an effect"
        os.kill(waits, signal.SIGTERM)
        assert job.wait(30) != 0
    assert "SIGTERM takes its default effect" in job.output()


def test_a_limit_of_the_first_sigterm(tmp_path: Path) -> None:
    with mpi_job(2, [TERM_JOB, "--term-limit", "500ms"], tmp_path / "log") as job:
        _wait_until(lambda: "computes" in job.output(), job)
        os.kill(job.rank_pids()[0], signal.SIGTERM)
        assert job.wait(30) != 0
    assert "SIGTERM takes its default effect" in job.output()


def test_a_second_sigterm_with_a_handler_of_the_program(tmp_path: Path) -> None:
    with mpi_job(2, [TERM_JOB, "--own"], tmp_path / "log") as job:
        _wait_until(lambda: "computes" in job.output(), job)
        computes = job.rank_pids()[1]
        os.kill(computes, signal.SIGTERM)
        assert _lives_for(job, 1.5)
        os.kill(computes, signal.SIGTERM)
        assert job.wait(60) == 75, job.output()
    assert job.output().count("rank 1: its own handler") == 2
    assert "default effect" not in job.output()
