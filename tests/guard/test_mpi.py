"""Every MPI call that writes to memory, into protected memory, over each transport.

The cases are in mpi_cases.py, the program that runs them is receive.py. Both wheels have all of the calls; a library
that lacks one fails here by name, so that a case cannot vanish unnoticed.
"""

import json
import shutil
from pathlib import Path

import pytest
from mpi4py import MPI
from mpi_cases import CASES
from mpijob import mpi_job

PROGRAM = Path(__file__).with_name("receive.py")
OPEN_MPI = MPI.get_vendor()[0] == "Open MPI"
TRANSPORTS = {
    "shared memory": {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm"} if OPEN_MPI else {},
    "TCP": {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,tcp"}
    if OPEN_MPI
    else {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_call_into_protected_memory(transport: str, ranks: int, tmp_path: Path) -> None:
    """Right data, and the image of the cut, for messages of a byte up to 64 MiB."""
    with mpi_job(ranks, [PROGRAM, tmp_path], tmp_path / "log", TRANSPORTS[transport]) as job:
        code = job.wait(380)
        told = job.output()
    shutil.rmtree(tmp_path)
    assert code == 0, told
    report = json.loads(next(line for line in told.splitlines() if line.startswith("{")))
    assert report["wrong"] == []
    assert report["missing"] == {}
    assert set(report["done"]) == set(CASES)
    assert all(count >= 3 for count in report["done"].values())
