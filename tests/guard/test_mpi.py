"""Every MPI call that writes to memory, into protected memory, over each transport.

The cases are in mpi_cases.py, the program that runs them is receive.py. Both wheels have all of the calls; a library
that lacks one fails here by name, so that a case cannot vanish unnoticed. mpi4py calls the large-count forms; the plain
ones are called by plain_calls.c, and receive_plain.py runs them.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI
from mpi_cases import CASES
from mpijob import mpi_job

HERE = Path(__file__).parent
PLAIN_CALLS = HERE / "plain_calls.c"
PLAIN = re.findall(r"^int (?:call|post)_(\w+)", PLAIN_CALLS.read_text(), re.MULTILINE)
MPICC = shutil.which("mpicc", path=str(Path(sys.executable).parent)) or shutil.which("mpicc")
OPEN_MPI = MPI.get_vendor()[0] == "Open MPI"
TRANSPORTS = {
    "shared memory": {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm"} if OPEN_MPI else {},
    "TCP": {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp"}
    if OPEN_MPI
    else {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
}


def _report(told: str) -> dict[str, Any]:
    """The one line of JSON among what the ranks said."""
    return json.loads(next(line for line in told.splitlines() if line.startswith("{")))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [2, 4], ids=lambda ranks: f"{ranks}ranks")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_call_into_protected_memory(transport: str, ranks: int, tmp_path: Path) -> None:
    """Right data, and the image of the cut, for messages of a byte up to 64 MiB."""
    with mpi_job(ranks, [HERE / "receive.py", tmp_path], tmp_path / "log", TRANSPORTS[transport]) as job:
        code = job.wait(380)
        told = job.output()
    shutil.rmtree(tmp_path)
    assert code == 0, told
    report = _report(told)
    assert report["wrong"] == []
    assert report["missing"] == {}
    assert set(report["done"]) == set(CASES)
    assert all(count >= 3 for count in report["done"].values())


def _build_plain(folder: Path, *options: str) -> Path:
    """The library of plain calls, built for the MPI that the ranks use."""
    if MPICC is None or shutil.which("cc") is None:
        pytest.skip("no mpicc" if MPICC is None else "no C compiler")
    path = folder / "libplain.so"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", *options]
    built = subprocess.run([MPICC, *flags, PLAIN_CALLS, "-o", path], capture_output=True, text=True, timeout=150)
    assert built.returncode == 0, built.stderr
    return path


def _check_plain(library: Path, folder: Path, settings: dict[str, str]) -> None:
    command = [HERE / "receive_plain.py", library, folder, *PLAIN]
    with mpi_job(2, command, folder / "log", settings) as job:
        code = job.wait(120)
        told = job.output()
    assert code == 0, told
    assert _report(told)["wrong"] == []


@pytest.fixture(scope="module")
def plain_calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of plain calls."""
    return _build_plain(tmp_path_factory.mktemp("plain"))


@pytest.mark.timeout(150)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_plain_calls_into_protected_memory(transport: str, plain_calls: Path, tmp_path: Path) -> None:
    """Right data, the image of the cut, and writable blocks where the call may write, and nowhere else."""
    _check_plain(plain_calls, tmp_path, TRANSPORTS[transport])


@pytest.mark.timeout(150)
def test_profiling_names_into_protected_memory(tmp_path: Path) -> None:
    """The same calls by their PMPI names, as the Fortran library of Open MPI and profilers make them."""
    names = set(re.findall(r"\bMPI_[A-Z]\w+(?=\()", PLAIN_CALLS.read_text())) - {"MPI_Comm_f2c"}
    library = _build_plain(tmp_path, *(f"-D{name}=P{name}" for name in sorted(names)))
    _check_plain(library, tmp_path, {})


@pytest.mark.timeout(150)
def test_waiting_time_goes_to_the_drain(tmp_path: Path) -> None:
    """What is drained while a rank waits in a call of MPI is counted, and is nothing where the core is not lent."""
    with mpi_job(2, [HERE / "waits.py", tmp_path], tmp_path / "log") as job:
        code = job.wait(120)
        told = job.output()
    assert code == 0, told
    lent, lent_in_all = _report(told)["lent"]
    kept, kept_in_all = _report(told)["kept"]
    assert 0 < lent <= lent_in_all
    assert kept == 0 < kept_in_all
