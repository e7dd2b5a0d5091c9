"""The content of messages, for any kind of buffer of the program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpi4py import MPI

Spec = Any  # a buffer specification; mpi4py itself reports what is wrong with one
Object = Any  # whatever can be pickled
Seen = tuple[int, int, int]  # source, tag, and bytes of a message


def plain(spec: Spec) -> memoryview | None:
    """Return the memory of a buffer specification of mpi4py, if a message lies in it from the start without gaps.

    None for everything else (derived datatypes, displacements, memory of a GPU), and for what cannot be received into.
    """
    if isinstance(spec, list | tuple):
        match spec:
            case (memory, int()):
                kind = None
            case (memory, kind) | (memory, int() | None, kind):
                pass
            case _:
                return None
        if isinstance(kind, str):
            kind = _by_code(kind)
        if kind is not None and not (isinstance(kind, MPI.Datatype) and _without_gaps(kind)):
            return None
        spec = memory
    try:
        return memoryview(MPI.buffer.frombuffer(spec))  # type: ignore[arg-type]  # Python 3.12 knows that it can
    except (TypeError, ValueError, BufferError):
        return None


def _by_code(code: str) -> MPI.Datatype:
    try:
        return MPI.Datatype.fromcode(code)
    except (ValueError, KeyError):
        return MPI.DATATYPE_NULL


def _without_gaps(kind: MPI.Datatype) -> bool:
    return kind != MPI.DATATYPE_NULL and kind.is_predefined and kind.size == kind.extent


class Loopback:
    """Messages of a rank to itself, by which MPI turns buffers into bytes and back, with all its checks.

    A message sent with any datatype may be received as PACKED, and bytes sent as PACKED may be received with any
    datatype (MPI 4.1, section 5.2).
    """

    def __init__(self) -> None:
        self._comm = MPI.COMM_SELF.Dup()
        self._sending: list[tuple[MPI.Request, object]] = []

    def pack(self, spec: Spec) -> bytes:
        """Return the bytes that a send of the buffer would put on the wire."""
        sending = self._comm.Isend(spec, 0)
        status = MPI.Status()
        message = self._comm.Mprobe(0, MPI.ANY_TAG, status)
        data = bytearray(status.Get_count())
        message.Recv([data, MPI.PACKED])
        sending.Wait()
        return bytes(data)

    def expect(self, spec: Spec, receive: Callable[..., MPI.Request] = MPI.Intracomm.Irecv) -> MPI.Request:
        """Post a receive for bytes that `supply` sends; it raises what a receive into a wrong buffer raises."""
        return receive(self._comm, spec, 0, 0)

    def supply(self, data: bytes | bytearray) -> None:
        """Send the bytes to the oldest pending receive."""
        self._sending = [(request, kept) for request, kept in self._sending if not request.Test()]
        request = self._comm.Isend([data, MPI.PACKED], 0, 0)
        if not request.Test():
            self._sending.append((request, data))

    def withdraw(self, receive: MPI.Request) -> None:
        """Cancel a receive that nothing was supplied for."""
        receive.Cancel()
        receive.Wait()

    def close(self) -> None:
        """Free the communicator."""
        self._comm.Free()
