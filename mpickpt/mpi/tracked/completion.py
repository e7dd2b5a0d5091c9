"""Waits for several requests at once, some of them tracked, without blocking inside MPI.

The rules are those of MPI: null requests and inactive persistent ones count as complete in waits for all requests, and
are ignored in waits for some. Statuses are filled as mpi4py does, which extends the list if it is too short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mpi4py import MPI

from mpickpt.mpi.tracked.buffers import Object

T = TypeVar("T")

Requests = Sequence[MPI.Request]
Statuses = list[MPI.Status] | None


def wait_all(requests: Requests, statuses: Statuses) -> list[Any]:
    """Wait for all requests, and return the received objects."""
    seen = _fill(statuses, len(requests))

    def wait(request: MPI.Request, status: MPI.Status | None) -> Object:
        found: tuple[bool, Any] = request.test(status)
        if not found[0]:
            found = _until(requests, lambda: _or_none(request.test(status)))
        return found[1]

    return [wait(request, status) for request, status in zip(requests, seen, strict=True)]


def test_all(requests: Requests, statuses: Statuses) -> list[Any] | None:
    """Return the received objects if all requests are complete; otherwise None, and touch no request."""
    if not all([request.Get_status() for request in requests]):
        return None
    seen = _fill(statuses, len(requests))
    return [request.test(status)[1] for request, status in zip(requests, seen, strict=True)]


def wait_any(requests: Requests, status: MPI.Status | None) -> tuple[int, Any]:
    """Wait for one request; return its index and the received object."""
    index, _, came = _until(requests, lambda: found if (found := test_any(requests, status))[1] else None)
    return index, came


def test_any(requests: Requests, status: MPI.Status | None) -> tuple[int, bool, Any]:
    """Test for one complete request: its index, whether there is one (or nothing to wait for), the received object."""
    live = _live(requests)
    if not live:
        return (*MPI.Request.Testany([], status), None)
    for index in live:
        done, came = requests[index].test(status)
        if done:
            return index, True, came
    return MPI.UNDEFINED, False, None


def wait_some(requests: Requests, statuses: Statuses) -> tuple[list[int] | None, list[Any] | None]:
    """Wait until some requests are complete; return their indices and objects, None if there are no requests."""
    return _until(requests, lambda: found if (found := test_some(requests, statuses))[0] != [] else None)


def test_some(requests: Requests, statuses: Statuses) -> tuple[list[int] | None, list[Any] | None]:
    """Return the indices and objects of complete requests; None if there are no requests."""
    live = _live(requests)
    if not live:
        return None, None
    indices: list[int] = []
    came = []
    for index in live:
        status = None if statuses is None else MPI.Status() if len(indices) == len(statuses) else statuses[len(indices)]
        done, found = requests[index].test(status)
        if done:
            if statuses is not None and status is not None and len(indices) == len(statuses):
                statuses.append(status)
            indices.append(index)
            came.append(found)
    return indices, came


def _live(requests: Requests) -> list[int]:
    return [i for i, request in enumerate(requests) if getattr(request, "active", None) or _pending(request)]


def _pending(request: MPI.Request) -> bool:
    return not hasattr(request, "active") and bool(request)


def _fill(statuses: Statuses, count: int) -> list[MPI.Status] | list[None]:
    if statuses is None:
        return [None] * count
    statuses += [MPI.Status() for _ in range(len(statuses), count)]
    return statuses[:count]


def _or_none(found: tuple[bool, T]) -> tuple[bool, T] | None:
    return found if found[0] else None


def _until(requests: Requests, ready: Callable[[], T | None]) -> T:
    comm = next((found for request in requests if (found := getattr(request, "_comm", None)) is not None), None)
    if comm is not None:
        result: T = comm.traffic.until(ready)
        return result
    while (plain := ready()) is None:
        pass
    return plain
