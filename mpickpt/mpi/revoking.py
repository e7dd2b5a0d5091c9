"""Revoking all communicators of a process, and calls that survive this.

When a rank dies, a rank that communicates with it gets an error. Its neighbours wait for a rank that lives, but has
left the program's function by that error; they do not get one. So a rank that has lost another revokes its
communicators, and nobody who waits on one of them waits for ever. ULFM revokes a communicator, not those that were made
from it, some of which no program sees: mpi4py has one for the reductions of objects. MPI's table of Fortran handles has
all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from mpi4py import MPI

C = TypeVar("C", bound=type[MPI.Comm])
Anything = Any  # what mpi4py takes and gives, which it checks itself

_MAKERS = (
    *("Dup", "Dup_with_info", "Clone", "Idup", "Idup_with_info", "Create", "Create_group", "Create_intercomm"),
    *("Split", "Split_type", "Create_cart", "Create_graph", "Create_dist_graph", "Create_dist_graph_adjacent"),
    *("Sub", "Merge"),
)
_UNUSED_HANDLES = 1000  # in a row, after which there are no more: MPI gives the lowest one that is free


def revoke_all(keep: Sequence[MPI.Comm]) -> None:
    """End all waiting, on all ranks, on the communicators that this process has, but those in `keep`."""
    spared = [MPI.COMM_SELF, MPI.COMM_NULL, *keep]
    number = unused = 0
    while unused < _UNUSED_HANDLES:
        try:
            comm = MPI.Comm.f2py(number)
        except MPI.Exception:
            unused += 1
        else:
            unused = 0
            if comm not in spared and not comm.Is_revoked():
                with suppress(MPI.Exception):
                    comm.Revoke()
        number += 1


def _makes_safe_ones(kind: C) -> C:
    """Have the communicators that a class makes be of these classes, too."""
    for name in _MAKERS:
        if hasattr(kind, name):
            setattr(kind, name, _making_safe_ones(getattr(kind, name)))
    return kind


def _making_safe_ones(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def making(self: MPI.Comm, *args: Anything, **options: Anything) -> Anything:
        made = make(self, *args, **options)
        if isinstance(made, tuple):  # of the non-blocking ones, with a request
            return safe(made[0]), *made[1:]
        return safe(made)

    return making


class _SafeSendrecv:
    """Calls that crash in Open MPI 5.0 on a revoked communicator when there is nothing to receive."""

    def Sendrecv(
        self: Any,
        sendbuf: Anything,
        dest: int,
        sendtag: int = 0,
        recvbuf: Anything = None,
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
        buf: Anything,
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


@_makes_safe_ones
class SafeIntracomm(_SafeSendrecv, MPI.Intracomm):
    """An intracommunicator that may be revoked while it is used."""


@_makes_safe_ones
class _SafeCartcomm(_SafeSendrecv, MPI.Cartcomm):
    pass


@_makes_safe_ones
class _SafeGraphcomm(_SafeSendrecv, MPI.Graphcomm):
    pass


@_makes_safe_ones
class _SafeDistgraphcomm(_SafeSendrecv, MPI.Distgraphcomm):
    pass


@_makes_safe_ones
class _SafeIntercomm(_SafeSendrecv, MPI.Intercomm):
    pass


_SAFE: dict[type[MPI.Comm], type[MPI.Comm]] = {
    MPI.Intracomm: SafeIntracomm,
    MPI.Cartcomm: _SafeCartcomm,
    MPI.Graphcomm: _SafeGraphcomm,
    MPI.Distgraphcomm: _SafeDistgraphcomm,
    MPI.Intercomm: _SafeIntercomm,
}


def safe(comm: MPI.Comm) -> Anything:
    """Return an object to use for a communicator that may be revoked; what it makes is safe as well."""
    kind = _SAFE.get(type(comm))
    return comm if kind is None or comm == MPI.COMM_NULL else kind(comm)
