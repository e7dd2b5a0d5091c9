"""What ULFM, the fault tolerance of Open MPI, lets survivors do, and who has it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np

from mpickpt.errors import MpickptError, UsageError, everywhere
from mpickpt.mpi.started import import_mpi

if TYPE_CHECKING:
    from mpi4py import MPI

_NEEDS = "mpirun --with-ft ulfm"
_LONGEST_PAUSE = 1e-3  # between two polls of an agreement


def agree(comm: MPI.Intracomm, value: int) -> tuple[bool, int]:
    """Agree on the bits that all living ranks bring, also on a revoked communicator; and whether none has died."""
    word = np.array([value], np.intc)
    request = comm.Iagree(word)
    complete, pause = True, _LONGEST_PAUSE / 50
    try:
        while not request.Test():
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    except import_mpi().Exception:  # a rank has died; the others know it, too
        complete = False
    return complete, int(word[0])


def ranks_in(other: MPI.Intracomm, comm: MPI.Intracomm) -> list[int | None]:
    """Return for each rank of `comm` which one it is in another communicator, or None."""
    mpi = import_mpi()
    here, there = comm.Get_group(), other.Get_group()
    found = mpi.Group.Translate_ranks(here, list(range(here.size)), there)
    here.Free()
    there.Free()
    return [None if number == mpi.UNDEFINED else number for number in found]


def may_follow(error: BaseException | None, of_mpi: type[BaseException]) -> bool:
    """Return whether an error is one of MPI, or of mpickpt, or was raised because of such a one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, of_mpi | MpickptError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def check_library(mpi: object, mode: str) -> None:
    """Refuse libraries that end the survivors, and a launcher that was not told to leave them alone."""
    library = mpi.Get_library_version().rstrip("\0").splitlines()[0].strip()  # type: ignore[attr-defined]
    name = " ".join(library.split())
    if not library.startswith("Open MPI v5"):
        raise everywhere(
            UsageError(
                f"--survive={mode} needs Open MPI 5 and '{_NEEDS}'. This program runs with {name}, "
                f"whose launcher ends all ranks when one dies. Nothing was run. Without --survive the same command "
                f"resumes the program after a loss."
            )
        )
    if os.environ.get("OMPI_MCA_mpi_ft_enable", "0").lower() not in ("1", "true", "yes"):
        raise everywhere(
            UsageError(
                f"--survive={mode} needs '{_NEEDS}': without it mpirun ends all ranks when one dies. Nothing was run. "
                f"Start the program with it, on as many ranks as you like."
            )
        )
