"""What can be asked of MPI without a session: which library it is, and what all processes have to say."""

from __future__ import annotations

from typing import Any

from mpickpt.coordinator.ranks import import_mpi


def about_mpi() -> dict[str, str]:
    """Start MPI if need be, and name the library and the thread level that it gives."""
    mpi = import_mpi()
    levels = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
    given = {getattr(mpi, f"THREAD_{level}"): level for level in levels}
    library = mpi.Get_library_version().rstrip("\0").splitlines()[0].strip()
    return {"library": " ".join(library.split()), "thread level": given[mpi.Query_thread()]}


def gather_world(value: object) -> list[Any] | None:
    """Bring a value of each process of MPI_COMM_WORLD to rank 0; None on the others; collective."""
    gathered: list[Any] | None = import_mpi().COMM_WORLD.gather(value)
    return gathered


def broadcast_world(value: str) -> str:
    """Give rank 0's text to all processes of MPI_COMM_WORLD; collective."""
    told: str = import_mpi().COMM_WORLD.bcast(value)
    return told
