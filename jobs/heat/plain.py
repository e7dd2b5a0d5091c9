"""The heat equation on a plate: rows in blocks, one halo row to each side.

The result has the same bits on any number of ranks: each cell is computed from the same five numbers
in the same order, whichever rank owns it.
"""

import argparse

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Field = NDArray[np.float64]
EDGE = 20.0  # temperature beyond the plate's upper and lower edge
ALPHA = 0.2  # dt * diffusivity / dx**2; stable below 1/4


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1001)
    parser.add_argument("--cols", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", help="write the whole field here (.npy)")
    return parser.parse_args()


def warm_up(u: Field, first_row: int) -> None:
    """Fill a block of rows with a pattern that depends only on the cell, and its halo with the plate's edges."""
    row = np.arange(first_row, first_row + u.shape[0])[:, None]
    u[:] = row * np.arange(u.shape[1]) % 101
    u[0] = u[-1] = EDGE


def exchange(comm: MPI.Intracomm, u: Field) -> None:
    """Receive the neighbours' outer rows straight into the halo rows ``u[0]`` and ``u[-1]``."""
    up = comm.rank - 1 if comm.rank > 0 else MPI.PROC_NULL
    down = comm.rank + 1 if comm.rank < comm.size - 1 else MPI.PROC_NULL
    comm.Sendrecv(u[1], dest=up, recvbuf=u[-1], source=down)
    comm.Sendrecv(u[-2], dest=down, recvbuf=u[0], source=up)


def relax(u: Field) -> None:
    """Advance the inner cells by one time step; the first and last column stay as they are."""
    flow = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:] - 4 * u[1:-1, 1:-1]
    u[1:-1, 1:-1] += ALPHA * flow


def save(comm: MPI.Intracomm, u: Field, path: str) -> None:
    """Collect the blocks on rank 0 and write them as one array."""
    blocks = comm.gather(u[1:-1])
    if blocks is not None:
        np.save(path, np.concatenate(blocks))


def main() -> None:
    """Run the job."""
    args = parse()
    comm = MPI.COMM_WORLD
    low = args.rows * comm.rank // comm.size
    high = args.rows * (comm.rank + 1) // comm.size

    u = np.empty((high - low + 2, args.cols))
    warm_up(u, low - 1)
    for _ in range(args.steps):
        exchange(comm, u)
        relax(u)

    if args.out:
        save(comm, u, args.out)


if __name__ == "__main__":
    main()
