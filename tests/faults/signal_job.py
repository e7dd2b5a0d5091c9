"""A program that computes until it is told to stop."""

import argparse
import time

from mpi4py import MPI

import mpickpt

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100_000)
args = parser.parse_args()
comm = MPI.COMM_WORLD
try:
    with mpickpt.open("c", comm, every=10**9) as ckpt:
        u = ckpt.array("u", 500_000)
        first = ckpt.restored.step if ckpt.restored else 0
        assert (u == first).all()
        for step in ckpt.range(first + args.steps):
            if step == first:
                print(f"rank {comm.rank} computes", flush=True)
            u += 1
            time.sleep(0.002)
            comm.allreduce(step)
except mpickpt.Stopped as stopped:
    print(f"rank {comm.rank} ends with {stopped.code}", flush=True)
    raise
