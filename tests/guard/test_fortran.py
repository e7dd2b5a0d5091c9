"""Fortran calls into protected memory: the Fortran library forwards them to PMPI names, which are guarded.

The wheels bring no Fortran library: these tests want an MPI of the system (``MPI=system``).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mpijob import mpi_job
from test_mpi import MPICC, OPEN_MPI

HERE = Path(__file__).parent
LIBRARIES = ["-lmpi_mpifh"] if OPEN_MPI else ["-lmpifort"]


def _build(compiler: str | None, source: Path, folder: Path, *libraries: str) -> Path:
    path = folder / "libfortran.so"
    if compiler is None or shutil.which(compiler) is None:
        pytest.skip(f"no {compiler or 'mpicc'}")
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", path, source, *libraries]
    built = subprocess.run(command, capture_output=True, text=True, timeout=150)
    if "cannot find -l" in built.stderr:
        pytest.skip("this MPI has no Fortran library")
    assert built.returncode == 0, built.stderr
    return path


def _check(library: Path, names: list[str], folder: Path) -> None:
    with mpi_job(2, [HERE / "receive_fortran.py", library, folder, *names], folder / "log") as job:
        code = job.wait(120)
        told = job.output()
    assert code == 0, told
    assert json.loads(next(line for line in told.splitlines() if line.startswith("{")))["wrong"] == []


@pytest.mark.timeout(150)
def test_names_that_compilers_give(tmp_path: Path) -> None:
    """``mpi_recv_`` and the like, called from C."""
    source = HERE / "fortran_calls.c"
    library = _build(MPICC, source, tmp_path, *LIBRARIES)
    _check(library, re.findall(r"^RECEIVE\((\w+)\)", source.read_text(), re.MULTILINE), tmp_path)


@pytest.mark.timeout(150)
def test_program_in_fortran(tmp_path: Path) -> None:
    """By the module and by the include file."""
    source = HERE / "fortran_calls.f90"
    compiler = str(Path(MPICC).with_name("mpif90")) if MPICC else None
    library = _build(compiler, source, tmp_path)
    _check(library, re.findall(r"^function call_(\w+)", source.read_text(), re.MULTILINE), tmp_path)
