"""Errors of the program, and rare calls, on a tracked communicator."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from crossing import COLUMN, COMM, OTHER, RECEIVES, SENDS, TAG, Run, message, persistently

pytestmark = pytest.mark.mpi
pairs = pytest.mark.mpi(min_size=2)


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
        run.comm.Send(message(2), OTHER, TAG)  # suppressed, and nobody can tell
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
    receiver = COMM.rank | 1 if COMM.rank | 1 < COMM.size else 1  # of this pair; an odd rank out hears of the first
    run.settle(fault=f"has a pending Issend (dest {receiver}, tag {TAG}) at the cut")
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
