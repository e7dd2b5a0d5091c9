"""Ranks die, and the others go on: `mpickpt run --survive`, with Open MPI; and who is refused."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from mpijob import MpiJob, mpi_job, mpiexec

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import survive  # noqa: E402  (found by the line above)

JOB = Path(__file__).parent / "survive_job.py"
VERSION = subprocess.run([mpiexec(), "--version"], capture_output=True, text=True, check=True).stdout
OPEN_MPI = "Open MPI" in VERSION
WITH_OPEN_MPI = pytest.mark.skipif(not OPEN_MPI, reason="only Open MPI leaves the survivors alone")
STEPS = 500


def run(kind: str, folder: Path, mode: str = "shrink", launching: tuple[str, ...] = survive.LAUNCHING) -> MpiJob:
    """Run the job on 3 ranks to its end."""
    command = ["-m", "mpickpt", "run", f"--survive={mode}", JOB, kind]
    with mpi_job(3, command, folder / "log", launching=launching) as job:
        job.wait(120)
    return job


@WITH_OPEN_MPI
@pytest.mark.parametrize(("mode", "victims"), [("shrink", [0, 2]), ("respawn", [0, 1, 1])])
def test_the_result_is_that_of_an_uninterrupted_run(mode: str, victims: list[int], tmp_path: Path) -> None:
    """Kill rank 0, and others after it: with ``respawn`` also a process that has taken a place."""
    seed = str(random.randrange(2**32))
    print("seed", seed)
    steps = STEPS * len(victims)
    expected = survive.uninterrupted(tmp_path, steps)
    seconds = survive.survive(mode, victims, tmp_path, steps, expected, random.Random(seed))
    assert len(seconds) == len(victims)


@WITH_OPEN_MPI
@pytest.mark.parametrize(("mode", "ranks"), [("shrink", 2), ("respawn", 3)])
def test_all_that_wait_get_an_error_and_go_on_from_the_newest_epoch(mode: str, ranks: int, tmp_path: Path) -> None:
    """They wait on communicators of their own; and ``restart="never"`` was for the start of the run."""
    job = run("relatives", tmp_path, mode)
    assert job.process.returncode == 0, job.output()
    for rank in range(ranks):
        assert f"rank {rank} of {ranks} began at step 30 and did 60" in job.output()
    assert job.output().count("mpickpt: lost rank 2 (process ") == 1
    assert (tmp_path / "returned").exists()


@WITH_OPEN_MPI
@pytest.mark.parametrize("mode", ["shrink", "respawn"])
def test_an_error_of_the_program_ends_all_ranks(mode: str, tmp_path: Path) -> None:
    job = run("error", tmp_path, mode)
    assert job.process.returncode == 1, job.output()
    assert "rank 1 of 3 ended by an uncaught ZeroDivisionError, and so all ranks end" in job.output()
    assert "lost rank" not in job.output()


@WITH_OPEN_MPI
def test_a_program_without_main_is_refused(tmp_path: Path) -> None:
    job = run("without", tmp_path)
    assert job.process.returncode == 2, job.output()
    assert job.output().count("this one calls mpickpt.open outside of mpickpt.main()") == 1
    assert not (tmp_path / "ckpt").exists()


@WITH_OPEN_MPI
def test_a_program_without_checkpoints_is_told(tmp_path: Path) -> None:
    job = run("nothing", tmp_path)
    assert job.process.returncode == 0, job.output()
    assert job.output().count("came to its end without a call of mpickpt.main(f)") == 1


def test_a_launcher_that_ends_the_survivors_is_refused(tmp_path: Path) -> None:
    """MPICH's always does, and Open MPI's unless it is told otherwise."""
    job = run("error", tmp_path, launching=())
    assert job.process.returncode == 2, job.output()
    assert job.output().count("--survive=shrink needs ") == 1
    assert ("without it mpirun ends all ranks" if OPEN_MPI else "whose launcher ends all ranks") in job.output()
    assert not (tmp_path / "ckpt").exists()


def test_main_calls_the_function_once_without_survive(tmp_path: Path) -> None:
    with mpi_job(3, ["-m", "mpickpt", "run", JOB, "relatives"], tmp_path / "log") as job:
        job.wait(120)
    assert job.process.returncode != 0, "the death of a rank ends all"
    assert not (tmp_path / "returned").exists()
    assert "lost rank" not in job.output()
