"""One rank of `mpickpt run` ends, and with it all do: none is left waiting for a message."""

from __future__ import annotations

from pathlib import Path

import pytest
from mpijob import mpi_job

PROGRAM = """
import sys
from mpi4py import MPI
import mpickpt

comm = MPI.COMM_WORLD
with mpickpt.open("c", comm, every=2) as ckpt:
    u = ckpt.array("u", 100_000)
    for step in ckpt.range(100_000):
        u += 1
        if step == 7 and comm.rank == 1:
            {statement}
        comm.barrier()
"""


@pytest.mark.parametrize(
    ("statement", "code", "told"),
    [
        ("raise KeyError('lost')", 1, "KeyError: 'lost'\nmpickpt: rank 1 of 2 ended by an uncaught KeyError"),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('no input')", 1, "no input"),
    ],
)
def test_one_rank_ends_all(tmp_path: Path, statement: str, code: int, told: str) -> None:
    program = tmp_path / "app.py"
    program.write_text(PROGRAM.format(statement=statement))
    with mpi_job(2, ["-m", "mpickpt", "run", program], tmp_path / "log") as job:
        assert job.wait(150) == code
        assert told in job.output()
        if "raise" in statement:
            assert f'File "{program}", line 12' in job.output()
    with mpi_job(2, ["-m", "mpickpt", "run", "--restart", "auto", program], tmp_path / "log2") as job:
        assert job.wait(150) == code  # it resumes, and fails in the same place
        assert "mpickpt: restored epoch" in job.output()


LATE = """
import os, signal, subprocess
from mpi4py import MPI

if MPI.COMM_WORLD.rank == 1:
    launcher = os.getppid()
    null = subprocess.DEVNULL
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -CONT {launcher}"], stdout=null, stderr=null)
    os.kill(launcher, signal.SIGSTOP)
    raise KeyError("lost")
MPI.COMM_WORLD.barrier()
"""


@pytest.mark.parametrize("attempt", range(5))
def test_last_words_reach_a_launcher_that_is_late(tmp_path: Path, attempt: int) -> None:
    program = tmp_path / "app.py"
    program.write_text(LATE)
    with mpi_job(2, ["-m", "mpickpt", "run", program], tmp_path / "log") as job:
        assert job.wait(150) == 1
        assert "rank 1 of 2 ended by an uncaught KeyError" in job.output()


def test_error_of_all_ranks_is_told_once(tmp_path: Path) -> None:
    program = tmp_path / "app.py"
    program.write_text(PROGRAM.format(statement="pass"))
    with mpi_job(2, ["-m", "mpickpt", "run", "--restart", "5", program], tmp_path / "log") as job:
        assert job.wait(150) == 6
        assert job.output().count("mpickpt: Nothing in") == 1
        assert "Traceback" not in job.output()
