"""A program that may break a rule of ckpt.comm across the cut of step 20: by a collective, or by a pending receive."""

import argparse

import numpy as np
from mpi4py import MPI

import mpickpt

parser = argparse.ArgumentParser()
parser.add_argument("--broken", choices=["collective", "receive"])
broken = parser.parse_args().broken
came = np.zeros(1)

with mpickpt.open("c", MPI.COMM_WORLD, every=10) as ckpt:
    comm = ckpt.comm
    u = ckpt.array("u", 1000, fill=0.0)
    assert not ckpt.restored or (u == ckpt.restored.step).all()
    for step in ckpt.range(25):
        u += 1
        if broken == "collective" and step == (20 if comm.rank == 0 else 19):
            comm.Barrier()
        if broken == "receive" and comm.rank == 1 and step == 19:
            pending = comm.Irecv(came, source=0, tag=7)
        if broken == "receive" and comm.rank == 1 and step == 20:
            pending.Wait()
            assert came[0] == 42.0
        if broken == "receive" and comm.rank == 0 and step == 20:
            comm.Send(np.full(1, 42.0), dest=1, tag=7)
print("the program went on to its end", flush=True)
