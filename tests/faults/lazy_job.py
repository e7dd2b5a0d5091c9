"""A job whose state follows from its step and mostly does not change: each step rewrites one block of a rank's array.

usage: lazy_job.py DIRECTORY STOP

Each rank prints a checksum of its final state. `expected` returns what it must be.
"""

import hashlib
import sys
import time
from functools import cache

import numpy as np
from numpy.typing import NDArray

ROWS, COLS = 256, 32 * 1024  # 64 MiB; a row is a block
STEP_SECONDS = 0.002


def fill(u: NDArray[np.float64], rank: int) -> None:
    """Make every block another one."""
    u[...] = np.arange(ROWS)[:, None] + 1000.0 * rank
    u += np.arange(COLS) / COLS


def advance(u: NDArray[np.float64], step: int) -> None:
    """Do a step."""
    u[step * 7 % ROWS] *= 1.0 + 1.0 / (step + 3)


def checksum(u: NDArray[np.float64]) -> str:
    """Give what a rank prints."""
    return hashlib.sha256(u.tobytes()).hexdigest()


@cache
def expected(rank: int, stop: int) -> str:
    """Do the same without checkpoints."""
    u = np.empty((ROWS, COLS))
    fill(u, rank)
    for step in range(stop):
        advance(u, step)
    return checksum(u)


def main() -> None:
    """Run as one rank."""
    from mpi4py import MPI  # noqa: PLC0415  (tests import this file without MPI)

    import mpickpt  # noqa: PLC0415

    comm = MPI.COMM_WORLD
    with mpickpt.open(sys.argv[1], comm, every=200) as ckpt:
        u = ckpt.array("u", (ROWS, COLS), fill=lambda a: fill(a, comm.rank))
        for step in ckpt.range(int(sys.argv[2])):
            advance(u, step)
            end = time.perf_counter() + STEP_SECONDS
            while time.perf_counter() < end:  # busy: an idle thread hardly gets the core
                pass
    print(f"rank {comm.rank} result {checksum(u)}")


if __name__ == "__main__":
    main()
