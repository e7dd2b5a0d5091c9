"""Communicators that can be revoked together with all that was made from them.

When a rank dies, a rank that communicates with it gets an error. Its neighbours wait for a rank that lives, but has left
the function by that error; they do not get one. So a rank that has lost another revokes all of its communicators, and
nobody who waits on one of them waits for ever. ULFM revokes one communicator, not those that were made from it: a
`Family` remembers them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from mpi4py import MPI

C = TypeVar("C", bound=type[MPI.Comm])

_MAKERS = (
    *("Dup", "Dup_with_info", "Clone", "Idup", "Idup_with_info", "Create", "Create_group", "Create_intercomm"),
    *("Split", "Split_type", "Create_cart", "Create_graph", "Create_dist_graph", "Create_dist_graph_adjacent"),
    *("Sub", "Merge"),
)


class Family:
    """A communicator, and those that were made from it and are still in use on this rank."""

    def __init__(self) -> None:
        self._members: list[weakref.ref[MPI.Comm]] = []

    def adopt(self, comm: MPI.Comm) -> Any:
        """Remember a communicator; return the object to use, whose own communicators are remembered, too."""
        if comm == MPI.COMM_NULL:
            return comm
        kind = _KINDS.get(type(comm))
        own: Any = comm if kind is None else kind(comm)
        own.family = self
        self._members = [member for member in self._members if member() is not None]
        self._members.append(weakref.ref(own))
        return own

    def revoke(self) -> None:
        """End all waiting, on all ranks, on the communicators of this family that this rank has."""
        for member in self._members:
            comm = member()
            if comm is not None and comm != MPI.COMM_NULL:  # as it is when it was freed
                with suppress(MPI.Exception):
                    comm.Revoke()


def _makes_relatives(kind: C) -> C:
    """Have a class remember what its methods make."""
    for name in _MAKERS:
        if hasattr(kind, name):
            setattr(kind, name, _remembering(getattr(kind, name)))
    return kind


def _remembering(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def remembering(self: Any, *args: Any, **options: Any) -> Any:
        made = make(self, *args, **options)
        if isinstance(made, tuple):  # of the non-blocking ones, with a request
            return self.family.adopt(made[0]), *made[1:]
        return self.family.adopt(made)

    return remembering


class _SafeSendrecv:
    """Calls that crash in Open MPI 5.0 on a revoked communicator when there is nothing to receive."""

    def Sendrecv(
        self: Any,
        sendbuf: Any,
        dest: int,
        sendtag: int = 0,
        recvbuf: Any = None,
        source: int = MPI.ANY_SOURCE,
        recvtag: int = MPI.ANY_TAG,
        status: MPI.Status | None = None,
    ) -> None:
        """Send and receive a message."""
        if source != MPI.PROC_NULL:
            MPI.Comm.Sendrecv(self, sendbuf, dest, sendtag, recvbuf, source, recvtag, status)
            return
        self.Send(sendbuf, dest, sendtag)
        self.Recv(recvbuf, source, recvtag, status)

    def Sendrecv_replace(
        self: Any,
        buf: Any,
        dest: int,
        sendtag: int = 0,
        source: int = MPI.ANY_SOURCE,
        recvtag: int = MPI.ANY_TAG,
        status: MPI.Status | None = None,
    ) -> None:
        """Send a message, and receive one into its place."""
        if source != MPI.PROC_NULL:
            MPI.Comm.Sendrecv_replace(self, buf, dest, sendtag, source, recvtag, status)
            return
        self.Send(buf, dest, sendtag)
        self.Recv(buf, source, recvtag, status)


@_makes_relatives
class Revocable(_SafeSendrecv, MPI.Intracomm):
    """An intracommunicator of a `Family`."""

    family: Family


@_makes_relatives
class _Cartesian(_SafeSendrecv, MPI.Cartcomm):
    family: Family


@_makes_relatives
class _Graph(_SafeSendrecv, MPI.Graphcomm):
    family: Family


@_makes_relatives
class _Distributed(_SafeSendrecv, MPI.Distgraphcomm):
    family: Family


@_makes_relatives
class _Inter(_SafeSendrecv, MPI.Intercomm):
    family: Family


_KINDS: dict[type[MPI.Comm], type[MPI.Comm]] = {
    MPI.Intracomm: Revocable,
    MPI.Cartcomm: _Cartesian,
    MPI.Graphcomm: _Graph,
    MPI.Distgraphcomm: _Distributed,
    MPI.Intercomm: _Inter,
}
