"""A communicator that counts what goes over it, and is otherwise like any other.

Blocking calls are built from non-blocking ones: a send uses the non-blocking send; a receive polls for its message by a
matching probe, and then receives it. Between two polls the session does its work. A receive does not use the
non-blocking receive, because the memory guard would have to pin its buffer until the session ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import mpi4py
from mpi4py import MPI

from mpickpt.messages.inflight import Late
from mpickpt.mpi.tracked.buffers import Object, Seen, Spec, plain
from mpickpt.mpi.tracked.collectives import track_collectives
from mpickpt.mpi.tracked.messages import TrackedMessage
from mpickpt.mpi.tracked.receiving import prepare, receive
from mpickpt.mpi.tracked.requests import Posted, TrackedPrequest, TrackedRequest
from mpickpt.mpi.tracked.sends import Sends

ANY_SOURCE, ANY_TAG, PROC_NULL = MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.PROC_NULL
_improbe = MPI.Intracomm.Improbe

Status = MPI.Status


@track_collectives
class TrackedComm(Sends):
    """An intracommunicator whose messages may cross safe points.

    All point-to-point calls are tracked, upper and lower case, blocking, non-blocking and persistent, probes and
    matched messages. All collectives are counted, and begin when all ranks have come. Communicators from `Dup`,
    `Dup_with_info`, `Clone`, `Create`, `Split` and `Split_type` are tracked, too. They are identified by the number of
    their creation, so after a restart they must be created in the same order.

    Not tracked, and not to be used across a safe point: what `Idup`, `Idup_with_info`, `Create_group`,
    `Create_from_group`, `Create_cart`, `Create_graph`, `Create_dist_graph`, `Create_dist_graph_adjacent` and
    `Create_intercomm` make; partitioned messages; windows and files; ``MPI.Message.Probe(comm)`` and other calls that
    do not go through the methods of the communicator, among them those of other libraries. ``MPI.Request.Waitall`` and
    the like complete a request untracked, and ``MPI.Prequest.Startall`` starts one untracked: use
    ``type(request).Waitall`` and ``type(request).Startall``.

    Only one thread of a rank may call MPI at a time.
    """

    # -- receives ------------------------------------------------------------------------------------------------

    def _match(self, source: int, tag: int) -> tuple[MPI.Message, Seen, int]:
        """Wait for a message, and match it."""
        status = Status()
        message = _improbe(self, source, tag, status)
        if message is None:
            message = self.traffic.until(lambda: _improbe(self, source, tag, status))
        seen = status.Get_source(), status.Get_tag(), status.Get_count()
        return message, seen, self.traffic.ledger.stamp()

    def Recv(self, buf: Spec, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> None:
        """Blocking receive."""
        if source == PROC_NULL:
            return MPI.Intracomm.Recv(self, buf, source, tag, status)
        if self.traffic.replay.waiting and (late := self.restored(source, tag)) is not None:
            request, origin = self.replay(late, buf)
            TrackedRequest.of(request, self, origin=origin).Wait(status)
            return None
        target = prepare(self, buf)
        try:
            found = self._match(source, tag)
        except BaseException:
            if target[2] is not None:
                self.traffic.loopback.withdraw(target[2])
            raise
        return receive(self, *found, target, status)

    def recv(
        self, buf: Spec = None, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None
    ) -> Object:
        """Receive an object; `buf` is not used."""
        if source == PROC_NULL:
            return MPI.Intracomm.recv(self, None, source, tag, status)
        return self.mprobe(source, tag).recv(status)

    def Irecv(self, buf: Spec, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> TrackedRequest:
        """Nonblocking receive."""
        return self._irecv(MPI.Intracomm.Irecv, buf, source, tag)

    def irecv(self, buf: Spec = None, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> TrackedRequest:
        """Begin to receive an object of up to 32 KiB (``mpi4py.rc.irecv_bufsz``), or what fits the buffer."""
        if buf is None:
            buf = getattr(mpi4py.rc, "irecv_bufsz", 32768)  # mpi4py 4.0 has it as a constant
        return self._irecv(MPI.Intracomm.irecv, bytearray(buf) if isinstance(buf, int) else buf, source, tag)

    def _irecv(self, irecv: Callable[..., MPI.Request], buf: Spec, source: int, tag: int) -> TrackedRequest:
        late = self.restored(source, tag)
        if late is not None:
            request, origin = self.replay(late, buf, irecv)
            return TrackedRequest.of(request, self, origin=origin)
        request = irecv(self, buf, source, tag)
        if source == PROC_NULL:
            return TrackedRequest.of(request, self)
        stamp = self.traffic.ledger.stamp()
        return TrackedRequest.of(request, self, Posted(self, irecv.__name__, "receive", source, tag, plain(buf), stamp))

    def Recv_init(self, buf: Spec, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> TrackedPrequest:
        """Create a persistent request for a receive."""
        request = MPI.Intracomm.Recv_init(self, buf, source, tag)
        return TrackedPrequest.persistent(request, Posted(self, "Recv_init", "receive", source, tag, plain(buf)), buf)

    # -- both ----------------------------------------------------------------------------------------------------

    def Sendrecv(
        self,
        sendbuf: Spec,
        dest: int,
        sendtag: int = 0,
        recvbuf: Spec = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Send and receive a message."""
        request = self.Isend(sendbuf, dest, sendtag)
        self.Recv(recvbuf, source, recvtag, status)
        request.Wait()

    def Sendrecv_replace(
        self,
        buf: Spec,
        dest: int,
        sendtag: int = 0,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> None:
        """Send a message, and receive one into the same buffer."""
        self.Sendrecv([self.traffic.loopback.pack(buf), MPI.PACKED], dest, sendtag, buf, source, recvtag, status)

    def Isendrecv(
        self,
        sendbuf: Spec,
        dest: int,
        sendtag: int = 0,
        recvbuf: Spec = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
    ) -> TrackedRequest:
        """Begin to send and to receive a message."""
        request = self.Isend(sendbuf, dest, sendtag)
        return self.Irecv(recvbuf, source, recvtag).with_partner(request)

    def Isendrecv_replace(
        self, buf: Spec, dest: int, sendtag: int = 0, source: int = ANY_SOURCE, recvtag: int = ANY_TAG
    ) -> TrackedRequest:
        """Begin to send a message, and to receive one into the same buffer."""
        return self.Isendrecv([self.traffic.loopback.pack(buf), MPI.PACKED], dest, sendtag, buf, source, recvtag)

    def sendrecv(
        self,
        sendobj: Object,
        dest: int,
        sendtag: int = 0,
        recvbuf: Spec = None,
        source: int = ANY_SOURCE,
        recvtag: int = ANY_TAG,
        status: Status | None = None,
    ) -> Object:
        """Send and receive an object; `recvbuf` is not used."""
        request = self.isend(sendobj, dest, sendtag)
        came = self.recv(None, source, recvtag, status)
        request.Wait()
        return came

    # -- probes --------------------------------------------------------------------------------------------------

    def Iprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> bool:
        """Nonblocking test for a message."""
        late = self.restored(source, tag)
        if late is None:
            self.traffic.progress()
            return MPI.Intracomm.Iprobe(self, source, tag, status)
        if status is not None:
            _tell(status, self.local(late.source), late)
        return True

    def Probe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> Literal[True]:
        """Blocking test for a message."""
        self.traffic.until(lambda: self.Iprobe(source, tag, status))
        return True

    def Improbe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> MPI.Message | None:
        """Nonblocking test for a message, which is matched."""
        late = self.restored(source, tag)
        if late is not None:
            if status is not None:
                _tell(status, self.local(late.source), late)
            return TrackedMessage.replayed(late, self)
        self.traffic.progress()
        seen = Status() if status is None else status
        message = _improbe(self, source, tag, seen)
        if message is None or source == PROC_NULL:
            return message
        return TrackedMessage.matched(message, self, seen, self.traffic.ledger.stamp())

    def Mprobe(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> MPI.Message:
        """Blocking test for a message, which is matched."""
        found: list[MPI.Message] = []

        def ready() -> bool:
            message = self.Improbe(source, tag, status)
            found.extend([] if message is None else [message])
            return bool(found)

        self.traffic.until(ready)
        return found[0]

    iprobe, probe, improbe, mprobe = Iprobe, Probe, Improbe, Mprobe

    # -- communicators -------------------------------------------------------------------------------------------

    def Dup(self, info: MPI.Info | None = None) -> MPI.Intracomm:  # type: ignore[override]  # a TrackedComm
        """Duplicate the communicator."""
        self.arrive("Dup")
        return self.child(MPI.Intracomm(self).Dup(info))

    def Dup_with_info(self, info: MPI.Info) -> MPI.Intracomm:  # type: ignore[override]
        """Duplicate the communicator with hints."""
        self.arrive("Dup_with_info")
        return self.child(MPI.Intracomm(self).Dup_with_info(info))

    def Clone(self) -> MPI.Intracomm:  # type: ignore[override]
        """Clone the communicator."""
        self.arrive("Clone")
        return self.child(MPI.Intracomm(self).Clone())

    def Create(self, group: MPI.Group) -> MPI.Intracomm:
        """Create a communicator from a group."""
        self.arrive("Create")
        return self.child(MPI.Intracomm.Create(self, group))

    def Split(self, color: int = 0, key: int = 0) -> MPI.Intracomm:
        """Split the communicator by color and key."""
        self.arrive("Split")
        return self.child(MPI.Intracomm.Split(self, color, key))

    def Split_type(self, split_type: int, key: int = 0, info: MPI.Info = MPI.INFO_NULL) -> MPI.Intracomm:
        """Split the communicator by the kind of machine."""
        self.arrive("Split_type")
        return self.child(MPI.Intracomm.Split_type(self, split_type, key, info))

    def Idup(self, info: MPI.Info | None = None) -> tuple[MPI.Intracomm, MPI.Request]:  # type: ignore[override]
        """Begin to duplicate the communicator; the new one is not tracked."""
        self.count("Idup")
        return MPI.Intracomm(self).Idup(info)

    def Idup_with_info(self, info: MPI.Info) -> tuple[MPI.Intracomm, MPI.Request]:  # type: ignore[override]
        """Begin to duplicate the communicator with hints; the new one is not tracked."""
        self.count("Idup_with_info")
        return MPI.Intracomm(self).Idup_with_info(info)

    def Free(self) -> None:
        """Free the communicator."""
        self.count("Free")
        MPI.Intracomm.Free(self)

    def free(self) -> None:
        """Call `Free` if not null."""
        if self:
            self.Free()


def _tell(status: Status, source: int, late: Late) -> None:
    """Fill a status as a probe that found the message would."""
    status.Set_source(source)
    status.Set_tag(late.tag)
    status.Set_error(MPI.SUCCESS)
    status.Set_elements(MPI.BYTE, len(late.data))
    status.Set_cancelled(False)
