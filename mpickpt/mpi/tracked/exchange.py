"""Messages to some ranks, when no rank knows how many will come: the NBX algorithm, without waiting.

Each rank sends its messages by synchronous sends, which are complete when they are received, and receives whatever
comes. When its own sends are complete, it enters a non-blocking barrier; when that is complete, all sends of all ranks
were received. The cost is one message for each pair with something to send, and a barrier.

T. Hoefler, C. Siebert, A. Lumsdaine: Scalable Communication Protocols for Dynamic Sparse Data Exchange. PPoPP 2010.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mpi4py import MPI


class Exchange:
    """One exchange; all ranks of a communicator that is used for nothing else make one.

    Successive exchanges alternate between two communicators: a rank may begin the second while another has not noticed
    yet that the first is over. The third cannot begin before all have noticed.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The communicator.
    messages : mapping
        The bytes for each rank that gets a message.
    take : callable
        Called with the rank and the bytes of each message that came.
    """

    def __init__(self, comm: MPI.Intracomm, messages: Mapping[int, bytes], take: Callable[[int, bytes], None]) -> None:
        self._comm = comm
        self._take = take
        self._kept = dict(messages)
        self._sends = [comm.Issend([data, MPI.BYTE], rank, 0) for rank, data in self._kept.items()]
        self._coming: list[tuple[int, bytearray, MPI.Request]] = []
        self._barrier: MPI.Request | None = None

    def advance(self) -> bool:
        """Do what can be done without waiting; True when all messages from all ranks have come."""
        status = MPI.Status()
        while (message := self._comm.Improbe(MPI.ANY_SOURCE, 0, status)) is not None:
            data = bytearray(status.Get_count())
            self._coming.append((status.Get_source(), data, message.Irecv([data, MPI.BYTE])))
        left = []
        for rank, data, request in self._coming:
            if request.Test():
                self._take(rank, bytes(data))
            else:
                left.append((rank, data, request))
        self._coming = left
        if self._barrier is None:
            if not MPI.Request.Testall(self._sends):
                return False
            self._barrier = self._comm.Ibarrier()
        return bool(self._barrier.Test()) and not self._coming
