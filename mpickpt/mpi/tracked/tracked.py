"""The base of a tracked communicator: its name, its ranks, its counts, and what a restart left to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

from mpi4py import MPI

from mpickpt.messages.inflight import Late
from mpickpt.messages.ledger import Channel, Data, Ledger
from mpickpt.messages.replay import Replay
from mpickpt.mpi.tracked.buffers import Loopback, Seen, Spec

Irecv = Callable[..., MPI.Request]
Pack = Callable[[Spec], bytes]
T = TypeVar("T")


class Unfinished(Protocol):
    """What is pending: a request, or a message that a probe has matched."""

    @property
    def stamp(self) -> int:
        """When a receive was posted."""

    def describe(self) -> str:
        """Name the call and its arguments."""

    def harmless(self) -> bool:
        """Whether it may stay pending at a cut."""

    def notice(self) -> None:
        """Check whether an untracked call has completed it."""

    def may_take(self, channel: Channel) -> bool:
        """Whether it is a receive that can match a message of the channel."""


class Books(Protocol):
    """What the communicators of a session share, as they see it; `Traffic` implements it."""

    rank: int
    group: MPI.Group
    ledger: Ledger
    replay: Replay
    loopback: Loopback

    def until(self, ready: Callable[[], T | None]) -> T:
        """Wait until `ready` returns something true, and return that."""

    def progress(self) -> None:
        """Advance the exchange of counts, if one is in progress."""

    def sent(self, channel: Channel) -> None:
        """Count a message that was sent."""

    def received(self, channel: Channel, data: Data | None, stamp: int) -> None:
        """Count a message that was received."""

    def called(self, path: str, name: str, neighbours: tuple[int, int]) -> None:
        """Count a collective call."""

    def track(self, comm: Tracked) -> None:
        """Note that there is one more tracked communicator."""

    def begin(self, request: Unfinished) -> None:
        """Note that something is pending."""

    def end(self, request: Unfinished) -> None:
        """Note that it is not pending any more."""

    def lose(self, what: str) -> None:
        """Note that a message can never be counted."""


class Tracked(MPI.Intracomm):
    """An intracommunicator that belongs to the traffic of a session.

    Attributes
    ----------
    traffic : Books
        The session's.
    path : str
        Its name, the same on all its ranks and after a restart: the numbers of the creations that led to it.
    """

    traffic: Books
    path: str
    _children: int
    _worlds: dict[int, int]
    _locals: dict[int, int]
    _ring: tuple[int, int] | None

    @classmethod
    def of(cls, comm: MPI.Comm, traffic: Books, path: str) -> Self:
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
        """Return the rank in the session of a rank of this communicator."""
        found = self._worlds.get(rank)
        if found is None:
            group = self.Get_group()
            found = self._worlds[rank] = group.Translate_ranks([rank], self.traffic.group)[0]
            group.Free()
        return found

    def local(self, world: int) -> int:
        """Return the rank in this communicator of a rank of the session."""
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
        """Track a communicator that was made from this one."""
        self._children += 1
        return self.of(comm, self.traffic, f"{self.path}/{self._children - 1}")

    def arrive(self, name: str) -> None:
        """Count a collective that all ranks call now, and wait for them."""
        self.count(name)
        self.traffic.until(MPI.Intracomm.Ibarrier(self).Test)

    # -- after a restart -----------------------------------------------------------------------------------------

    def restored(self, source: int, tag: int) -> Late | None:
        """Return the message to be replayed to a receive, if there is one."""
        replay = self.traffic.replay
        if not replay.waiting or source == MPI.PROC_NULL:
            return None
        world = None if source == MPI.ANY_SOURCE else self.world(source)
        return replay.find(self.path, world, None if tag == MPI.ANY_TAG else tag)

    def supply(self, late: Late, spec: Spec, receive: Irecv = MPI.Intracomm.Irecv) -> tuple[MPI.Request, Seen]:
        """Bring a message into a buffer by a real request; return that, and what its status is to show."""
        request = self.traffic.loopback.expect(spec, receive)
        self.traffic.loopback.supply(late.data)
        return request, (self.local(late.source), late.tag, len(late.data))

    def replay(self, late: Late, spec: Spec, receive: Irecv = MPI.Intracomm.Irecv) -> tuple[MPI.Request, Seen]:
        """Bring a message into a buffer, and take it out of those to be replayed."""
        found = self.supply(late, spec, receive)
        self.traffic.replay.take(late)
        return found

    def suppress(self, buf: Spec, dest: int, tag: int, pack: Pack | None = None) -> bool:
        """Suppress a send whose message arrived before the restart; return whether it did."""
        traffic = self.traffic
        if not traffic.replay.suppresses or dest == MPI.PROC_NULL:
            return False
        content = traffic.loopback.pack if pack is None else pack
        return traffic.replay.suppress(self.path, self.world(dest), tag, lambda: content(buf))

    def nothing(self) -> MPI.Request:
        """Return a complete request, for a send that is suppressed."""
        return MPI.Intracomm.Isend(self, [b"", MPI.BYTE], MPI.PROC_NULL)
