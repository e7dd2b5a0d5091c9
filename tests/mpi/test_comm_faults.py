"""What fails an epoch is named, and the next epoch is complete."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from crossing import COMM, OTHER, RECEIVES, SENDS, TAG, Run, message

pytestmark = pytest.mark.mpi
pairs = pytest.mark.mpi(min_size=2)


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
    assert len(run.traffic._outstanding) < 900


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


def started(request: MPI.Prequest) -> MPI.Prequest:
    request.Start()
    return request
