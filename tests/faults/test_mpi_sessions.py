"""MPI sessions (MPI 4.0) alone are refused with a clear message; with MPI_Init they do no harm."""

from __future__ import annotations

import re
from pathlib import Path

from mpijob import mpi_job

JOB = Path(__file__).parent / "mpi_sessions_job.py"


def test_sessions_alone_and_beside_mpi_init(tmp_path: Path) -> None:
    with mpi_job(2, [JOB], tmp_path / "log") as job:
        assert job.wait(100) == 0, job.output()
    told = job.output()
    for text in (
        r"^MPI was started by sessions alone .*: MPI_Init was not called\. .*call MPI\.Init\(\)",
        r"^The communicator comes from an MPI session, and MPI_Init was not called\. .*call MPI\.Init\(\)",
        r"^made False$",
        r"^saved 2 on 2$",
        r"^MPI is finalized: ",
    ):
        assert len(re.findall(text, told, re.MULTILINE)) == 2, told
