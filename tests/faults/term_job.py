"""A program that reaches no more safe points: its ranks wait in a collective for a rank that does not come."""

import argparse
import signal
import time

from mpi4py import MPI

import mpickpt
from mpickpt.signals import termination

parser = argparse.ArgumentParser()
parser.add_argument("--term-limit", default="never")
parser.add_argument("--own", action="store_true", help="the program has a handler of its own")
args = parser.parse_args()
comm = MPI.COMM_WORLD
termination.AGAIN_SECONDS = 1.0
if args.own:
    signal.signal(signal.SIGTERM, lambda number, frame: print(f"rank {comm.rank}: its own handler", flush=True))
with mpickpt.open("c", comm, every=10**9, term_limit=args.term_limit) as ckpt:
    u = ckpt.array("u", 1000)
    for step in ckpt.range(5000):
        if step == 5 and comm.rank == 1:
            print("rank 1 computes", flush=True)
            end = time.monotonic() + (4 if args.own else 100)
            while time.monotonic() < end:
                time.sleep(0.05)
        time.sleep(0.002)
        comm.allreduce(step)
