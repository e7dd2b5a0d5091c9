"""Progress while a tracked call waits, and between ranks at different epochs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from mpi4py import MPI

from mpickpt.errors import EpochError

from crossing import COLUMN, COMM, OTHER, RECEIVES, SENDS, TAG, Array, Run, in_column, message

pytestmark = pytest.mark.mpi
pairs = pytest.mark.mpi(min_size=2)


@pairs
def test_a_wait_lets_the_session_do_its_work(run: Run) -> None:
    """A rank that waits for another answers what comes in, or both might wait for ever."""
    COMM.Barrier()
    if SENDS:
        time.sleep(0.2)
        run.comm.send(1, OTHER)
    elif RECEIVES:
        run.comm.recv()
        assert run.idled > 5
    run.comm.Barrier()
    run.idled = 0
    if COMM.rank == 0:
        time.sleep(0.2)
    run.comm.Allreduce(np.ones(1), np.zeros(1))
    assert run.idled > 5 or COMM.rank == 0


@pairs
@pytest.mark.parametrize("call", ["Iprobe", "Recv", "Send", "Test"])
def test_the_exchange_goes_on_in_tracked_calls(run: Run, call: str) -> None:
    """No rank calls advance; the balance is struck by the calls of the program, of any kind."""
    comm, a, total = run.comm, np.zeros(1), 3000
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
    COMM.Barrier()  # a request that is complete makes no more progress
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


def sends_wait_for_their_receivers(a: np.ndarray) -> bool:
    """Whether a message as large as `a` waits for its receiver, in this MPI library."""
    request = COMM.Isend(a, OTHER, TAG) if SENDS else MPI.REQUEST_NULL
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        waits = not SENDS or not request.Test()
    COMM.Barrier()
    if RECEIVES:
        COMM.Recv(np.empty_like(a), OTHER, TAG)
    request.Wait()
    return waits


@pairs
def test_pair_is_complete_when_both_are(run: Run) -> None:
    """An Isendrecv whose message has come is not complete before its own was taken.

    Intel MPI takes messages of this size before there is a receive for them, so that there is nothing to see.
    """
    a, b = np.ones(300_000), np.zeros(3)
    waits = sends_wait_for_their_receivers(a)
    if SENDS:
        request = run.comm.Isendrecv(a, OTHER, TAG, b, OTHER)
        COMM.Barrier()
        end = time.monotonic() + 0.05
        while waits and time.monotonic() < end:
            assert not request.Test()
        assert not (waits and request.Get_status())
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
    data = b"corrupt" if COMM.rank == COMM.size - 1 else b""
    with pytest.raises(EpochError, match=rf"^Rank {COMM.size - 1}: The messages in flight .* cannot be read") as caught:
        run.traffic.restore(data, run.coordinator.gather, run.coordinator.scatter)
    assert caught.value.everywhere
