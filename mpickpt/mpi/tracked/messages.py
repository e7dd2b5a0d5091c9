"""Messages that a probe has matched, on tracked communicators."""

from __future__ import annotations

from mpi4py import MPI

from mpickpt.messages.inflight import Late
from mpickpt.messages.ledger import Channel
from mpickpt.mpi.tracked.buffers import Object, Spec, plain
from mpickpt.mpi.tracked.receiving import prepare, receive
from mpickpt.mpi.tracked.requests import Posted, TrackedRequest
from mpickpt.mpi.tracked.tracked import Tracked


class TrackedMessage(MPI.Message):
    """A message that a probe has matched, on a tracked communicator."""

    _comm: Tracked
    _late: Late | None = None
    _source = _tag = _size = stamp = 0

    @classmethod
    def matched(cls, message: MPI.Message, comm: Tracked, status: MPI.Status, stamp: int) -> TrackedMessage:
        """Track a message that mpi4py matched."""
        self = cls(message)
        self._comm, self.stamp = comm, stamp
        self._source, self._tag, self._size = status.Get_source(), status.Get_tag(), status.Get_count()
        comm.traffic.begin(self)
        return self

    @classmethod
    def replayed(cls, late: Late, comm: Tracked) -> TrackedMessage:
        """Take a message out of those to be replayed."""
        self = cls()
        self._comm, self._late = comm, late
        self._source, self._tag, self._size = comm.local(late.source), late.tag, len(late.data)
        comm.traffic.replay.take(late)
        comm.traffic.begin(self)
        return self

    def describe(self) -> str:
        """Name the call and the message."""
        return f"matched message (source {self._source}, tag {self._tag})"

    def harmless(self) -> bool:
        """Whether it may stay pending at a cut: never."""
        return False

    def notice(self) -> None:
        """Do nothing: no untracked call completes it."""

    def may_take(self, channel: Channel) -> bool:
        """Whether it is a message of the channel."""
        path, source, tag = channel
        return self._late is None and (self._comm.path, self._comm.world(self._source), self._tag) == (
            path,
            source,
            tag,
        )

    def Recv(self, buf: Spec, status: MPI.Status | None = None) -> None:
        """Receive the message."""
        comm = self._comm
        if self._late is not None:
            self._served(buf).Wait(status)
        else:
            target = prepare(comm, buf)
            comm.traffic.end(self)
            receive(comm, self, (self._source, self._tag, self._size), self.stamp, target, status)

    def recv(self, status: MPI.Status | None = None) -> Object:
        """Receive the message as an object."""
        data = bytearray(self._size)
        self.Recv([data, MPI.BYTE], status)
        return MPI.pickle.loads(data) if data else None

    def Irecv(self, buf: Spec) -> TrackedRequest:
        """Begin to receive the message."""
        comm = self._comm
        if self._late is not None:
            return self._served(buf)
        request = MPI.Message.Irecv(self, buf)
        comm.traffic.end(self)
        posted = Posted(comm, "Irecv of a message", "receive", self._source, self._tag, plain(buf), self.stamp)
        return TrackedRequest.of(request, comm, posted)

    def _served(self, buf: Spec) -> TrackedRequest:
        assert self._late is not None
        request, origin = self._comm.supply(self._late, buf)
        self._late = None
        self._comm.traffic.end(self)
        return TrackedRequest.of(request, self._comm, origin=origin)

    def irecv(self) -> TrackedRequest:
        """Begin to receive the message as an object."""
        data = bytearray(self._size)
        return self.Irecv([data, MPI.BYTE]).with_object(data)
