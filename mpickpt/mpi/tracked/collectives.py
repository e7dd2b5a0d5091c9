"""Collectives of tracked communicators: counted, and without blocking inside MPI while a rank has not come.

A blocking collective first waits for all ranks by a non-blocking barrier, and then calls MPI's own. So its results are
the same to the last bit as without mpickpt (the non-blocking forms may add in another order), and the memory guard need
not pin its buffers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from mpi4py import MPI

from mpickpt.mpi.tracked.buffers import Object
from mpickpt.mpi.tracked.requests import Posted, TrackedPrequest, TrackedRequest
from mpickpt.mpi.tracked.tracked import Tracked

C = TypeVar("C", bound=type)

_WITH_BUFFERS = (
    "Bcast Gather Gatherv Scatter Scatterv Allgather Allgatherv Alltoall Alltoallv Alltoallw Reduce Allreduce "
    "Reduce_scatter_block Reduce_scatter Scan Exscan"
).split()
_OF_OBJECTS = "bcast gather scatter allgather alltoall reduce allreduce scan exscan".split()
_MAKERS = (
    "Create_cart Create_graph Create_dist_graph Create_dist_graph_adjacent Create_intercomm Cart_map Graph_map Spawn "
    "Spawn_multiple Accept Connect Disconnect"
).split()

Method = Callable[..., Any]


def track_collectives(cls: C) -> C:
    """Replace the collectives of a class of communicators by counting ones."""
    for name in (*_WITH_BUFFERS, *_OF_OBJECTS, *_MAKERS):
        setattr(cls, name, _blocking(name, getattr(MPI.Intracomm, name)))
    for name in ("Barrier", "barrier"):
        setattr(cls, name, _barrier(name, getattr(MPI.Intracomm, name)))
    for name in ("Barrier", *_WITH_BUFFERS):
        nonblocking, persistent = "I" + name.lower(), name + "_init"
        setattr(cls, nonblocking, _nonblocking(nonblocking, getattr(MPI.Intracomm, nonblocking)))
        setattr(cls, persistent, _persistent(persistent, getattr(MPI.Intracomm, persistent)))
    return cls


def _blocking(name: str, method: Method) -> Method:
    @functools.wraps(method)
    def call(self: Tracked, *args: Object, **options: Object) -> Object:
        self.arrive(name)
        return method(self, *args, **options)

    return call


def _barrier(name: str, method: Method) -> Method:
    @functools.wraps(method)
    def call(self: Tracked) -> None:
        self.arrive(name)

    return call


def _nonblocking(name: str, method: Method) -> Method:
    @functools.wraps(method)
    def call(self: Tracked, *args: Object, **options: Object) -> TrackedRequest:
        request = method(self, *args, **options)
        self.count(name)
        return TrackedRequest.of(request, self, Posted(self, name, "collective"))

    return call


def _persistent(name: str, method: Method) -> Method:
    @functools.wraps(method)
    def call(self: Tracked, *args: Object, **options: Object) -> TrackedPrequest:
        return TrackedPrequest.persistent(method(self, *args, **options), Posted(self, name, "collective"))

    return call
