"""What a tracked communicator is beside its calls: its name, its ranks, its account, and what a restart left to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from mpi4py import MPI

from mpickpt.coordinator.buffers import Spec
from mpickpt.coordinator.requests import Seen
from mpickpt.inflight import Late

if TYPE_CHECKING:
    from mpickpt.coordinator.traffic import Traffic

Irecv = Callable[..., MPI.Request]
Pack = Callable[[Spec], bytes]


class Tracked(MPI.Intracomm):
    """An intracommunicator that belongs to the traffic of a session.

    Attributes
    ----------
    traffic : Traffic
        The session's.
    path : str
        Its name, the same on all its ranks and after a restart: the numbers of the creations that led to it.
    """

    traffic: Traffic
    path: str
    _children: int
    _worlds: dict[int, int]
    _locals: dict[int, int]
    _ring: tuple[int, int] | None

    @classmethod
    def of(cls, comm: MPI.Comm, traffic: Traffic, path: str) -> Self:
        """Track a communicator that mpi4py made; the null communicator stays what it is."""
        if not comm:
            return comm  # type: ignore[return-value]  # what Split gives without a color is typed so, too
        self = cls(comm)
        self.traffic, self.path, self._children = traffic, path, 0
        self._worlds, self._locals, self._ring = {}, {}, None
        traffic.track(self)
        return self

    # -- for requests and messages -------------------------------------------------------------------------------

    def world(self, rank: int) -> int:
        """Give the rank, among those that are saved together, of a rank of this communicator."""
        found = self._worlds.get(rank)
        if found is None:
            group = self.Get_group()
            found = self._worlds[rank] = group.Translate_ranks([rank], self.traffic.group)[0]
            group.Free()
        return found

    def local(self, world: int) -> int:
        """Give the rank in this communicator of one of those that are saved together."""
        found = self._locals.get(world)
        if found is None:
            group = self.Get_group()
            found = self._locals[world] = self.traffic.group.Translate_ranks([world], group)[0]
            group.Free()
        return found

    def note_sent(self, dest: int, tag: int) -> None:
        """Count a message that was sent."""
        self.traffic.sent((self.path, self.world(dest), int(tag)))  # it may be an integer of numpy

    def note_received(self, source: int, tag: int, data: memoryview | bytearray | None, stamp: int) -> None:
        """Count a message that was received."""
        self.traffic.received((self.path, self.world(source), tag), data, stamp)

    def count(self, name: str) -> None:
        """Count a collective call."""
        if self._ring is None:
            rank, size = self.Get_rank(), self.Get_size()
            self._ring = self.world((rank - 1) % size), self.world((rank + 1) % size)
        if self._ring[0] != self.traffic.rank:  # not alone
            self.traffic.called(self.path, name, self._ring)

    def child(self, comm: MPI.Comm) -> Self:
        """Track a communicator that was made of this one."""
        self._children += 1
        return self.of(comm, self.traffic, f"{self.path}/{self._children - 1}")

    def arrive(self, name: str) -> None:
        """Count a collective that all ranks call now, and wait for them."""
        self.count(name)
        self.traffic.until(MPI.Intracomm.Ibarrier(self).Test)

    # -- after a restart -----------------------------------------------------------------------------------------

    def restored(self, source: int, tag: int) -> Late | None:
        """Find the message that is to be served to a receive."""
        replay = self.traffic.replay
        if not replay.waiting or source == MPI.PROC_NULL:
            return None
        world = None if source == MPI.ANY_SOURCE else self.world(source)
        return replay.find(self.path, world, None if tag == MPI.ANY_TAG else tag)

    def supply(
        self, late: Late, spec: Spec, receive: Irecv = MPI.Intracomm.Irecv
    ) -> tuple[MPI.Request, Seen]:
        """Bring a message into a buffer, by a real request; give what is to be put in its status, too."""
        request = self.traffic.loopback.expect(spec, receive)
        self.traffic.loopback.supply(late.data)
        return request, (self.local(late.source), late.tag, len(late.data))

    def serve(
        self, late: Late, spec: Spec, receive: Irecv = MPI.Intracomm.Irecv
    ) -> tuple[MPI.Request, Seen]:
        """Bring a message into a buffer, and take it out of those that wait."""
        found = self.supply(late, spec, receive)
        self.traffic.replay.serve(late)
        return found

    def swallow(self, buf: Spec, dest: int, tag: int, pack: Pack | None = None) -> bool:
        """Swallow a send whose message arrived before the restart."""
        traffic = self.traffic
        if not traffic.replay.swallowing or dest == MPI.PROC_NULL:
            return False
        content = traffic.loopback.pack if pack is None else pack
        return traffic.replay.swallow(self.path, self.world(dest), tag, lambda: content(buf))

    def nothing(self) -> MPI.Request:
        """Give a request that is complete, for a send that is swallowed."""
        return MPI.Intracomm.Isend(self, [b"", MPI.BYTE], MPI.PROC_NULL)
