"""A program for test_survive.py: what it does when it loses a rank depends on its first argument."""

import os
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI

import mpickpt

KIND, STEPS, LOSS = sys.argv[1], 60, 30


def relatives(comm: MPI.Intracomm) -> None:
    """Wait on communicators that are made of the given one, among them one that only mpi4py knows."""
    grid = comm.Create_cart([comm.size], periods=[True])
    part = comm.Split(min(comm.rank, 1), comm.rank)
    with mpickpt.open("ckpt", comm, every=10, restart="never") as ckpt:
        total = ckpt.object("total", {"steps": 0}, replicated=True)
        began = ckpt.restored.step if ckpt.restored else 0
        for step in ckpt.range(STEPS):
            if step == LOSS and not ckpt.restored:
                assert ckpt.save()
                if comm.rank == 2:
                    time.sleep(0.5)  # the others wait meanwhile: rank 1 for this one, rank 0 for rank 1
                    os.kill(os.getpid(), signal.SIGKILL)
            part.Barrier()
            total["steps"] += comm.allreduce(1) // comm.size
            before, after = grid.Shift(0, 1)
            grid.sendrecv(step, after, source=before)
    print(f"rank {comm.rank} of {comm.size} began at step {began} and did {total['steps']}", flush=True)


def error(comm: MPI.Intracomm) -> None:
    """Raise an error of its own on one rank."""
    with mpickpt.open("ckpt", comm, every=10) as ckpt:
        for step in ckpt.range(STEPS):
            if step == LOSS and comm.rank == 1:
                raise ZeroDivisionError("its own")
            comm.Barrier()


if __name__ == "__main__":
    if KIND == "without":
        error(MPI.COMM_WORLD)
    elif KIND == "nothing":
        MPI.COMM_WORLD.Barrier()
    else:
        mpickpt.main({"relatives": relatives, "error": error}[KIND])
        Path("returned").touch()
