"""A wave on a plate: rows in blocks, one halo row to each side. The program is a function of the communicator.

The result has the same bits on any number of ranks: each cell is computed from the same numbers in the same order,
whichever rank owns it.
"""

import argparse
import time

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Field = NDArray[np.float64]
SPEED = 0.2  # (dt * velocity / dx)**2; stable below 1/2


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1001)
    parser.add_argument("--cols", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that each step takes longer")
    parser.add_argument("--out", help="write the whole field here (.npy)")
    return parser.parse_args()


def pluck(u: Field, first_row: int) -> None:
    """Fill a block of rows, and its halo, with a shape that depends only on the cell; the plate's edges are held."""
    row = np.arange(first_row, first_row + u.shape[0])[:, None]
    u[:] = row * np.arange(u.shape[1]) % 101
    u[0] = u[-1] = 0.0


def exchange(comm: MPI.Intracomm, u: Field) -> None:
    """Receive the neighbours' outer rows straight into the halo rows ``u[0]`` and ``u[-1]``."""
    up = comm.rank - 1 if comm.rank > 0 else MPI.PROC_NULL
    down = comm.rank + 1 if comm.rank < comm.size - 1 else MPI.PROC_NULL
    comm.Sendrecv(u[1], dest=up, recvbuf=u[-1], source=down)
    comm.Sendrecv(u[-2], dest=down, recvbuf=u[0], source=up)


def swing(u: Field, speed: Field) -> None:
    """Advance the inner cells by one time step; the first and last column stay as they are."""
    bent = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:] - 4 * u[1:-1, 1:-1]
    speed[1:-1, 1:-1] += SPEED * bent
    u[1:-1] += speed[1:-1]


def solve(comm: MPI.Intracomm) -> None:
    """Run the job on the ranks of `comm`."""
    args = parse()
    low = args.rows * comm.rank // comm.size
    high = args.rows * (comm.rank + 1) // comm.size

    u = np.empty((high - low + 2, args.cols))
    pluck(u, low - 1)
    speed = np.zeros(u.shape)
    for _ in range(args.steps):
        exchange(comm, u)
        swing(u, speed)
        time.sleep(args.pause)

    if args.out:
        blocks = comm.gather(u[1:-1])
        if blocks is not None:
            np.save(args.out, np.concatenate(blocks))


if __name__ == "__main__":
    solve(MPI.COMM_WORLD)
