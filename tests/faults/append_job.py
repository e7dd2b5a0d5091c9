"""Appends at each step to a log of rank 0, and to a file of bytes of each rank; the folder is the current one."""

import sys
import time

from mpi4py import MPI

import mpickpt

comm = MPI.COMM_WORLD
with mpickpt.open("ckpt", comm) as ckpt:
    u = ckpt.array("u", 3000, fill=1.0 + comm.rank)
    log = ckpt.append("log.txt") if comm.rank == 0 else None
    data = ckpt.append(f"data-{comm.rank}.bin", "ab")
    for step in ckpt.range(int(sys.argv[1])):
        u += 0.25 * step
        total = comm.allreduce(u.sum())
        if log is not None:
            print(f"step {step}: {total}", file=log, flush=True)
        data.write(u[: 97 * step % 2000].tobytes())
        time.sleep(float(sys.argv[2]))
