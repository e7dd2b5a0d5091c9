"""Receiving a message that a probe has matched, on a tracked communicator."""

from __future__ import annotations

from mpi4py import MPI

from mpickpt.mpi.tracked.buffers import Seen, Spec, plain
from mpickpt.mpi.tracked.requests import TrackedRequest
from mpickpt.mpi.tracked.tracked import Tracked

# A buffer; its memory if that is without gaps; otherwise the loopback's receive into it.
Target = tuple[Spec, memoryview | None, MPI.Request | None]


def prepare(comm: Tracked, buf: Spec) -> Target:
    """Prepare the target of a message; a buffer that cannot be received into is refused before a message comes."""
    memory = plain(buf)
    return buf, memory, None if memory is not None else comm.traffic.loopback.expect(buf)


def receive(
    comm: Tracked, message: MPI.Message, seen: Seen, stamp: int, target: Target, status: MPI.Status | None
) -> None:
    """Receive a message that was matched, and count it."""
    source, tag, size = seen
    buf, memory, expected = target
    if memory is not None and size <= len(memory):
        try:
            MPI.Message.Recv(message, buf, status)
        except MPI.Exception:  # the count was too small: the message is gone
            comm.note_received(source, tag, None, stamp)
            raise
        comm.note_received(source, tag, memory[:size], stamp)
        return
    data = bytearray(size)
    request = comm.traffic.loopback.expect(buf) if expected is None else expected
    MPI.Message.Recv(message, [data, MPI.PACKED])
    comm.note_received(source, tag, data, stamp)
    comm.traffic.loopback.supply(data)
    TrackedRequest.of(request, comm, origin=seen).Wait(status)
