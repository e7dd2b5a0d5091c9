"""Commits: one non-blocking agreement for each epoch, which a rank posts when its own drain has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpickpt.mpi.pending import Pending, Repeated, calls_of_collective, next_of
from mpickpt.mpi.survival import is_lost
from mpickpt.protocol import Epoch

if TYPE_CHECKING:
    from mpi4py import MPI

_NOBODY = 2**62  # in a commit: no rank has left, or failed, or archives
_ERRNO_BITS = 16  # of a number that holds a rank and an errno
_NO_EPOCH = Epoch(0, 0, 0)  # in the share of a rank that knows no epoch
_SHARE = 14  # numbers in the share of a rank, in `_post`


@dataclass(slots=True)
class Share:
    """One rank's share of the agreement on an epoch.

    Attributes
    ----------
    epoch : Epoch
        Which one.
    complete : bool
        Whether its image is on disk.
    missed : bool
        Whether it passed the cut; then step and slot mean nothing.
    hung : bool
        Whether its storage hangs, so that it cannot be cut.
    drain_seconds, lost_seconds : float
        How long the drain took, and for how long the epoch blocked the program.
    errno : int
        Error number of the operating system if the epoch failed; 0 if there is none.
    pinned : int or None
        The slot that this rank is archiving.
    """

    epoch: Epoch
    complete: bool
    missed: bool = False
    hung: bool = False
    drain_seconds: float = 0.0
    lost_seconds: float = 0.0
    errno: int = 0
    pinned: int | None = None


@dataclass(slots=True)
class Commit:
    """The result of the agreement on an epoch.

    Attributes
    ----------
    complete : bool
        Whether it is complete on every rank.
    same_cut : bool
        Whether it is the same cut on all ranks: the same epoch, step and slot.
    missed : bool
        Whether a rank passed it.
    hung : bool
        Whether the storage of a rank hangs.
    departed : int or None
        A rank that left the session by an exception.
    drain_seconds, lost_seconds : float
        The longest of any rank.
    failed, errno : int or None, int
        The lowest rank on which it is not complete, and its error number, if there is one.
    pinned : int or None
        The slot that a rank is archiving.
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
    pinned: int | None = None


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
        """Start the agreement on an epoch; after the loss of a rank there is none."""
        if not is_lost():
            self._pending = self._post(share, _NOBODY)

    def post_leaving(self) -> None:
        """Tell the others in their next agreement that this rank has left, without waiting."""
        if not is_lost():
            self._post(Share(_NO_EPOCH, complete=False), self._rank)

    def _post(self, share: Share, departed: int) -> Pending:
        cut = [share.epoch.number, share.epoch.step, share.epoch.slot]
        least, greatest = ([_NOBODY] * 3, [_NOBODY] * 3) if share.missed else (cut, [-n for n in cut])
        costs = [-round(seconds * 1e6) for seconds in (share.drain_seconds, share.lost_seconds)]
        posted = next_of(self._shares)
        self.posted += 1
        failed = _NOBODY if share.complete else self._rank << _ERRNO_BITS | share.errno
        met = [share.complete, departed, not share.missed, not share.hung, failed]
        pinned = _NOBODY if share.pinned is None else share.pinned
        posted.kept[0][:] = [*met, pinned, *costs, *least, *greatest]
        posted.start()
        posted.test()
        return posted

    def tests(self) -> list[Callable[[], bool]]:
        """Return the tests that show whether `next` has a result; they stay the same until then."""
        return [] if self._pending is None else self._pending.tests()

    def next(self) -> Commit | None:
        """Return the result for the epoch that was posted; None if it is not there yet."""
        if self._pending is None or not self._pending.test():
            return None
        complete, departed, not_missed, not_hung, failed, pinned, drain, lost, *cut = self._pending.result.tolist()
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
            pinned=None if pinned == _NOBODY else pinned,
        )

    def finish(self, posted: int, wait: Callable[[Pending], object]) -> None:
        """Take part in agreements until there were `posted`, and free the communicator; collective."""
        while self.posted < posted:
            self._post(Share(_NO_EPOCH, complete=False), _NOBODY)
        for share in self._shares:
            wait(share)
        self.close()

    def close(self) -> None:
        """Free the communicator; collective, and nothing may be pending."""
        for share in self._shares:
            share.free()
        self._comm.Free()
