"""News: what rank 0 tells all ranks when it knows it, which they take in when they poll.

A message goes down the binomial tree of ranks on the communicator of the meetings, with a tag of its own: a broadcast
would have to be started on all ranks in the same order as the meetings. Nobody waits for one but at the end, and while
none is expected nothing is polled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mpickpt.mpi.pending import Pending
from mpickpt.protocol import children, parent

if TYPE_CHECKING:
    from mpi4py import MPI

_TAG = 2
_NUMBERS = 3  # in a message


class News:
    """One rank's end of it.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        A private communicator.

    Attributes
    ----------
    expected : int
        How many messages are still to come.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.expected = 0
        self._comm = comm
        self._receipt: Pending | None = None
        self._sent: list[Pending] = []

    def expect(self) -> None:
        """Expect one more message; on all ranks, before rank 0 may send it."""
        self.expected += 1
        self._listen()

    def tell(self, *numbers: int) -> None:
        """Send the next message from rank 0: three integers of 64 bits."""
        self.expected -= 1
        self._forward(np.array(numbers, np.int64))

    def tests(self) -> list[Callable[[], bool]]:
        """Return the tests that show whether `next` has something to return; the same until it is called again."""
        return [] if self._receipt is None else self._receipt.tests()

    def next(self) -> tuple[int, ...] | None:
        """Return the next message, without waiting; not on rank 0."""
        if self._sent:
            self._sent = [sent for sent in self._sent if not sent.test()]
        if self._receipt is None or not self._receipt.test():
            return None
        message, self._receipt = self._receipt.result, None
        self.expected -= 1
        self._forward(message)
        self._listen()
        return tuple(message.tolist())

    def finish(self, wait: Callable[[Pending], object]) -> None:
        """Take in what is still to come, and wait until all is sent."""
        while self._receipt is not None:
            wait(self._receipt)
            self.next()
        for sent in self._sent:
            wait(sent)
        self._sent.clear()

    def _listen(self) -> None:
        if self._comm.rank and self.expected and self._receipt is None:
            message = np.empty(_NUMBERS, np.int64)
            self._receipt = Pending(self._comm.Irecv(message, parent(self._comm.rank), _TAG), message)

    def _forward(self, message: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        for child in children(self._comm.rank, self._comm.size):
            self._sent.append(Pending(self._comm.Isend(message, child, _TAG), message))
