"""MPI without a session: which library it is, collectives of all processes, and ending them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mpickpt.mpi.output import flush
from mpickpt.mpi.started import import_mpi
from mpickpt.mpi.survival import current

if TYPE_CHECKING:
    from mpi4py import MPI


def about_mpi() -> dict[str, str]:
    """Start MPI if needed, and return the names of the library and of its thread level."""
    mpi = import_mpi()
    levels = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
    given = {getattr(mpi, f"THREAD_{level}"): level for level in levels}
    library = mpi.Get_library_version().rstrip("\0").splitlines()[0].strip()
    return {"library": " ".join(library.split()), "thread level": given[mpi.Query_thread()]}


def gather_world(value: object) -> list[Any] | None:
    """Gather a value of each process of MPI_COMM_WORLD on rank 0; None on the others; collective."""
    gathered: list[Any] | None = import_mpi().COMM_WORLD.gather(value)
    return gathered


def broadcast_world(value: str) -> str:
    """Return rank 0's text on all processes of MPI_COMM_WORLD; collective."""
    told: str = import_mpi().COMM_WORLD.bcast(value)
    return told


def world_comm() -> MPI.Intracomm:
    """Return the communicator of all ranks of the program: MPI_COMM_WORLD, but after the loss of a rank."""
    survival = current()
    comm: MPI.Intracomm = import_mpi().COMM_WORLD if survival is None else survival.comm
    return comm


def world_rank_and_size() -> tuple[int, int]:
    """Return rank and number of ranks of a program that uses MPI; otherwise (0, 1), without starting MPI."""
    comm = _comm_in_use()
    return (0, 1) if comm is None else (comm.rank, comm.size)


def abort(code: int) -> None:
    """End all ranks with exit code `code`, after the launcher has read our output; return if there is only one."""
    comm = _comm_in_use()
    if comm is not None and comm.size > 1:
        flush()
        comm.Abort(code)


def _comm_in_use() -> MPI.Intracomm | None:
    """Return the communicator of all ranks of the program that live; None if it does not use MPI."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return world_comm()
