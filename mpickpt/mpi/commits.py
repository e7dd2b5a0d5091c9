"""Commits: one non-blocking agreement for each epoch, which a rank posts whenever its own drain happens to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpickpt.mpi.pending import Pending, Repeated, calls_of_collective, next_of
from mpickpt.protocol import Epoch

if TYPE_CHECKING:
    from mpi4py import MPI

_NOBODY = 2**62  # in a commit: no rank has left, or failed
_ERRNO_BITS = 16  # of a number that holds a rank and an errno
_NO_EPOCH = Epoch(0, 0, 0)  # what a rank says of an epoch that it knows nothing of
_SHARE = 13  # numbers that a rank says of an epoch, in `_post`


@dataclass(slots=True)
class Share:
    """What one rank says of an epoch.

    Attributes
    ----------
    epoch : Epoch
        Which one.
    complete : bool
        Its image is on disk.
    missed : bool
        It came past the cut; then step and slot mean nothing.
    hung : bool
        Its storage hangs: it cannot be cut.
    drain_seconds, lost_seconds : float
        How long the drain took, and for how long the program stood still for the epoch.
    errno : int
        Why it is not complete, where the operating system said so.
    """

    epoch: Epoch
    complete: bool
    missed: bool = False
    hung: bool = False
    drain_seconds: float = 0.0
    lost_seconds: float = 0.0
    errno: int = 0


@dataclass(slots=True)
class Commit:
    """What the ranks found out about an epoch.

    Attributes
    ----------
    complete : bool
        Whether it is complete on every rank.
    same_cut : bool
        Whether it is the same cut on all ranks: the same epoch, step and slot.
    missed : bool
        Whether a rank came past it.
    hung : bool
        Whether the storage of a rank hangs.
    departed : int or None
        A rank that left the session by an exception.
    drain_seconds, lost_seconds : float
        The longest of any rank.
    failed, errno : int or None, int
        The lowest rank on which it is not complete, and why, where the operating system said so.
    """

    complete: bool
    same_cut: bool
    missed: bool
    hung: bool
    departed: int | None
    drain_seconds: float
    lost_seconds: float
    failed: int | None = None
    errno: int = 0


class Commits:
    """One rank's end of the agreements; creating it is collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The ranks, whose communicator is duplicated.
    least : mpi4py.MPI.Op
        MPI.MIN.

    Attributes
    ----------
    posted : int
        How many agreements this rank has taken part in.
    """

    def __init__(self, comm: MPI.Intracomm, least: MPI.Op) -> None:
        self._comm = comm.Dup()
        self._rank: int = comm.rank
        start, post, calls = self._comm.Allreduce_init, self._comm.Iallreduce, calls_of_collective(comm.size)
        self._shares = [
            Repeated(start, post, *np.empty((2, _SHARE), np.int64), calls=calls, op=least) for _ in range(2)
        ]  # of the epoch that is agreed on, and of a rank that leaves meanwhile
        self._pending: Pending | None = None
        self.posted = 0

    def post(self, share: Share) -> None:
        """Start the agreement on an epoch."""
        self._pending = self._post(share, _NOBODY)

    def post_leaving(self) -> None:
        """Tell the others, when they next agree on an epoch, that this rank has left; nothing is waited for."""
        self._post(Share(_NO_EPOCH, complete=False), self._rank)

    def _post(self, share: Share, departed: int) -> Pending:
        cut = [share.epoch.number, share.epoch.step, share.epoch.slot]
        least, greatest = ([_NOBODY] * 3, [_NOBODY] * 3) if share.missed else (cut, [-n for n in cut])
        costs = [-round(seconds * 1e6) for seconds in (share.drain_seconds, share.lost_seconds)]
        posted = next_of(self._shares)
        self.posted += 1
        failed = _NOBODY if share.complete else self._rank << _ERRNO_BITS | share.errno
        met = [share.complete, departed, not share.missed, not share.hung, failed]
        posted.kept[0][:] = [*met, *costs, *least, *greatest]
        posted.start()
        posted.test()
        return posted

    def tests(self) -> list[Callable[[], bool]]:
        """Give what to call to learn whether `next` has something to give, until then the same."""
        return [] if self._pending is None else self._pending.tests()

    def next(self) -> Commit | None:
        """Give what was found out about the epoch that was posted, if it is there."""
        if self._pending is None or not self._pending.test():
            return None
        complete, departed, not_missed, not_hung, failed, drain, lost, *cut = self._pending.result.tolist()
        self._pending = None
        least, greatest = cut[:3], [-n for n in cut[3:]]
        same_cut = least == greatest or least[0] == _NOBODY  # if all missed it, there is no cut to compare
        return Commit(
            complete=bool(complete) and same_cut,
            same_cut=same_cut,
            missed=not not_missed,
            hung=not not_hung,
            departed=None if departed == _NOBODY else departed,
            drain_seconds=-drain / 1e6,
            lost_seconds=-lost / 1e6,
            failed=None if failed == _NOBODY else failed >> _ERRNO_BITS,
            errno=0 if failed == _NOBODY else failed & (1 << _ERRNO_BITS) - 1,
        )

    def finish(self, posted: int, wait: Callable[[Pending], object]) -> None:
        """Take part in agreements until it were so many, and give the communicator back; collective."""
        while self.posted < posted:
            self._post(Share(_NO_EPOCH, complete=False), _NOBODY)
        for share in self._shares:
            wait(share)
        self.close()

    def close(self) -> None:
        """Give the communicator back; collective, and nothing may be pending."""
        for share in self._shares:
            share.free()
        self._comm.Free()
