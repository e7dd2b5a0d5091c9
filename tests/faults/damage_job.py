"""A small job whose state follows from its step: a global array, an array of each rank, an object.

usage: damage_job.py DIRECTORY STOP [--grow-at STEP] [--forbid-at STEP]

At --grow-at the object grows by 16 MiB on each rank; at --forbid-at the directory becomes read-only, and one more array
makes the next epochs need new slots.
Rank 0 prints a checksum of the final state.
"""

import argparse
import hashlib
import os

import numpy as np
from mpi4py import MPI

import mpickpt

ROWS, COLS = 96, 8192  # 6 MiB
GROWTH = 16 << 20

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("stop", type=int)
parser.add_argument("--grow-at", type=int)
parser.add_argument("--forbid-at", type=int)
args = parser.parse_args()

comm = MPI.COMM_WORLD
lo, hi = ROWS * comm.rank // comm.size, ROWS * (comm.rank + 1) // comm.size
with mpickpt.open(args.directory, comm, every=10) as ckpt:
    part = mpickpt.Part((ROWS, COLS), (lo, 0), np.s_[1:-1])
    u = ckpt.array("u", (hi - lo + 2, COLS), fill=1.0, part=part)
    own = np.zeros(1000)
    ckpt.protect("own", own, remap=lambda olds, rank, size: olds[0])
    log = ckpt.object("log", {"steps": 0, "filler": b""}, replicated=True)
    for step in ckpt.range(args.stop):
        u *= 1.0 + 1.0 / (step + 7)
        own += step
        log["steps"] += 1
        if step == args.grow_at:
            log["filler"] = bytes(GROWTH)
        if step == args.forbid_at:
            _more = ckpt.array("more", 10)
        if step == args.forbid_at and comm.rank == 0:
            os.chmod(args.directory, 0o555)  # noqa: PTH101  (a script has no Path yet)
    assert log["steps"] == args.stop

field = comm.gather(np.array(u[1:-1]))
if comm.rank == 0:
    assert field is not None
    print("result", hashlib.sha256(np.concatenate(field).tobytes() + own.tobytes()).hexdigest())
