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
        So many calls of MPI may be needed for what has come to be noticed.
    """

    calls = 1

    def __init__(self, request: MPI.Request, result: NDArray[Any], *kept: NDArray[Any]) -> None:
        self.request = request
        self.result = result
        self.kept: Sequence[NDArray[Any]] = kept
        self.done = False

    def test(self) -> bool:
        """Look, without waiting, whether it is complete."""
        if not self.done:
            self.done = any(test() for test in self.tests())
        return self.done

    def tests(self) -> list[Callable[[], bool]]:
        """Give what to call, in this order, until one says that it is complete; `test` then says so, too."""
        return [self.request.Test] * self.calls


class Repeated(Pending):
    """A request that is started again and again on the same buffers, each time when the last is complete.

    It is persistent where the MPI library has that (of collectives: MPI 4), as starting it then costs a fifth.

    Parameters
    ----------
    prepare, post : callable
        The method of a communicator that makes a persistent request, and the one that starts a new request each time.
    *buffers : ndarray
        What both take; the last is for the result.
    calls : int
        As for `Pending`; of a collective, `calls_of_collective`.
    **options
        What both take besides.
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
        """Take back a receipt that nothing will come for."""
        if not self.test():
            self.request.Cancel()
            self.request.Wait()
            self.done = True

    def free(self) -> None:
        """Give back what MPI keeps for it, when it is complete."""
        if self._prepared is not None:
            self._prepared.Free()


def calls_of_collective(size: int) -> int:
    """Say how many calls of MPI a rank of `size` may need to notice that its part of a collective has come.

    MPICH makes one step of its schedule at a call: one more for each one in the binary number of the rank. In a row
    they cost little, as the first has brought the code into the caches.
    """
    return size.bit_length()


def next_of(both: list[Repeated]) -> Repeated:
    """Give the one of two whose turn it is.

    The caller knows that its last use has come to an end on all ranks, so MPI is about to notice that here, too.
    """
    both.reverse()
    while not both[0].test():
        pass
    return both[0]


def abandon(kept: object) -> None:
    """Keep a request that nobody will wait for, or what has such requests, as long as the process lives.

    MPI may still write to its buffers, even in MPI_Finalize, which mpi4py calls when the interpreter has freed all
    else.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def reclaim(kept: object) -> None:
    """Keep no longer what was abandoned: its requests are complete."""
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(kept))
