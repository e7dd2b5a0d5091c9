"""Receives ahead of the program: while it waits for a checkpoint, messages on its tracked communicators are kept.

A blocking send of another rank may end only when its message is received, and an epoch is complete only when the
messages that were in flight at its cut are known. So a rank that waits for a checkpoint receives all messages that
come. It keeps them with those that a restart has to replay: they reach the program's next receives in their order, and
are saved with each epoch until then.
"""

from __future__ import annotations

from collections.abc import Iterable

from mpi4py import MPI

from mpickpt.messages.inflight import Late
from mpickpt.mpi.tracked.tracked import Tracked


def receive_ahead(communicators: Iterable[Tracked]) -> None:
    """Receive the messages that have come on each communicator, and keep them for the program."""
    status = MPI.Status()
    for comm in communicators:
        while (message := MPI.Intracomm.Improbe(comm, MPI.ANY_SOURCE, MPI.ANY_TAG, status)) is not None:
            source, tag, stamp = status.Get_source(), status.Get_tag(), comm.traffic.ledger.stamp()
            data = bytearray(status.Get_count())
            MPI.Message.Recv(message, [data, MPI.PACKED])
            comm.note_received(source, tag, data, stamp)
            comm.traffic.replay.load([Late(comm.path, comm.world(source), tag, bytes(data))], ())
