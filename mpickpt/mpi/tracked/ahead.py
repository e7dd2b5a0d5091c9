"""Receiving ahead of the program: while it waits for a checkpoint, what comes on its tracked communicators is kept.

A blocking send of another rank may end only when its message is received, and an epoch is complete only when the
messages that were in flight at its cut are known. A rank that waits for either receives both: it keeps the messages
with those that a restart left to be served, so that they reach the program's next receives in their order, and are
saved with each epoch until then.
"""

from __future__ import annotations

from collections.abc import Iterable

from mpi4py import MPI

from mpickpt.messages.inflight import Late
from mpickpt.mpi.tracked.tracked import Tracked


def receive_ahead(communicators: Iterable[Tracked]) -> None:
    """Receive what has come, on each of the communicators, and keep it for the program."""
    status = MPI.Status()
    for comm in communicators:
        while (message := MPI.Intracomm.Improbe(comm, MPI.ANY_SOURCE, MPI.ANY_TAG, status)) is not None:
            source, tag, stamp = status.Get_source(), status.Get_tag(), comm.traffic.ledger.stamp()
            data = bytearray(status.Get_count())
            MPI.Message.Recv(message, [data, MPI.PACKED])
            comm.note_received(source, tag, data, stamp)
            comm.traffic.replay.load([Late(comm.path, comm.world(source), tag, bytes(data))], ())
