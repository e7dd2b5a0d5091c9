"""The messages of a round: requests up a tree of ranks, a marker to all, and the maximum of all proposals.

They have their own duplicate of the communicator. Its collectives alternate: marker, answer, marker, answer, …, each
started without waiting. Every rank but rank 0 always has the receive of the next marker posted. There are two requests
of each kind, which take turns, so that a rank that leaves can start the next ones while the last are on their way. For
messages up the tree a receive from each child is always posted. Only `close` and `finish` wait; what came is returned
as events of `mpickpt.protocol`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpickpt.mpi.pending import Pending, Repeated, calls_of_collective, next_of
from mpickpt.protocol import Agreed, BelowClosed, BelowDeparted, Ended, Event, Marked, RequestedBelow, children, parent
from mpickpt.protocol.policy import NEVER

if TYPE_CHECKING:
    from mpi4py import MPI

_CUT, _STOP, _END = 0, 1, 2  # markers
_REQUEST, _CLOSED, _DEPARTED, _LAST = 0, 1, 2, 3  # messages up the tree
_NOBODY = -1


class Rounds:
    """One rank's end of the rounds; creating it is collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The ranks of the session.
    maximum : mpi4py.MPI.Op
        MPI.MAX.
    """

    def __init__(self, comm: MPI.Intracomm, maximum: MPI.Op) -> None:
        self._comm = comm = comm.Dup()
        calls = calls_of_collective(comm.size)
        self._markers = [Repeated(comm.Bcast_init, comm.Ibcast, _pair(), calls=calls, root=0) for _ in range(2)]
        self._answers = [
            Repeated(comm.Allreduce_init, comm.Iallreduce, _pair(), _pair(), calls=calls, op=maximum) for _ in range(2)
        ]
        self._receipts = [
            Repeated(comm.Recv_init, comm.Irecv, np.empty(3, np.int64), source=child)
            for child in children(comm.rank, comm.size)
        ]
        self._rank: int = comm.rank
        self._answer: Repeated | None = None  # that is awaited
        self._marker: Repeated | None = None  # that is listened for
        self._sent: list[Pending] = []
        self.calls = 0  # of collectives: markers and answers, in turn
        for receipt in self._receipts:
            receipt.start()
        if self._rank != 0:
            self._listen()

    # -- sending -------------------------------------------------------------------------------------------------

    def announce(self, *, stop: bool) -> None:
        """Send the marker to all; on rank 0."""
        self._broadcast(_STOP if stop else _CUT, _NOBODY)

    def announce_end(self, departed: int | None) -> None:
        """Tell all that no more markers will come, and which rank left the session by an exception; on rank 0."""
        self._broadcast(_END, _NOBODY if departed is None else departed)

    def propose(self, step: int) -> None:
        """Post this rank's share of the answer, and listen for the next marker."""
        self._answer = self._post_share(step, _NOBODY)
        if self._rank != 0:
            self._listen()

    def forward(self, rounds: int, *, stop: bool) -> None:
        """Send a request to the parent."""
        self._send_up(_REQUEST, rounds, int(stop))

    def say_closed(self) -> None:
        """Tell the parent that this rank, and all below it, are closing."""
        self._send_up(_CLOSED, 0, 0)

    def forward_departure(self, rank: int) -> None:
        """Tell the parent that `rank` has left the session by an exception."""
        self._send_up(_DEPARTED, rank, 0)

    def _broadcast(self, kind: int, departed: int) -> None:
        marker = next_of(self._markers)
        marker.result[0], marker.result[1] = kind, departed
        marker.start()
        self.calls += 1

    def _post_share(self, step: int, departed: int) -> Repeated:
        answer = next_of(self._answers)
        own = answer.kept[0]
        own[0], own[1] = step, departed
        answer.start()
        self.calls += 1
        return answer

    def _send_up(self, *content: int) -> None:
        message = np.array(content, np.int64)
        self._sent.append(Pending(self._comm.Isend(message, parent(self._rank)), message))

    def _listen(self) -> None:
        self._marker = next_of(self._markers)
        self._marker.start()
        self.calls += 1

    # -- what came -----------------------------------------------------------------------------------------------

    def tests(self) -> list[Callable[[], bool]]:
        """Return the tests that show whether `next_event` has something to do; the same until it is called again."""
        awaited = self._marker if self._answer is None else self._answer
        pending = [*self._sent, *self._receipts, *([] if awaited is None else [awaited])]
        return [test for one in pending for test in one.tests()]

    def next_event(self) -> Event | None:
        """Return the next event, without waiting; this also advances what is on its way through this rank."""
        if self._sent:
            self._sent = [pending for pending in self._sent if not pending.test()]
        if self._answer is not None:
            if self._answer.test():
                step, departed = self._answer.result.tolist()
                self._answer = None
                return Agreed(step, None if departed == _NOBODY else departed, time.perf_counter())
        elif self._marker is not None and self._marker.test():
            kind, departed = self._marker.result.tolist()
            self._marker = None
            if kind == _END:
                return Ended(None if departed == _NOBODY else departed)
            return Marked(kind == _STOP, time.perf_counter())
        return self._from_below()

    def _from_below(self) -> Event | None:
        for receipt in self._receipts:
            if receipt.test():
                kind, number, flag = receipt.result.tolist()
                receipt.start()
                if kind == _REQUEST:
                    return RequestedBelow(number, bool(flag))
                return BelowClosed() if kind == _CLOSED else BelowDeparted(number)
        return None

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self, wait: Callable[[Pending], object]) -> None:
        """Free the communicator, when `Ended` came or was announced; collective."""
        for pending in (*self._sent, *self._markers):
            wait(pending)
        self._sent.clear()
        for receipt in self._receipts:
            receipt.cancel()
        for repeated in (*self._markers, *self._answers, *self._receipts):
            repeated.free()
        self._comm.Free()

    def leave(self) -> None:
        """Answer the next marker in advance, as this rank will not be there; the caller keeps what is pending."""
        if self._marker is not None:
            self._post_share(NEVER, self._rank)

    def finish(self, calls: int, wait: Callable[[Pending], object]) -> None:
        """Free the communicator when all ranks have called `leave`; the most `calls` that one made; collective."""
        while self.calls < calls:
            if self.calls % 2 == 1:
                self._post_share(NEVER, self._rank)
            elif self._rank == 0:
                self._broadcast(_END, _NOBODY)
            else:
                self._listen()
        if self._rank != 0:
            self._send_up(_LAST, 0, 0)
        for receipt in self._receipts:
            wait(receipt)
            while receipt.result[0] != _LAST:
                receipt.start()
                wait(receipt)
        for answer in self._answers:
            wait(answer)
        self.close(wait)


def _pair() -> NDArray[np.int64]:
    return np.empty(2, np.int64)
