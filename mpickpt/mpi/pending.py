"""Requests of MPI together with the memory that they use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI


class Pending:
    """A request, and the buffers that it uses until it is complete.

    Attributes
    ----------
    calls : int
        Calls of MPI that may be needed to notice that it is complete.
    """

    calls = 1

    def __init__(self, request: MPI.Request, result: NDArray[Any], *kept: NDArray[Any]) -> None:
        self.request = request
        self.result = result
        self.kept: Sequence[NDArray[Any]] = kept
        self.done = False

    def test(self) -> bool:
        """Return, without waiting, whether it is complete."""
        if not self.done:
            self.done = any(test() for test in self.tests())
        return self.done

    def tests(self) -> list[Callable[[], bool]]:
        """Return the tests to call, in this order, until one returns True; `test` then does so, too."""
        return [self.request.Test] * self.calls


class Repeated(Pending):
    """A request that is started repeatedly on the same buffers, each time after it is complete.

    It is persistent if the MPI library supports that (for collectives: MPI 4), which makes it cheaper to start.

    Parameters
    ----------
    prepare, post : callable
        The method of a communicator that makes a persistent request, and the one that starts a new request each time.
    *buffers : ndarray
        Arguments of both; the last is for the result.
    calls : int
        As for `Pending`; of a collective, `calls_of_collective`.
    **options
        Further arguments of both.
    """

    def __init__(
        self,
        prepare: Callable[..., MPI.Prequest],
        post: Callable[..., MPI.Request],
        *buffers: NDArray[Any],
        calls: int = 1,
        **options: MPI.Op | int,
    ) -> None:
        *self.kept, self.result = buffers
        self.calls = calls
        self.done = True
        self._post = partial(post, *buffers, **options)
        self._prepared: MPI.Prequest | None = None
        with suppress(NotImplementedError):
            self._prepared = prepare(*buffers, **options)

    def start(self) -> None:
        """Start it again."""
        if self._prepared is None:
            self.request = self._post()
        else:
            self.request = self._prepared
            self._prepared.Start()
        self.done = False

    def cancel(self) -> None:
        """Cancel a receive that gets no message."""
        if not self.test():
            self.request.Cancel()
            self.request.Wait()
            self.done = True

    def free(self) -> None:
        """Free the persistent request, when it is complete."""
        if self._prepared is not None:
            self._prepared.Free()


def calls_of_collective(size: int) -> int:
    """Return how many calls of MPI a rank of `size` may need to notice that its part of a collective has come.

    MPICH makes one step of its schedule per call: one more for each one in the binary number of the rank. Calls in a
    row cost little, because the first brings the code into the caches.
    """
    return size.bit_length()


def next_of(both: list[Repeated]) -> Repeated:
    """Return the one of two whose turn it is.

    The caller knows that its last use has ended on all ranks, so MPI is about to notice that here, too.
    """
    both.reverse()
    while not both[0].test():
        pass
    return both[0]


def abandon(kept: object) -> None:
    """Keep a request that nobody will wait for, or its owner, as long as the process lives.

    MPI may still write to its buffers, even in MPI_Finalize, which mpi4py calls when the interpreter has freed all
    else.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def reclaim(kept: object) -> None:
    """Release what was abandoned: its requests are complete."""
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(kept))
