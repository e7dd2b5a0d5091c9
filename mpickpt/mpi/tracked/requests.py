"""Requests of tracked communicators: requests of MPI that are counted when they complete.

They are handles like any other, so that calls of mpi4py that are written in C (``MPI.Request.Waitall``) accept them.
Such a call completes them untracked. That is noticed afterwards, and the message is counted; but its content is not
known then, and if source or tag were wildcards, neither is its channel. ``type(request).Waitall`` does the same, and is
tracked.

A message that is replayed after a restart comes by a loopback, as a real request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mpi4py import MPI

from mpickpt.messages.ledger import Channel
from mpickpt.mpi.tracked import completion
from mpickpt.mpi.tracked.buffers import Object, Seen, Spec
from mpickpt.mpi.tracked.tracked import Tracked


@dataclass(slots=True)
class Posted:
    """A pending call.

    Attributes
    ----------
    comm : Tracked
        Its communicator.
    name : str
        The call.
    kind : str
        "send", "receive" or "collective".
    peer, tag : int
        As the program gave them.
    memory : memoryview or None
        Where the message will be; None if it will have gaps there.
    stamp : int
        When a receive was posted.
    """

    comm: Tracked
    name: str
    kind: Literal["send", "receive", "collective"]
    peer: int = MPI.ANY_SOURCE
    tag: int = MPI.ANY_TAG
    memory: memoryview | None = None
    stamp: int = 0

    def describe(self) -> str:
        """Name the call and its arguments."""
        if self.kind == "collective":
            return f"{self.name} (communicator {self.comm.path})"
        peer = "any" if self.peer == MPI.ANY_SOURCE else self.peer
        tag = "any" if self.tag == MPI.ANY_TAG else self.tag
        where = "" if self.comm.path == "0" else f", communicator {self.comm.path}"
        return f"{self.name} ({'dest' if self.kind == 'send' else 'source'} {peer}, tag {tag}{where})"


class TrackedRequest(MPI.Request):
    """A request of a tracked communicator; its class methods wait for lists of requests of any kind."""

    _comm: Tracked
    _posted: Posted | None = None
    _origin: Seen | None = None  # of a message that comes by the loopback
    _stand_in: MPI.Request | None = None  # the real request of a persistent one that was replayed or suppressed
    _partner: MPI.Request | None = None  # the send of an Isendrecv
    _memory: bytearray | None = None  # of an object that mpi4py does not unpickle

    @classmethod
    def of(
        cls,
        request: MPI.Request,
        comm: Tracked,
        posted: Posted | None = None,
        *,
        origin: Seen | None = None,
    ) -> TrackedRequest:
        """Track a request that mpi4py made; `posted` is None if there is nothing to count."""
        self = cls(request)
        self._comm = comm
        self._origin = origin
        if posted is not None:
            self._post(posted)
        return self

    def with_partner(self, partner: MPI.Request) -> TrackedRequest:
        """Make it complete only when the partner is."""
        self._partner = partner
        return self

    def with_object(self, memory: bytearray) -> TrackedRequest:
        """Make it return the object that is pickled in `memory`."""
        self._memory = memory
        return self

    def _post(self, posted: Posted) -> None:
        self._posted = posted
        self._comm.traffic.begin(self)

    # -- for the traffic -----------------------------------------------------------------------------------------

    @property
    def stamp(self) -> int:
        """When the receive was posted."""
        return 0 if self._posted is None else self._posted.stamp

    @property
    def active(self) -> bool:
        """Whether a wait for it would find something to wait for, or a result."""
        return bool(self)

    def describe(self) -> str:
        """Name the call and its arguments."""
        return "request" if self._posted is None else self._posted.describe()

    def harmless(self) -> bool:
        """Whether it may stay pending at a cut: a send whose message is on its way, waited for or not."""
        posted = self._posted
        return posted is None or (posted.kind == "send" and (not self or MPI.Request.Get_status(self)))

    def may_take(self, channel: Channel) -> bool:
        """Whether it is a pending receive that can match a message of the channel."""
        path, source, tag = channel
        posted = self._posted
        return (
            posted is not None
            and posted.kind == "receive"
            and posted.comm.path == path
            and posted.tag in (MPI.ANY_TAG, tag)
            and (posted.peer == MPI.ANY_SOURCE or posted.comm.world(posted.peer) == source)
        )

    def notice(self) -> None:
        """Check whether an untracked call has completed it."""
        if self._posted is not None and self._was_completed():
            self._finish(MPI.Status())

    def _was_completed(self) -> bool:
        return not self

    def _finish(self, seen: MPI.Status, *, failed: bool = False) -> None:
        """Count what is complete; `seen` is an empty status after an untracked call."""
        posted, self._posted = self._posted, None
        self._stand_in = self._origin = None
        if posted is None:
            return
        self._comm.traffic.end(self)
        if posted.kind != "receive" or seen.Is_cancelled():
            return
        source, tag = seen.Get_source(), seen.Get_tag()
        data = None
        if source == MPI.ANY_SOURCE:
            source, tag = posted.peer, posted.tag
        elif not failed and posted.memory is not None and (size := seen.Get_count()) <= len(posted.memory):
            data = posted.memory[:size]
        if source == MPI.ANY_SOURCE or tag == MPI.ANY_TAG:
            self._comm.traffic.lose(f"its {posted.describe()} was completed by MPI.Request.Waitall or the like")
        else:
            self._comm.note_received(source, tag, data, posted.stamp)

    # -- completion ----------------------------------------------------------------------------------------------

    def _look(self, test: Callable[..., Object], status: MPI.Status | None) -> Object:
        """Call one of MPI's tests; return its result if that means complete, False otherwise."""
        if self._posted is not None and not self:
            self.notice()
        if self._partner is not None and not self._partner.Test():
            return False
        real = self if self._stand_in is None else self._stand_in
        seen = MPI.Status() if status is None else status
        try:
            found = test(real, seen)
        except MPI.Exception:
            self._finish(seen, failed=True)
            raise
        if not (found[0] if isinstance(found, tuple) else found):
            self._comm.traffic.progress()
            return False
        origin = self._origin
        self._finish(seen)
        if origin is not None:
            seen.Set_source(origin[0])
            seen.Set_tag(origin[1])
            if seen.Get_count() < origin[2]:  # Open MPI does not say so for messages to oneself
                raise MPI.Exception(MPI.ERR_TRUNCATE)
        if self._memory is not None and test is MPI.Request.test:
            return True, MPI.pickle.loads(self._memory) if self._memory else None
        return found

    def Test(self, status: MPI.Status | None = None) -> bool:
        """Test for the completion of a non-blocking operation."""
        return bool(self._look(MPI.Request.Test, status))

    def test(self, status: MPI.Status | None = None) -> tuple[bool, Any | None]:
        """Test for the completion of a non-blocking operation; return the received object, too."""
        found: tuple[bool, Any | None] = self._look(MPI.Request.test, status) or (False, None)
        return found

    def Wait(self, status: MPI.Status | None = None) -> Literal[True]:
        """Wait for a non-blocking operation to complete."""
        self._comm.traffic.until(lambda: self.Test(status))
        return True

    def wait(self, status: MPI.Status | None = None) -> Object:
        """Wait for a non-blocking operation to complete, and return the received object."""
        return self._comm.traffic.until(lambda: self._look(MPI.Request.test, status))[1]

    def Get_status(self, status: MPI.Status | None = None) -> bool:
        """Test for completion, and leave the request as it is."""
        real = self if self._stand_in is None else self._stand_in
        done = MPI.Request.Get_status(real, status) and (self._partner is None or self._partner.Get_status())
        if done and self._origin is not None and status is not None:
            status.Set_source(self._origin[0])
            status.Set_tag(self._origin[1])
        self._comm.traffic.progress()
        return done

    def get_status(self, status: MPI.Status | None = None) -> bool:
        """Test for completion, and leave the request as it is."""
        return self.Get_status(status)

    def Free(self) -> None:
        """Free the request; the message of a receive that is freed while it is pending can never be counted."""
        self.notice()
        posted, self._posted = self._posted, None
        if posted is not None:
            self._comm.traffic.end(self)
            if posted.kind == "receive":
                self._comm.traffic.lose(f"its {posted.describe()} was freed while it was pending")
        MPI.Request.Free(self)

    def free(self) -> None:
        """Call `Free` if not null."""
        if self:
            self.Free()

    # -- several requests ----------------------------------------------------------------------------------------

    @classmethod
    def Waitall(cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None) -> Literal[True]:
        """Wait for all requests."""
        completion.wait_all(requests, statuses)
        return True

    @classmethod
    def waitall(cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None) -> list[Any]:
        """Wait for all requests, and return the received objects."""
        return completion.wait_all(requests, statuses)

    @classmethod
    def Testall(cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None) -> bool:
        """Test whether all requests are complete; if not, none is touched."""
        return completion.test_all(requests, statuses) is not None

    @classmethod
    def testall(
        cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None
    ) -> tuple[bool, list[Any] | None]:
        """Test whether all requests are complete, and return the received objects; if not, none is touched."""
        found = completion.test_all(requests, statuses)
        return found is not None, found

    @classmethod
    def Waitany(cls, requests: Sequence[MPI.Request], status: MPI.Status | None = None) -> int:
        """Wait for one of the requests, and return its index."""
        return completion.wait_any(requests, status)[0]

    @classmethod
    def waitany(cls, requests: Sequence[MPI.Request], status: MPI.Status | None = None) -> tuple[int, Any]:
        """Wait for one of the requests, and return its index and the received object."""
        return completion.wait_any(requests, status)

    @classmethod
    def Testany(cls, requests: Sequence[MPI.Request], status: MPI.Status | None = None) -> tuple[int, bool]:
        """Test whether one of the requests is complete, and return its index."""
        return completion.test_any(requests, status)[:2]

    @classmethod
    def testany(cls, requests: Sequence[MPI.Request], status: MPI.Status | None = None) -> tuple[int, bool, Any | None]:
        """Test whether one of the requests is complete, and return its index and the received object."""
        return completion.test_any(requests, status)

    @classmethod
    def Waitsome(cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None) -> list[int] | None:
        """Wait until some of the requests are complete, and return their indices."""
        return completion.wait_some(requests, statuses)[0]

    @classmethod
    def waitsome(
        cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Wait until some of the requests are complete, and return their indices and the received objects."""
        return completion.wait_some(requests, statuses)

    @classmethod
    def Testsome(cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None) -> list[int] | None:
        """Test which of the requests are complete, and return their indices."""
        return completion.test_some(requests, statuses)[0]

    @classmethod
    def testsome(
        cls, requests: Sequence[MPI.Request], statuses: list[MPI.Status] | None = None
    ) -> tuple[list[int] | None, list[Any] | None]:
        """Test which of the requests are complete, and return their indices and the received objects."""
        return completion.test_some(requests, statuses)


class TrackedPrequest(TrackedRequest, MPI.Prequest):
    """A persistent request of a tracked communicator: counted each time it is started."""

    _call: Posted
    _spec: Spec = None

    @classmethod
    def persistent(cls, request: MPI.Prequest, call: Posted, spec: Spec = None) -> TrackedPrequest:
        """Track a persistent request that mpi4py made, of a send, receive or collective."""
        self = cls(request)
        self._comm = call.comm
        self._call = call
        self._spec = spec
        return self

    @property
    def active(self) -> bool:
        """Whether it is started, and not complete."""
        return self._posted is not None or self._stand_in is not None

    def _finish(self, seen: MPI.Status, *, failed: bool = False) -> None:
        """Count what is complete, even if an untracked call started it."""
        call, unnoticed = self._call, self._posted is None and self._stand_in is None
        if unnoticed and call.kind == "receive" and seen.Get_source() >= 0:
            self._posted = replace(call, stamp=self._comm.traffic.ledger.stamp())
        super()._finish(seen, failed=failed)

    def _was_completed(self) -> bool:
        if not self:
            return True
        status = MPI.Status()  # that of an inactive request is empty
        return MPI.Request.Get_status(self, status) and status.Get_source() == MPI.ANY_SOURCE

    def Start(self) -> None:
        """Start the communication."""
        call, comm = self._call, self._comm
        self.notice()
        self._origin = None
        if call.kind == "receive":
            late = comm.restored(call.peer, call.tag)
            if late is not None:
                self._stand_in, self._origin = comm.replay(late, self._spec)
                return
            call.stamp = comm.traffic.ledger.stamp()
        elif call.kind == "send" and comm.suppress(self._spec, call.peer, call.tag):
            self._stand_in = comm.nothing()
            return
        MPI.Prequest.Start(self)
        if call.peer == MPI.PROC_NULL:
            return
        if call.kind == "send":
            comm.note_sent(call.peer, call.tag)
        elif call.kind == "collective":
            comm.count(call.name)
        self._post(replace(call))

    @classmethod
    def Startall(cls, requests: list[MPI.Prequest]) -> None:
        """Start some persistent requests."""
        for request in requests:
            request.Start()
