"""Conjugate gradients for the 5-point Laplacian on a square grid: strips of grid rows, a sparse matrix on each rank.

The result has the same bits in each run on the same number of ranks.
"""

import argparse

import numpy as np
import scipy.sparse as sp
from mpi4py import MPI
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", type=int, default=301, help="points along one edge of the square")
    parser.add_argument("--steps", type=int, default=10_000, help="give up after so many")
    parser.add_argument("--tolerance", type=float, default=1e-8, help="relative residual to reach")
    parser.add_argument("--out", help="write the solution here (.npy)")
    return parser.parse_args()


def laplacian(rows: int, grid: int) -> sp.csr_array:
    """Return the matrix of a strip of `rows` grid rows; its columns include one grid row above and one below."""
    along = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(grid, grid))
    across = sp.diags_array([-1.0, 2.0, -1.0], offsets=[0, 1, 2], shape=(rows, rows + 2))
    inner = sp.eye_array(rows, rows + 2, k=1)
    return (sp.kron(inner, along) + sp.kron(across, sp.eye_array(grid))).tocsr()


def right_hand_side(first: int, last: int) -> Vector:
    """Return the entries `first` to `last - 1` of a right-hand side that depends only on the grid point."""
    return np.arange(first, last) * 7919 % 1009 / 1009.0


def dot(comm: MPI.Intracomm, a: Vector, b: Vector) -> float:
    """Return the scalar product over all ranks."""
    total = np.empty(1)
    comm.Allreduce(np.array([a @ b]), total)
    return float(total[0])


def exchange(comm: MPI.Intracomm, wide: Vector, grid: int) -> None:
    """Receive the neighbours' grid rows into the first and the last grid row of `wide`."""
    up = comm.rank - 1 if comm.rank > 0 else MPI.PROC_NULL
    down = comm.rank + 1 if comm.rank < comm.size - 1 else MPI.PROC_NULL
    comm.Sendrecv(wide[grid : 2 * grid], dest=up, recvbuf=wide[-grid:], source=down)
    comm.Sendrecv(wide[-2 * grid : -grid], dest=down, recvbuf=wide[:grid], source=up)


def save(comm: MPI.Intracomm, x: Vector, path: str) -> None:
    """Collect the strips on rank 0 and write them as one array."""
    strips = comm.gather(x)
    if strips is not None:
        np.save(path, np.concatenate(strips))


def main() -> None:
    """Run the job."""
    args = parse()
    comm = MPI.COMM_WORLD
    low = args.grid * comm.rank // comm.size
    high = args.grid * (comm.rank + 1) // comm.size
    first, last = low * args.grid, high * args.grid
    matrix = laplacian(high - low, args.grid)
    b = right_hand_side(first, last)
    target = args.tolerance**2 * dot(comm, b, b)
    wide = np.zeros(matrix.shape[1])

    x = np.zeros(last - first)
    r = b.copy()
    p = b.copy()
    squares = [dot(comm, r, r)]
    while squares[-1] > target and len(squares) <= args.steps:
        wide[args.grid : -args.grid] = p
        exchange(comm, wide, args.grid)
        q = matrix @ wide
        alpha = squares[-1] / dot(comm, p, q)
        x += alpha * p
        r -= alpha * q
        squares.append(dot(comm, r, r))
        p *= squares[-1] / squares[-2]
        p += r

    if args.out:
        save(comm, x, args.out)


if __name__ == "__main__":
    main()
