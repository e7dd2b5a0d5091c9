"""The sends of a tracked communicator: counted when they are posted, suppressed if they arrived before a restart."""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

from mpickpt.mpi.tracked.buffers import Object, Spec
from mpickpt.mpi.tracked.requests import Posted, TrackedPrequest, TrackedRequest
from mpickpt.mpi.tracked.tracked import Pack, Tracked

Isend = Callable[..., MPI.Request]


class Sends(Tracked):
    """A tracked communicator with all calls that only send."""

    def _send(self, isend: Isend, buf: Spec, dest: int, tag: int, pack: Pack | None = None) -> None:
        traffic = self.traffic
        if traffic.replay.suppresses and self.suppress(buf, dest, tag, pack):
            return
        request = isend(self, buf, dest, tag)
        if dest != MPI.PROC_NULL:
            self.note_sent(dest, tag)
        if not request.Test():
            try:
                traffic.until(request.Test)
            except BaseException:  # an interrupt: MPI still reads the buffer
                TrackedRequest.of(request, self, Posted(self, isend.__name__, "send", dest, tag))
                raise

    def _isend(self, isend: Isend, buf: Spec, dest: int, tag: int, pack: Pack | None = None) -> TrackedRequest:
        if self.suppress(buf, dest, tag, pack):
            return TrackedRequest.of(self.nothing(), self)
        request = isend(self, buf, dest, tag)
        if dest == MPI.PROC_NULL:
            return TrackedRequest.of(request, self)
        self.note_sent(dest, tag)
        return TrackedRequest.of(request, self, Posted(self, isend.__name__, "send", dest, tag))

    def _buffered(self, send: Callable[..., None], buf: Spec, dest: int, tag: int, pack: Pack | None = None) -> None:
        if not self.suppress(buf, dest, tag, pack):
            send(self, buf, dest, tag)
            if dest != MPI.PROC_NULL:
                self.note_sent(dest, tag)

    def _send_init(self, init: Callable[..., MPI.Prequest], buf: Spec, dest: int, tag: int) -> TrackedPrequest:
        call = Posted(self, init.__name__, "send", dest, tag)
        return TrackedPrequest.persistent(init(self, buf, dest, tag), call, buf)

    def Send(self, buf: Spec, dest: int, tag: int = 0) -> None:
        """Blocking send."""
        self._send(MPI.Intracomm.Isend, buf, dest, tag)

    def Ssend(self, buf: Spec, dest: int, tag: int = 0) -> None:
        """Blocking send in synchronous mode."""
        self._send(MPI.Intracomm.Issend, buf, dest, tag)

    def Rsend(self, buf: Spec, dest: int, tag: int = 0) -> None:
        """Blocking send in ready mode."""
        self._send(MPI.Intracomm.Irsend, buf, dest, tag)

    def Bsend(self, buf: Spec, dest: int, tag: int = 0) -> None:
        """Blocking send in buffered mode."""
        self._buffered(MPI.Intracomm.Bsend, buf, dest, tag)

    def Isend(self, buf: Spec, dest: int, tag: int = 0) -> TrackedRequest:
        """Nonblocking send."""
        return self._isend(MPI.Intracomm.Isend, buf, dest, tag)

    def Issend(self, buf: Spec, dest: int, tag: int = 0) -> TrackedRequest:
        """Nonblocking send in synchronous mode."""
        return self._isend(MPI.Intracomm.Issend, buf, dest, tag)

    def Irsend(self, buf: Spec, dest: int, tag: int = 0) -> TrackedRequest:
        """Nonblocking send in ready mode."""
        return self._isend(MPI.Intracomm.Irsend, buf, dest, tag)

    def Ibsend(self, buf: Spec, dest: int, tag: int = 0) -> TrackedRequest:
        """Nonblocking send in buffered mode."""
        return self._isend(MPI.Intracomm.Ibsend, buf, dest, tag)

    def Send_init(self, buf: Spec, dest: int, tag: int = 0) -> TrackedPrequest:
        """Create a persistent request for a standard send."""
        return self._send_init(MPI.Intracomm.Send_init, buf, dest, tag)

    def Ssend_init(self, buf: Spec, dest: int, tag: int = 0) -> TrackedPrequest:
        """Create a persistent request for a send in synchronous mode."""
        return self._send_init(MPI.Intracomm.Ssend_init, buf, dest, tag)  # type: ignore[arg-type]  # it is one

    def Rsend_init(self, buf: Spec, dest: int, tag: int = 0) -> TrackedPrequest:
        """Create a persistent request for a send in ready mode."""
        return self._send_init(MPI.Intracomm.Rsend_init, buf, dest, tag)  # type: ignore[arg-type]

    def Bsend_init(self, buf: Spec, dest: int, tag: int = 0) -> TrackedPrequest:
        """Create a persistent request for a send in buffered mode."""
        return self._send_init(MPI.Intracomm.Bsend_init, buf, dest, tag)  # type: ignore[arg-type]

    def send(self, obj: Object, dest: int, tag: int = 0) -> None:
        """Send an object."""
        self._send(MPI.Intracomm.isend, obj, dest, tag, MPI.pickle.dumps)

    def ssend(self, obj: Object, dest: int, tag: int = 0) -> None:
        """Send an object in synchronous mode."""
        self._send(MPI.Intracomm.issend, obj, dest, tag, MPI.pickle.dumps)

    def bsend(self, obj: Object, dest: int, tag: int = 0) -> None:
        """Send an object in buffered mode."""
        self._buffered(MPI.Intracomm.bsend, obj, dest, tag, MPI.pickle.dumps)

    def isend(self, obj: Object, dest: int, tag: int = 0) -> TrackedRequest:
        """Begin to send an object."""
        return self._isend(MPI.Intracomm.isend, obj, dest, tag, MPI.pickle.dumps)

    def issend(self, obj: Object, dest: int, tag: int = 0) -> TrackedRequest:
        """Begin to send an object in synchronous mode."""
        return self._isend(MPI.Intracomm.issend, obj, dest, tag, MPI.pickle.dumps)

    def ibsend(self, obj: Object, dest: int, tag: int = 0) -> TrackedRequest:
        """Begin to send an object in buffered mode."""
        return self._isend(MPI.Intracomm.ibsend, obj, dest, tag, MPI.pickle.dumps)
