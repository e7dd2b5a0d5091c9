"""Messages that cross a cut: counted, copied, replayed and suppressed, for every kind of call."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from mpickpt.errors import EpochError
from mpickpt.messages.inflight import InFlight

from calls import KINDS
from crossing import COMM, OTHER, RECEIVES, SENDS, TAG, Run, message

pytestmark = pytest.mark.mpi
pairs = pytest.mark.mpi(min_size=2)


@pairs
@pytest.mark.parametrize("wild", [False, True], ids=["named", "wildcards"])
@pytest.mark.parametrize("kind", KINDS)
def test_late_message(run: Run, space: None, kind: str, wild: bool) -> None:
    """Sent before the cut and received after it: copied, and replayed, a second time too."""
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
    """Received before the cut and sent after it: suppressed when it is sent again."""
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
        run.cut()  # before it is sent again: it is to be suppressed still
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
