"""Requests of MPI together with the memory that they use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI


class Pending:
    """A request, and the buffers that it uses until it is complete."""

    def __init__(self, request: MPI.Request, result: NDArray[Any], *kept: NDArray[Any]) -> None:
        self.request = request
        self.result = result
        self.kept = kept
        self.done = False

    def test(self) -> bool:
        """Look, without waiting, whether it is complete."""
        if not self.done:
            self.done = bool(self.request.Test())
        return self.done


_abandoned: list[Pending] = []


def abandon(pending: Pending) -> None:
    """Keep the buffers of a request that nobody will wait for: MPI may still write to them."""
    _abandoned.append(pending)
