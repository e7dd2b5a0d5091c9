"""Messages that cross a cut: counted, copied, served again and swallowed, for every kind of call."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray

from mpickpt.coordinator import Coordinator
from mpickpt.coordinator.traffic import Traffic
from mpickpt.errors import EpochError
from mpickpt.inflight import InFlight
from mpickpt.snapshot import crc32c

pytestmark = pytest.mark.mpi
pairs = pytest.mark.mpi(min_size=2)
COMM = MPI.COMM_WORLD
SENDS = COMM.rank % 2 == 0 and COMM.rank + 1 < COMM.size  # ranks 0 and 2 send to 1 and 3
RECEIVES = COMM.rank % 2 == 1
OTHER = COMM.rank ^ 1
PATIENCE = 20.0


class Run:
    """A program's connection, which can be opened again at the last epoch."""

    def __init__(self) -> None:
        self.idled = 0
        self.epoch = 0
        self.coordinator = Coordinator(COMM)
        self.traffic = Traffic(COMM, self._idle, crc32c)

    def _idle(self) -> None:
        self.idled += 1

    @property
    def comm(self) -> MPI.Intracomm:
        return self.traffic.comm

    def cut(self) -> None:
        self.epoch += 1
        self.traffic.cut(self.epoch)

    def settle(self, *, fault: str | None = None) -> str | None:
        """Wait until all is known; the epoch must have a fault on no rank, or on one that the pattern fits."""
        end = time.monotonic() + PATIENCE
        while not self.traffic.advance() and (fault is None or self.traffic._exchange is not None):
            assert time.monotonic() < end, self.traffic.missing()
            time.sleep(1e-4)
        self.traffic._end_exchange()  # a fault is known before the exchange is over
        self.traffic.advance()
        mine = self.traffic.fault
        faults = [text for text in COMM.allgather(mine) if text is not None]
        if fault is None:
            assert not faults, faults
        else:
            assert any(fault in text for text in faults), faults
        return mine

    def counts(self) -> tuple[int, int]:
        """Sum up late and early messages over all ranks."""
        late, early = self.traffic.counts()
        return COMM.allreduce(late), COMM.allreduce(early)

    def restart(self) -> None:
        """Forget all, and go back to the last epoch."""
        data = self.traffic.in_flight()
        self.traffic.close()
        self.traffic = Traffic(COMM, self._idle, crc32c)
        self.traffic.restore(data, self.coordinator.gather, self.coordinator.scatter)

    def close(self) -> None:
        self.traffic.close()
        self.coordinator.close()


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run()
    yield run
    run.close()
    COMM.Barrier()


# -- every kind of call --------------------------------------------------------------------------------------------

TAG = 7
Array = NDArray[np.float64]
Send = Callable[[MPI.Intracomm, Array, int], None]
Receive = Callable[[MPI.Intracomm, Array, int, int, MPI.Status], None]
COLUMN = MPI.DOUBLE.Create_vector(3, 1, 2).Commit()


def message(number: int) -> Array:
    return np.array([number, number + 0.5, -number], np.float64)


def started(request: MPI.Prequest) -> MPI.Prequest:
    request.Start()
    return request


def in_column(array: Array) -> Array:
    matrix = np.zeros((3, 2))
    matrix[:, 0] = array
    return matrix


def persistently(create: Callable[..., MPI.Prequest], *args: object) -> None:
    request = create(*args)
    request.Start()
    request.Wait()
    request.Free()


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
    "Isendrecv": lambda comm, a, source, tag, status: comm.Isendrecv(a, MPI.PROC_NULL, 0, a, source, tag).Wait(status)
    and None,
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


@pytest.fixture
def space() -> Iterator[None]:
    """Room for buffered sends."""
    MPI.Attach_buffer(np.zeros(100_000, np.uint8))
    yield
    MPI.Detach_buffer()


@pairs
@pytest.mark.parametrize("wild", [False, True], ids=["named", "wildcards"])
@pytest.mark.parametrize("kind", KINDS)
def test_late_message(run: Run, space: None, kind: str, wild: bool) -> None:
    """Sent before the cut and received after it: copied, and served again, a second time too."""
    send, receive = KINDS[kind]
    source, tag = (MPI.ANY_SOURCE, MPI.ANY_TAG) if wild else (OTHER, TAG)
    if SENDS:
        send(run.comm, 1, OTHER)
        run.cut()
        send(run.comm, 2, OTHER)
    elif RECEIVES:
        run.cut()
        receive(run.comm, 1, source, tag, OTHER)
        receive(run.comm, 2, source, tag, OTHER)
    else:
        run.cut()
    run.settle()
    assert run.counts() == (COMM.size // 2, 0)
    for _ in range(2):
        run.restart()
        run.cut()  # before it is served: it is in flight still
        run.settle()
        assert run.counts() == (COMM.size // 2, 0)
    run.restart()
    if SENDS:
        send(run.comm, 2, OTHER)
    elif RECEIVES:
        receive(run.comm, 1, source, tag, OTHER)
        receive(run.comm, 2, source, tag, OTHER)
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)
    assert run.traffic.in_flight() == b""


@pairs
@pytest.mark.parametrize("kind", KINDS)
def test_early_message(run: Run, space: None, kind: str) -> None:
    """Received before the cut and sent after it: swallowed when it is sent again."""
    send, receive = KINDS[kind]
    if SENDS:
        run.cut()
        send(run.comm, 1, OTHER)
    else:
        if RECEIVES:
            receive(run.comm, 1, OTHER, TAG, OTHER)
        run.cut()
    run.settle()
    assert run.counts() == (0, COMM.size // 2)
    early = InFlight.from_bytes(run.traffic.in_flight()).early
    assert len(early) == RECEIVES
    assert all(None not in e.checksums for e in early), "the content is known"
    for _ in range(2):
        run.restart()
        run.cut()  # before it is sent again: it is to be swallowed still
        run.settle()
    run.restart()
    if SENDS:
        send(run.comm, 1, OTHER)
        send(run.comm, 2, OTHER)
    elif RECEIVES:
        receive(run.comm, 2, OTHER, TAG, OTHER)
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)
    assert run.traffic.in_flight() == b""


@pairs
def test_probes_of_what_is_served(run: Run) -> None:
    """Before anything else has been sent; and what a probe has matched is gone for others, and pending at a cut."""
    if SENDS:
        run.comm.Send(message(1), OTHER, TAG)
    run.cut()
    if RECEIVES:
        run.comm.Recv(np.zeros(3))
    run.settle()
    run.restart()
    if RECEIVES:
        status = MPI.Status()
        assert not run.comm.Iprobe(tag=TAG + 1)
        assert run.comm.Iprobe(status=status)
        assert (status.source, status.tag, status.Get_count(MPI.DOUBLE)) == (OTHER, TAG, 3)
        found = run.comm.Improbe(OTHER, TAG, status)
        assert (status.source, status.tag, status.Get_count(MPI.DOUBLE)) == (OTHER, TAG, 3)
        assert found is not None
        assert not run.comm.Iprobe()
        assert run.comm.Improbe() is None
    run.cut()
    run.settle(fault=f"matched message (source {OTHER if RECEIVES else 0}, tag {TAG})")
    if RECEIVES:
        a = np.zeros(3)
        found.Recv(a, status)
        assert a.tolist() == message(1).tolist()
        assert (status.source, status.tag, status.Get_count(MPI.DOUBLE)) == (OTHER, TAG, 3)


@pairs
def test_another_message_than_the_early_one(run: Run) -> None:
    if SENDS:
        run.cut()
        run.comm.Send(message(1), OTHER, TAG)
    else:
        if RECEIVES:
            run.comm.Recv(np.zeros(3), OTHER, TAG)
        run.cut()
    run.settle()
    run.restart()
    if SENDS:
        with pytest.raises(EpochError, match=f"^Rank {COMM.rank}: message 1 .* to rank {OTHER} with tag {TAG} on comm"):
            run.comm.Send(message(2), OTHER, TAG)


@pairs
def test_many_messages_over_many_epochs(run: Run) -> None:
    """The receiver runs behind by a number that changes, and is always served what it had not received."""
    behind = [3, 5, 0, 2, 7, 7, 1]
    sent = received = 0

    def send(numbers: range) -> None:
        for number in numbers:
            run.comm.send(number, OTHER, number % 3)

    def receive(numbers: range) -> None:
        for number in numbers:
            assert run.comm.recv(None, OTHER, number % 3) == number

    for lag in behind:
        before, sent = sent, sent + 10
        if SENDS:
            send(range(before, sent))
        elif RECEIVES:
            receive(range(received, sent - lag))
        received = sent - lag
        run.cut()
        if RECEIVES:
            receive(range(received, sent))
        run.settle()
        assert run.counts() == (lag * (COMM.size // 2), 0)
        if lag % 2:
            run.restart()
            if RECEIVES:
                receive(range(received, sent))
        received = sent
    assert not run.traffic.ledger._balance


@pairs
def test_late_messages_that_do_not_come_before_the_next_cut(run: Run) -> None:
    if SENDS:
        run.comm.send("a", OTHER, TAG)
        run.comm.send("b", OTHER, TAG)
    run.cut()
    run.traffic._end_exchange()
    if RECEIVES:
        assert not run.traffic.advance()
        assert f"0 of 2 from rank {OTHER} with tag {TAG} on communicator 0" in run.traffic.missing()
        assert run.comm.recv() == "a"
        assert not run.traffic.advance()
        assert f"1 of 2 from rank {OTHER}" in run.traffic.missing()
    run.cut()
    if RECEIVES:
        assert run.comm.recv() == "b"
    run.settle()
    assert run.counts() == (COMM.size // 2, 0)
    run.restart()
    if RECEIVES:
        assert run.comm.recv() == "b"


@pairs  # a blocking send to itself on a communicator of one rank waits for ever, with MPICH
def test_large_messages_and_self(run: Run) -> None:
    """Larger than what is sent at once; and messages of a rank to itself are in flight too."""
    big = np.arange(300_000.0)
    request = run.comm.Isend(big, OTHER, TAG) if OTHER < COMM.size else None
    found = np.zeros_like(big)
    run.comm.send("me", COMM.rank, 3)
    if request is not None:
        run.comm.Recv(found, OTHER)
        request.Wait()
        assert (found == big).all()
    run.cut()
    assert run.comm.recv(source=COMM.rank) == "me"
    run.settle()
    assert run.counts() == (COMM.size, 0)
    run.restart()
    assert run.comm.recv(source=MPI.ANY_SOURCE) == "me"


@dataclass(frozen=True)
class Op:
    """What one rank does: a cut (no other rank), or a message that carries the number it has on its channel."""

    rank: int
    other: int | None = None
    sends: bool = False
    tag: int = 0
    number: int = 0


def random_program(rng: random.Random, epochs: int) -> list[Op]:
    """Draw a program, as one order of what all ranks do in which it could be run, all messages received at its end."""
    sent: dict[tuple[int, int, int], int] = defaultdict(int)
    pending: list[tuple[tuple[int, int, int], int]] = []
    program: list[Op] = []

    def receive() -> None:
        key, _ = rng.choice(pending)
        index = next(i for i, (k, _) in enumerate(pending) if k == key)
        (source, dest, tag), number = pending.pop(index)
        program.append(Op(dest, source, False, tag, number))

    for _ in range(epochs):
        uncut = rng.sample(range(COMM.size), COMM.size)
        for _ in range(60):
            source, dest = rng.sample(range(COMM.size), 2)
            if rng.random() < 0.1 and uncut:
                program.append(Op(uncut.pop()))
            elif rng.random() < 0.55 or not pending:
                key = source, dest, rng.randrange(2)
                program.append(Op(source, dest, True, key[2], sent[key]))
                pending.append((key, sent[key]))
                sent[key] += 1
            else:
                receive()
        program += [Op(rank) for rank in uncut]
    while pending:
        receive()
    return program


@pairs
@pytest.mark.parametrize("seed", range(12))
def test_random_programs(run: Run, seed: int) -> None:
    """Many kinds of calls in a random order, cut somewhere, restarted at the last epoch, three times over."""
    rng = random.Random(seed)  # the same on all ranks
    mine = [op for op in random_program(rng, 3) if op.rank == COMM.rank]
    rng = random.Random(1000 * seed + COMM.rank)
    sends = [UPPER_SENDS[name] for name in ("Send", "Isend", "Send_init", "datatype")]
    receives = list(UPPER_RECEIVES.values())
    first, in_flight = 0, 0
    for attempt in range(3):
        begin, cut = first, rng.randint(first, len(mine)) if attempt else -1
        for position in range(begin, len(mine) + 1):
            op = mine[position] if position < len(mine) else None
            if position == cut or (op is not None and op.other is None):
                run.cut()
                first = position + (op is not None and op.other is None)
            if op is None or op.other is None:
                continue
            a = np.array([COMM.rank, op.tag, op.number], np.float64)
            if op.sends:
                rng.choice(sends)(run.comm, a, op.other) if op.tag else run.comm.Send(a, op.other, 0)
                continue
            status = MPI.Status()
            rng.choice(receives)(run.comm, a, op.other, TAG if op.tag else 0, status)
            assert a.tolist() == [op.other, op.tag, op.number]
            assert status.source == op.other
        run.settle()
        in_flight += sum(run.counts())
        run.restart()
    assert in_flight > 0


# -- communicators -------------------------------------------------------------------------------------------------


@pairs
def test_communicators_made_of_it(run: Run) -> None:
    """They keep their own channels, in ranks of their own."""

    def make() -> list[MPI.Intracomm]:
        made = [run.comm.Dup(), run.comm.Split(COMM.rank // 2, -COMM.rank), run.comm.Clone()]
        made += [made[1].Dup(), run.comm.Split(0 if RECEIVES or SENDS else MPI.UNDEFINED)]
        made += [run.comm.Create(run.comm.group), run.comm.Split_type(MPI.COMM_TYPE_SHARED)]
        return made

    def numbers() -> list[tuple[int, MPI.Intracomm, int]]:
        group = COMM.group
        return [(n, c, group.Translate_ranks([OTHER], c.group)[0]) for n, c in enumerate(made) if c != MPI.COMM_NULL]

    made = make()
    assert [getattr(c, "path", None) for c in made[:4]] == ["0/0", "0/1", "0/2", "0/1/0"]
    status = MPI.Status()
    if SENDS:
        for number, comm, other in numbers():
            comm.send(number, other, TAG)
    run.cut()
    if RECEIVES:
        for number, comm, _ in reversed(numbers()):
            assert comm.recv() == number
    run.settle()
    assert run.counts() == (len(made) * (COMM.size // 2), 0)
    for comm in made:
        if comm != MPI.COMM_NULL:
            comm.Free()
    run.restart()
    made = make()
    if RECEIVES:
        for number, comm, other in reversed(numbers()):
            assert comm.recv(status=status) == number
            assert status.source == other
    for comm in made:
        if comm != MPI.COMM_NULL:
            comm.Free()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)
    assert not run.traffic._calls._before


def test_communicators_that_are_not_tracked(run: Run) -> None:
    cart = run.comm.Create_cart([COMM.size], [True])
    assert cart.Get_coords(cart.rank) == [cart.rank]
    group = run.comm.Create_group(run.comm.group)
    duplicate, request = run.comm.Idup()
    request.Wait()
    for comm in (cart, group, duplicate):
        assert comm.allreduce(1) == COMM.size
        comm.Free()
    run.cut()
    run.settle()


def test_collectives_are_as_without(run: Run) -> None:
    comm, size, rank = run.comm, COMM.size, COMM.rank
    a, every, one = np.full(3, rank + 0.1), np.zeros((size, 3)), np.zeros(3)
    plain = COMM.allreduce(a)
    comm.Barrier()
    comm.barrier()
    comm.Allreduce(a, one)
    assert (one == plain).all()
    comm.Iallreduce(a, one).Wait()
    comm.Allgather(a, every)
    assert every[:, 0].tolist() == [r + 0.1 for r in range(size)]
    comm.Reduce(a, one if rank == 0 else None)
    comm.Bcast(a, 0)
    assert (a == 0.1).all()
    assert comm.allgather(rank) == list(range(size))
    assert comm.allreduce(rank) == sum(range(size))
    assert comm.bcast({"r": rank}) == {"r": 0}
    assert comm.alltoall([rank] * size) == list(range(size))
    assert comm.gather(rank) == (list(range(size)) if rank == 0 else None)
    assert comm.scatter(range(size) if rank == 0 else None) == rank
    assert comm.scan(1) == rank + 1
    request = comm.Bcast_init(a, 0)
    for _ in range(2):
        request.Start()
        request.Wait()
    request.Free()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)


# -- what breaks an epoch ------------------------------------------------------------------------------------------


@pairs
def test_collective_across_the_cut(run: Run) -> None:
    last = COMM.size - 1
    run.comm.Barrier()
    pair = run.comm.Dup()
    if COMM.rank == last:
        run.cut()
    pair.allreduce(1)
    if COMM.rank != last:
        run.cut()
    run.settle(fault="Epoch 1 failed: the collective allreduce (number 1 since the last cut) on communicator 0/0")
    run.comm.Barrier()
    run.cut()
    run.settle()  # the next epoch is good
    if COMM.rank == last:
        run.cut()
    pair.Free()
    if COMM.rank != last:
        run.cut()
    run.settle(fault="the collective Free (number 1 since the last cut) on communicator 0/0 straddles the cut")
    run.cut()
    run.settle()


@pairs
@pytest.mark.parametrize("name", ["Irecv", "irecv", "Recv_init", "Mprobe", "Issend", "Iallreduce", "complete Irecv"])
def test_pending_at_the_cut(run: Run, name: str) -> None:
    """A named fault; and the counts stay right, so that the next epoch is good."""
    comm, a = run.comm, np.zeros(3)
    request: Any = None
    if name == "Iallreduce":
        request = comm.Iallreduce(MPI.IN_PLACE, a)
    elif SENDS and name == "Issend":
        request = comm.Issend(a, OTHER, TAG)
    elif SENDS and name in ("Mprobe", "complete Irecv"):
        comm.send(1, OTHER, TAG)
    elif RECEIVES and name == "Mprobe":
        request = comm.mprobe(OTHER, TAG)
    elif RECEIVES and name != "Issend":
        make = {"Recv_init": lambda: started(comm.Recv_init(a, OTHER)), "Irecv": lambda: comm.Irecv(a, OTHER, TAG)}
        request = make.get(name, lambda: comm.irecv(None, OTHER, TAG))()
        if name == "complete Irecv":
            while not request.Get_status():
                time.sleep(1e-4)
    run.cut()
    what = {
        "Irecv": f"Irecv (source {OTHER}, tag {TAG})",
        "Recv_init": f"Recv_init (source {OTHER}, tag any)",
        "Mprobe": f"matched message (source {OTHER}, tag {TAG})",
        "Issend": f"Issend (dest {OTHER}, tag {TAG})",
        "Iallreduce": "Iallreduce (communicator 0)",
    }.get(name, f"irecv (source {OTHER}, tag {TAG})")
    text = run.settle(fault="at the cut. Wait for it before the safe point.")
    if request is not None:
        assert text is not None
        assert f"Epoch 1 failed: rank {COMM.rank} has a pending {what} at the cut" in text
    if SENDS and name not in ("Iallreduce", "Mprobe", "complete Irecv", "Issend"):
        comm.Send(a, OTHER, TAG) if name in ("Recv_init", "Irecv") else comm.send(1, OTHER, TAG)
    if RECEIVES and name == "Issend":
        comm.Recv(a, OTHER, TAG)
    if request is not None:
        if name == "Mprobe":
            assert request.recv() == 1
        else:
            request.Wait()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)
    if name == "Recv_init" and request is not None:
        request.Free()


@pairs
def test_sends_that_are_complete_and_not_waited_for(run: Run) -> None:
    requests = [run.comm.isend(n, OTHER, TAG) for n in range(3)] if SENDS else []
    if RECEIVES:
        assert [run.comm.recv() for _ in range(3)] == [0, 1, 2]
    COMM.Barrier()
    run.cut()
    run.settle()
    for request in requests:
        request.wait()
    for _ in range(10):  # they are sorted out in time, also if nobody ever waits for them
        if SENDS:
            for n in range(200):
                run.comm.isend(n, OTHER, TAG)
        if RECEIVES:
            assert [run.comm.recv() for _ in range(200)] == list(range(200))
        COMM.Barrier()
    assert len(run.traffic._pending) < 900


@pairs
def test_waits_of_mpi4py_itself(run: Run) -> None:
    """They are counted, but what comes by them late cannot be copied."""
    a, b = np.zeros(3), np.zeros(3)
    if SENDS:
        run.comm.Send(message(1), OTHER, TAG)
        run.comm.Send(message(2), OTHER, TAG)
    if RECEIVES:
        MPI.Request.Waitall([run.comm.Irecv(a, OTHER, TAG)])
        assert a.tolist() == message(1).tolist()
    run.cut()
    if RECEIVES:
        MPI.Request.Waitall([run.comm.Irecv(b, OTHER, TAG)])
    text = run.settle(fault="Use type(request).Waitall")
    assert (text is not None) == RECEIVES
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)
    if SENDS:
        run.comm.send("object", OTHER, TAG)
        run.comm.Send(message(3), OTHER, TAG)
    if RECEIVES:
        assert MPI.Request.waitall([run.comm.irecv(None, OTHER, TAG)]) == ["object"]
        MPI.Request.Waitall([run.comm.Irecv(a)])
    run.cut()
    run.settle(fault="source any, tag any) was completed by MPI.Request.Waitall or the like: no further epoch")


# -- errors and rarities -------------------------------------------------------------------------------------------


@pairs
@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize("buffer", ["array", "count", "column", "Irecv"])
def test_a_buffer_that_is_too_small(run: Run, restored: bool, buffer: str) -> None:
    """MPI's own error, and the message is gone, as ever."""
    big = np.arange(30.0)
    if SENDS:
        run.comm.Send(big, OTHER, TAG)
        run.comm.Send(big[:3], OTHER, TAG)
    run.cut()
    if RECEIVES and restored:
        run.comm.Recv(np.zeros(30), OTHER, TAG)
        run.comm.Recv(np.zeros(30), OTHER, TAG)
    if restored:
        run.settle()
        run.restart()
    if RECEIVES:
        small: Any = np.zeros(3)
        small = {"count": [np.zeros(40), 3, MPI.DOUBLE], "column": [np.zeros(6), 1, COLUMN]}.get(buffer, small)
        with pytest.raises(MPI.Exception) as caught:
            if buffer == "Irecv":
                request = run.comm.Irecv(small, OTHER, TAG)
                request.Wait()
            else:
                run.comm.Recv(small, OTHER, TAG)
        assert caught.value.Get_error_class() == MPI.ERR_TRUNCATE
        assert buffer != "Irecv" or request.Test()
        status = MPI.Status()
        run.comm.Recv(np.zeros(30), OTHER, TAG, status)
        assert status.Get_count(MPI.DOUBLE) == 3
    if not restored:
        if buffer in ("array", "column"):
            run.settle()  # the content could be copied
        else:
            run.settle(fault="their content could not be copied")
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)


@pairs
def test_bad_arguments_are_mpi4pys_errors(run: Run) -> None:
    with pytest.raises(MPI.Exception) as caught:
        run.comm.Send(np.zeros(1), COMM.size)
    assert caught.value.Get_error_class() == MPI.ERR_RANK
    with pytest.raises(MPI.Exception):
        run.comm.Send(np.zeros(1), 0, -5)
    if SENDS:
        run.comm.Send(message(1), OTHER)
    COMM.Barrier()
    if RECEIVES:
        frozen = np.zeros(3)
        frozen.flags.writeable = False
        for wrong in (frozen, np.zeros((3, 3)).T[::2], 7, [np.zeros(1), "no such"]):
            with pytest.raises(Exception, match=r"."):
                run.comm.Recv(wrong)
        with pytest.raises(MPI.Exception):
            run.comm.Recv(np.zeros(1), COMM.size)
        a = np.zeros(3)
        run.comm.Recv(a)  # it was not lost
        assert a.tolist() == message(1).tolist()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)


def test_the_null_process(run: Run) -> None:
    comm, status, a = run.comm, MPI.Status(), np.ones(1)
    null = MPI.PROC_NULL
    comm.Send(a, null)
    comm.send(1, null)
    comm.Bsend(a, null)
    comm.Recv(a, null, status=status)
    assert (status.source, status.tag, status.count) == (null, MPI.ANY_TAG, 0)
    assert comm.recv(source=null) is None
    comm.Isend(a, null).Wait()
    comm.Irecv(a, null).Wait(status)
    assert comm.irecv(source=null).wait() is None
    assert comm.Mprobe(null) == MPI.MESSAGE_NO_PROC
    assert comm.Iprobe(null)
    persistently(comm.Send_init, a, null)
    persistently(comm.Recv_init, a, null)
    assert a.tolist() == [1.0]
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)


@pairs
def test_column_by_a_nonblocking_receive(run: Run) -> None:
    """The content of a message into a buffer with gaps is not known: a fault if late, no checksum if early."""
    if SENDS:
        run.comm.Send(message(1), OTHER, TAG)
    run.cut()
    matrix = np.zeros((3, 2))
    if RECEIVES:
        run.comm.Irecv([matrix, 1, COLUMN], OTHER, TAG).Wait()
        assert matrix[:, 0].tolist() == message(1).tolist()
    run.settle(fault="non-blocking receive into a buffer with gaps")
    if SENDS:
        run.cut()
        run.comm.Send(message(1), OTHER, TAG)
    else:
        if RECEIVES:
            run.comm.Irecv([matrix, 1, COLUMN], OTHER, TAG).Wait()
        run.cut()
    run.settle()
    run.restart()
    if SENDS:
        run.comm.Send(message(2), OTHER, TAG)  # swallowed, and nobody can tell
        run.comm.Send(message(3), OTHER, TAG)
    if RECEIVES:
        run.comm.Recv(matrix[0:2].reshape(4)[:3], OTHER, TAG)
        assert matrix.reshape(6)[:3].tolist() == message(3).tolist()


@pairs
def test_persistent_receive_that_mpi4py_itself_starts(run: Run) -> None:
    a = np.zeros(3)
    if SENDS:
        for number in np.arange(2):
            run.comm.Send(message(number), OTHER, np.int64(TAG))
    if RECEIVES:
        request = run.comm.Recv_init(a, OTHER, TAG)
        for number in range(2):
            MPI.Prequest.Startall([request])
            request.Wait()
            assert a.tolist() == message(number).tolist()
            request.Wait()  # it is not active
        request.Free()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)


@pairs
def test_receives_that_are_given_up(run: Run) -> None:
    """A cancelled one is nothing; one that is freed may still take a message, and nobody will know."""
    status = MPI.Status()
    request = run.comm.Irecv(np.zeros(3), MPI.ANY_SOURCE, TAG)
    request.Cancel()
    request.Wait(status)
    assert status.Is_cancelled()
    run.cut()
    run.settle()
    if SENDS:
        run.comm.Send(message(1), OTHER, TAG)
    if RECEIVES:
        request = run.comm.Irecv(np.zeros(3), OTHER, TAG)
        while not request.Get_status():
            time.sleep(1e-4)
        request.Free()
    COMM.Barrier()
    run.cut()
    run.settle(fault="was freed while it was pending: no further epoch can be taken in this run.")


@pairs
def test_an_interrupted_send_is_pending(run: Run) -> None:
    """Its buffer stays alive, and a cut before it is complete has a fault."""
    if SENDS:
        run.traffic._idle = interrupt
        with pytest.raises(KeyboardInterrupt):
            run.comm.Ssend(message(1), OTHER, TAG)
        run.traffic._idle = run._idle
    run.cut()
    run.settle(fault=f"has a pending Issend (dest {1 if COMM.rank < 2 else 3}, tag {TAG}) at the cut")
    if RECEIVES:
        run.comm.Recv(np.zeros(3), OTHER, TAG)
    COMM.Barrier()
    run.cut()
    run.settle()
    assert run.counts() == (0, 0)


def interrupt() -> None:
    raise KeyboardInterrupt


@pairs
def test_receives_that_complete_out_of_order(run: Run) -> None:
    if SENDS:
        run.comm.Send(message(1), OTHER, TAG)
        run.comm.Send(message(2), OTHER, TAG)
        run.cut()
    a, b = np.zeros(3), np.zeros(3)
    if RECEIVES:
        run.cut()
        first, second = run.comm.Irecv(a, OTHER, TAG), run.comm.Irecv(b, MPI.ANY_SOURCE, TAG)
        second.Wait()
        first.Wait()
    elif not SENDS:
        run.cut()
    run.settle()
    run.restart()
    if RECEIVES:
        for expected, into in ((1, a), (2, b)):
            run.comm.Recv(into)
            assert into.tolist() == message(expected).tolist()


@pairs
def test_a_wait_lets_the_session_do_its_work(run: Run) -> None:
    """A rank that waits for another answers what comes in, or both might wait for ever."""
    if SENDS:
        time.sleep(0.05)
        run.comm.send(1, OTHER)
    elif RECEIVES:
        run.comm.recv()
        assert run.idled > 5
    run.comm.Barrier()
    run.idled = 0
    if COMM.rank == 0:
        time.sleep(0.05)
    run.comm.Allreduce(np.ones(1), np.zeros(1))
    assert run.idled > 5 or COMM.rank == 0


@pairs
@pytest.mark.parametrize("call", ["Iprobe", "Recv", "Send", "Test"])
def test_the_exchange_goes_on_in_tracked_calls(run: Run, call: str) -> None:
    """No rank calls advance; the balance is struck by the calls of the program, of any kind."""
    comm, a, total = run.comm, np.zeros(1), 1000
    left, right = (COMM.rank - 1) % COMM.size, (COMM.rank + 1) % COMM.size
    for _ in range(total):
        comm.Send(a, right, TAG)
    request = comm.Irecv(a, left, TAG + 1)
    COMM.Barrier()
    run.cut()
    run.traffic.fault = None  # that of the pending receive
    calls = 0
    while run.traffic._exchange is not None and calls < total:
        time.sleep(1e-4)
        calls += 1
        if call == "Iprobe":
            comm.Iprobe(left, TAG)
        elif call == "Recv":
            comm.Recv(a, left, TAG)
        elif call == "Send":
            comm.Send(a, right, TAG)
        else:
            request.Test()
    assert run.traffic._exchange is None
    comm.Send(a, right, TAG + 1)
    request.Wait()
    sent = COMM.sendrecv(calls if call == "Send" else 0, right, source=left)
    for _ in range(total + sent - (calls if call == "Recv" else 0)):
        comm.Recv(a, left, TAG)
    run.settle()
    assert run.counts() == (total * COMM.size, 0)


@pairs
def test_a_rank_that_is_an_epoch_ahead(run: Run) -> None:
    """It tells its counts for the next epoch while others have not noticed that the exchange of the last is over."""
    if COMM.rank != 0:
        run.cut()
    COMM.Barrier()
    if COMM.rank == 0:
        run.cut()
        run.traffic._end_exchange()
        for number in (1, 2):
            run.comm.send(number, 1, TAG)
        run.cut()
    COMM.Barrier()
    if COMM.rank != 0:
        assert run.traffic._exchange is not None
        run.traffic._end_exchange()
        assert run.traffic.counts() == (0, 0)
        run.cut()
    if COMM.rank == 1:
        assert [run.comm.recv(), run.comm.recv()] == [1, 2]
    run.settle()
    assert run.counts() == (2, 0)


@pairs
def test_both_directions(run: Run) -> None:
    """Calls that send and receive, from and to the neighbours in a ring, some of it in flight at the cut."""
    comm, status = run.comm, MPI.Status()
    left, right = (COMM.rank - 1) % COMM.size, (COMM.rank + 1) % COMM.size
    mine, came = message(COMM.rank), np.zeros(3)

    def check(found: Array, source: int) -> None:
        assert found.tolist() == message(source).tolist()
        assert status.source == source

    comm.Sendrecv(mine, right, TAG, came, left, TAG, status)
    check(came, left)
    came[:] = mine
    comm.Sendrecv_replace(came, left, TAG, right, TAG, status)
    check(came, right)
    comm.Isendrecv(mine, right, TAG, came, left).Wait(status)
    check(came, left)
    came[:] = mine
    comm.Isendrecv_replace(came, left, TAG, right).Wait(status)
    check(came, right)
    assert comm.sendrecv(COMM.rank, right, TAG, None, left, TAG, status) == left
    comm.Send(mine, right, TAG)
    run.cut()
    matrix = in_column(mine)
    comm.Sendrecv_replace([matrix, 1, COLUMN], right, TAG, left, TAG, status)  # it gets what was sent before
    check(matrix[:, 0], left)
    assert not matrix[:, 1].any()
    run.settle()
    assert run.counts() == (COMM.size, 0)
    comm.Recv(came, left, TAG)  # or MPI would give it to the next communicator that gets the same number
    run.restart()
    matrix = in_column(mine)
    comm = run.comm
    comm.Sendrecv_replace([matrix, 1, COLUMN], right, TAG, left, TAG, status)
    check(matrix[:, 0], left)
    run.cut()
    comm.Recv(came, left, TAG, status)
    check(came, left)
    run.settle()
    assert run.counts() == (COMM.size, 0)


@pairs
def test_pair_is_complete_when_both_are(run: Run) -> None:
    """An Isendrecv whose message has come is not complete before its own was taken."""
    a, b = np.ones(300_000), np.zeros(3)
    if SENDS:
        request = run.comm.Isendrecv(a, OTHER, TAG, b, OTHER)
        COMM.Barrier()
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            assert not request.Test()
        assert not request.Get_status()
        COMM.Barrier()
        request.Wait()
        assert b.tolist() == message(1).tolist()
    else:
        if RECEIVES:
            run.comm.Send(message(1), OTHER)
        COMM.Barrier()
        COMM.Barrier()
        if RECEIVES:
            run.comm.Recv(a)


def test_damaged_data_is_an_error_on_all_ranks(run: Run) -> None:
    data = b"damaged" if COMM.rank == COMM.size - 1 else b""
    with pytest.raises(EpochError, match=rf"^Rank {COMM.size - 1}: The messages in flight .* cannot be read") as caught:
        run.traffic.restore(data, run.coordinator.gather, run.coordinator.scatter)
    assert caught.value.everywhere
