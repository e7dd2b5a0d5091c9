"""Communicators of sessions that ranks left by exceptions: they are freed at the next `open`.

Such a rank waits for nobody, so its non-blocking calls may lack those of the other ranks, and MPI does not free a
communicator with pending calls. It has some 2,000 communicators, and a session takes seven. A process has one session
at a time: when all ranks of an old session meet in an `open`, all have left it. Each tells how many calls of each kind
it made, and makes those that only others made, so that all complete.

Until then, or until the process ends, only MPI uses what was left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mpickpt.mpi.pending import abandon, reclaim

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, slots=True)
class Account:
    """What one rank did on the communicators of a session.

    Attributes
    ----------
    orderly : bool
        Whether it gave up no meeting, and reported no wait.
    opened : bool
        Whether it had all communicators.
    rounds, shares, exchanges : int
        How many collectives of each kind it began.
    messages : int
        Messages that it sent on ``ckpt.comm``, minus those that it received there.
    collectives : int
        Collectives that it called on ``ckpt.comm``.
    pending : bool
        Whether it has receives or sends there that are not complete.
    """

    orderly: bool
    opened: bool = False
    rounds: int = 0
    shares: int = 0
    exchanges: int = 0
    messages: int = 0
    collectives: int = 0
    pending: bool = False


class Leftover(Protocol):
    """What a rank left behind, as its `Coordinator` knows it."""

    def group(self) -> MPI.Group:
        """Return the ranks of the session; the caller frees the group."""

    def account(self) -> Account:
        """Return what this rank did."""

    def give_back(self, accounts: Sequence[Account]) -> None:
        """Make the calls that only other ranks made, and free the communicators; `accounts` of all ranks."""


_left: dict[int, Leftover] = {}  # by the numbers of their sessions
_newest = 0


def enter(comm: MPI.Intracomm) -> int:
    """Free what the ranks of `comm` left behind, and return a number for the session that they open; collective.

    No other session of any of these ranks has this number.
    """
    global _newest
    from mpi4py import MPI

    most = np.array([_newest + 1, len(_left)], np.int64)
    comm.Allreduce(MPI.IN_PLACE, most, MPI.MAX)
    _newest = int(most[0])
    if most[1]:
        _give_back(comm)
    return _newest


def leave_behind(number: int, leftover: Leftover) -> None:
    """Keep what a rank leaves behind of a session until it is freed."""
    _left[number] = leftover
    abandon(leftover)


def _give_back(comm: MPI.Intracomm) -> None:
    told = comm.allgather({number: leftover.account() for number, leftover in _left.items()})
    for number in sorted(_left):  # the same order on all ranks
        ranks = _ranks(_left[number], comm)
        accounts = [account for rank in ranks if rank is not None and (account := told[rank].get(number)) is not None]
        if len(accounts) == len(ranks):  # otherwise one of them is not here, or has not left
            leftover = _left.pop(number)
            leftover.give_back(accounts)
            reclaim(leftover)


def _ranks(leftover: Leftover, comm: MPI.Intracomm) -> list[int | None]:
    """Return the ranks of a leftover as they are numbered in `comm`, and None for those that are not there."""
    from mpi4py import MPI

    old, here = leftover.group(), comm.Get_group()
    ranks = MPI.Group.Translate_ranks(old, list(range(old.size)), here)
    old.Free()
    here.Free()
    return [None if rank == MPI.UNDEFINED else rank for rank in ranks]
