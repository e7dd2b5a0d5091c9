"""Calling the function of a program, again after the loss of a rank."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from mpickpt.errors import Stopped
from mpickpt.mpi import Survival, current_survival, world_comm
from mpickpt.session.session import leave_all
from mpickpt.session.triggers import CUT_SIGNAL, STOP_SIGNAL
from mpickpt.signals.deferral import end_deferral

if TYPE_CHECKING:
    from mpickpt.mpi import Communicator

T = TypeVar("T")


def main(function: Callable[[Communicator], T]) -> T:
    """Call the function that is the program, with the communicator to use; return what it returns.

    Under ``mpickpt run --survive=shrink`` or ``--survive=respawn`` the function is called again when a rank has died:
    on the survivors, in the same processes, and with ``respawn`` also in a new process for each dead rank. It opens its
    sessions on the communicator that it gets, and so goes on from the newest complete epoch (docs/survivors.md).
    Otherwise it is called once, with ``MPI.COMM_WORLD``.

    Collective: each rank calls it once. After a loss all communicators of the process are revoked, so that no survivor
    waits for another for ever. The function makes those that it needs from the one that it gets.

    Parameters
    ----------
    function : callable
        Gets an `mpi4py.MPI.Intracomm`. It has to let errors of MPI and of mpickpt through: they tell that a rank was
        lost. It may be called again although it has returned on this rank: when another rank was lost before it
        returned there.

    Returns
    -------
    object
        What the last call of the function returned on this rank.

    Raises
    ------
    UsageError
        If it is called a second time under ``--survive``.

    Examples
    --------
    >>> def solve(comm):  # doctest: +SKIP
    ...     with mpickpt.open("heat.ckpt", comm, interval="10min") as ckpt:
    ...         ...
    >>> mpickpt.main(solve)  # doctest: +SKIP
    """
    survival = current_survival()
    if survival is None:
        return function(world_comm())
    survival.enter()
    try:
        while True:
            results, stopped = _call(function, survival)
            returned, stops = survival.agree(returned=bool(results), stops=stopped is not None)
            if stops:
                raise stopped or Stopped(None)
            if returned:
                return results[0]
            survival.rebuild()
    finally:
        survival.leave()
        end_deferral((CUT_SIGNAL, STOP_SIGNAL))


def _call(function: Callable[[Communicator], T], survival: Survival) -> tuple[list[T], Stopped | None]:
    """Call the function once: what it returned, if it did, and what stopped it; all else than a loss is raised."""
    try:
        survival.meet()
        return [function(survival.comm)], None
    except Stopped as stopped:
        return [], stopped
    except Exception as error:
        if not survival.find_loss(error):
            raise
        leave_all()
        traceback.clear_frames(error.__traceback__)
    gc.collect()  # the arrays that the function held, before it makes others
    return [], None
