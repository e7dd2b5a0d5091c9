"""Every way to send and to receive a message with mpi4py."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from crossing import COLUMN, COMM, TAG, Array, in_column, message, persistently

Send = Callable[[MPI.Intracomm, Array, int], None]
Receive = Callable[[MPI.Intracomm, Array, int, int, MPI.Status], None]


def startall(comm: MPI.Intracomm, array: Array, dest: int) -> None:
    request = comm.Send_init(array, dest, TAG)
    type(request).Startall([request])
    type(request).Waitall([request])
    request.Free()


UPPER_SENDS: dict[str, Send] = {
    "Send": lambda comm, a, dest: comm.Send(a, dest, TAG),
    "Ssend": lambda comm, a, dest: comm.Ssend(a, dest, TAG),
    "Bsend": lambda comm, a, dest: comm.Bsend(a, dest, TAG),
    "Isend": lambda comm, a, dest: comm.Isend(a, dest, TAG).Wait() and None,
    "Issend": lambda comm, a, dest: comm.Issend(a, dest, TAG).Wait() and None,
    "Ibsend": lambda comm, a, dest: comm.Ibsend(a, dest, TAG).Wait() and None,
    "Sendrecv": lambda comm, a, dest: comm.Sendrecv(a, dest, TAG, None, MPI.PROC_NULL),
    "Sendrecv_replace": lambda comm, a, dest: comm.Sendrecv_replace(a, dest, TAG, MPI.PROC_NULL),
    "Isendrecv": lambda comm, a, dest: comm.Isendrecv(a, dest, TAG, a, MPI.PROC_NULL).Wait() and None,
    "Send_init": lambda comm, a, dest: persistently(comm.Send_init, a, dest, TAG),
    "Ssend_init": lambda comm, a, dest: persistently(comm.Ssend_init, a, dest, TAG),
    "Startall": startall,
    "datatype": lambda comm, a, dest: comm.Send([in_column(a), 1, COLUMN], dest, TAG),
    "count": lambda comm, a, dest: comm.Send([np.append(a, 9.0), 3, MPI.DOUBLE], dest, TAG),
    "Waitall": lambda comm, a, dest: MPI.Request.Waitall([comm.Isend(a, dest, TAG)]) and None,
}


def recv_column(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    matrix = in_column(a)
    comm.Recv([matrix, 1, COLUMN], source, tag, status)
    a[:] = matrix[:, 0]
    assert not matrix[:, 1].any()


def matched(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    first = MPI.Status()
    found = comm.Mprobe(source, tag, first)
    assert first.Get_count(MPI.DOUBLE) == 3
    found.Recv(a, status)


def matched_later(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    while (found := comm.Improbe(source, tag)) is None:
        time.sleep(1e-4)
    found.Irecv(a).Wait(status)


def probed(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    first = MPI.Status()
    assert comm.Probe(source, tag, first)
    assert first.Get_count(MPI.DOUBLE) == 3
    assert comm.Iprobe(first.source, first.tag)
    comm.Recv(a, first.source, first.tag, status)


def polling(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    request = comm.Irecv(a, source, tag)
    while not request.Get_status(status):
        time.sleep(1e-4)
    assert status.source in (source, COMM.rank ^ 1)
    while not request.Test(status):
        time.sleep(1e-4)
    assert not request
    assert request.Test()


def all_of_three(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    nothing = comm.Irecv(np.zeros(1), MPI.PROC_NULL)
    request, statuses = comm.Irecv(a, source, tag), [MPI.Status()]
    type(request).Waitall([nothing, request, MPI.REQUEST_NULL], statuses)
    assert len(statuses) == 3
    copy(statuses[1], status)


def until_all(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    request, statuses = comm.Irecv(a, source, tag), [MPI.Status()]
    while not type(request).Testall([request], statuses):
        time.sleep(1e-4)
    copy(statuses[0], status)


def any_of_two(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    request = comm.Irecv(a, source, tag)
    assert type(request).Waitany([MPI.REQUEST_NULL, request], status) == 1
    assert type(request).Waitany([MPI.REQUEST_NULL, request]) == MPI.UNDEFINED


def some_of_two(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    statuses: list[MPI.Status] = []
    request = comm.Irecv(a, source, tag)
    assert type(request).Waitsome([MPI.REQUEST_NULL, request], statuses) == [1]
    assert type(request).Waitsome([MPI.REQUEST_NULL, request]) is None
    copy(statuses[0], status)


def recv_started(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    request = comm.Recv_init(a, source, tag)
    request.Start()
    request.Wait(status)
    request.Free()


def replaced(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    comm.Sendrecv_replace(a, MPI.PROC_NULL, 0, source, tag, status)


def copy(found: MPI.Status, status: MPI.Status) -> None:
    status.Set_source(found.source)
    status.Set_tag(found.tag)
    status.Set_elements(MPI.BYTE, found.count)


UPPER_RECEIVES: dict[str, Receive] = {
    "Recv": lambda comm, a, source, tag, status: comm.Recv(a, source, tag, status),
    "with datatype": lambda comm, a, source, tag, status: comm.Recv([a, 3, MPI.DOUBLE], source, tag, status),
    "with code": lambda comm, a, source, tag, status: comm.Recv([a, "d"], source, tag, status),
    "with displacement": lambda comm, a, source, tag, status: comm.Recv([a, (3, 0), "d"], source, tag, status),
    "larger buffer": lambda comm, a, source, tag, status: larger(comm, a, source, tag, status),
    "column": recv_column,
    "Irecv": lambda comm, a, source, tag, status: comm.Irecv(a, source, tag).Wait(status) and None,
    "Test": polling,
    "Sendrecv": lambda comm, a, source, tag, status: comm.Sendrecv(a, MPI.PROC_NULL, 0, a, source, tag, status),
    "Sendrecv_replace": replaced,
    "Isendrecv": lambda comm, a, source, tag, status: (
        comm.Isendrecv(a, MPI.PROC_NULL, 0, a, source, tag).Wait(status) and None
    ),
    "Mprobe": matched,
    "Improbe": matched_later,
    "Probe": probed,
    "Recv_init": recv_started,
    "Waitall": all_of_three,
    "Testall": until_all,
    "Waitany": any_of_two,
    "Waitsome": some_of_two,
}


def larger(comm: MPI.Intracomm, a: Array, source: int, tag: int, status: MPI.Status) -> None:
    space = np.full(10, 99.0)
    comm.Recv(space, source, tag, status)
    a[:] = space[:3]
    assert (space[3:] == 99).all()


def of_upper(send: Send, receive: Receive) -> tuple[Callable[..., None], Callable[..., None]]:
    def sends(comm: MPI.Intracomm, number: int, dest: int) -> None:
        send(comm, message(number), dest)

    def receives(comm: MPI.Intracomm, number: int, source: int, tag: int, origin: int) -> None:
        status, found = MPI.Status(), np.zeros(3)
        receive(comm, found, source, tag, status)
        assert found.tolist() == message(number).tolist()
        assert (status.source, status.tag) == (origin, TAG)
        assert (status.Get_count(MPI.DOUBLE), status.count, status.Is_cancelled()) == (3, 24, False)

    return sends, receives


def objects(send: Callable[..., Any], receive: Callable[..., Any]) -> tuple[Callable[..., None], Callable[..., None]]:
    def sends(comm: MPI.Intracomm, number: int, dest: int) -> None:
        send(comm, {"number": number}, dest)

    def receives(comm: MPI.Intracomm, number: int, source: int, tag: int, origin: int) -> None:
        status = MPI.Status()
        assert receive(comm, source, tag, status) == {"number": number}
        assert (status.source, status.tag) == (origin, TAG)

    return sends, receives


def polled(request: MPI.Request, status: MPI.Status) -> object:
    while True:
        done, found = request.test(status)
        if done:
            return found
        time.sleep(1e-4)


def all_objects(request: MPI.Request, status: MPI.Status) -> object:
    statuses: list[MPI.Status] = []
    (found,) = type(request).waitall([request], statuses)
    copy(statuses[0], status)
    return found


OBJECT_SENDS: dict[str, Callable[..., Any]] = {
    "send": lambda comm, value, dest: comm.send(value, dest, TAG),
    "ssend": lambda comm, value, dest: comm.ssend(value, dest, TAG),
    "bsend": lambda comm, value, dest: comm.bsend(value, dest, TAG),
    "isend": lambda comm, value, dest: comm.isend(value, dest, TAG).wait(),
    "issend": lambda comm, value, dest: comm.issend(value, dest, TAG).wait(),
    "ibsend": lambda comm, value, dest: comm.ibsend(value, dest, TAG).wait(),
    "sendrecv": lambda comm, value, dest: comm.sendrecv(value, dest, TAG, None, MPI.PROC_NULL),
}
OBJECT_RECEIVES: dict[str, Callable[..., Any]] = {
    "recv": lambda comm, source, tag, status: comm.recv(None, source, tag, status),
    "irecv": lambda comm, source, tag, status: comm.irecv(None, source, tag).wait(status),
    "irecv size": lambda comm, source, tag, status: comm.irecv(1000, source, tag).wait(status),
    "irecv buffer": lambda comm, source, tag, status: comm.irecv(bytearray(1000), source, tag).wait(status),
    "test": lambda comm, source, tag, status: polled(comm.irecv(None, source, tag), status),
    "waitall": lambda comm, source, tag, status: all_objects(comm.irecv(None, source, tag), status),
    "mprobe": lambda comm, source, tag, status: comm.mprobe(source, tag).recv(status),
    "mprobe irecv": lambda comm, source, tag, status: comm.mprobe(source, tag).irecv().wait(status),
    "sendrecv": lambda comm, source, tag, status: comm.sendrecv(0, MPI.PROC_NULL, 0, None, source, tag, status),
}

KINDS = {
    **{f"{name}-Recv": of_upper(send, UPPER_RECEIVES["Recv"]) for name, send in UPPER_SENDS.items()},
    **{f"Send-{name}": of_upper(UPPER_SENDS["Send"], receive) for name, receive in UPPER_RECEIVES.items()},
    **{f"{name}-recv": objects(send, OBJECT_RECEIVES["recv"]) for name, send in OBJECT_SENDS.items()},
    **{f"send-{name}": objects(OBJECT_SENDS["send"], receive) for name, receive in OBJECT_RECEIVES.items()},
}
