"""Bodies that attract each other, all pairs: blocks of bodies travel round a ring; a thermostat adds random kicks.

The result has the same bits in each run on the same number of ranks.
"""

import argparse

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Vectors = NDArray[np.float64]
SOFTENING = 0.01  # square of the distance below which the attraction no longer grows
FRICTION, HEAT = 0.1, 0.2  # of the thermostat


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bodies", type=int, default=501)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--dt", type=float, default=0.01)
    parser.add_argument("--out", help="write the path of every body here (.npy)")
    return parser.parse_args()


def attraction(pos: Vectors, others: Vectors) -> Vectors:
    """Return the pull of `others` on each body of `pos`."""
    distance = others[None, :, :] - pos[:, None, :]
    square = (distance * distance).sum(axis=2) + SOFTENING
    pulls: Vectors = (distance / (square * np.sqrt(square))[:, :, None]).sum(axis=1)
    return pulls


def pull(comm: MPI.Intracomm, pos: Vectors) -> Vectors:
    """Return the pull of all bodies on each of this rank's: every block of bodies passes by once."""
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    guests, total = pos, np.zeros_like(pos)
    for _ in range(comm.size):
        total += attraction(pos, guests)
        guests = comm.sendrecv(guests, dest=right, source=left)
    return total


def save(comm: MPI.Intracomm, path: Vectors, name: str) -> None:
    """Collect the paths on rank 0 and write them as one array (step, body, axis)."""
    paths = comm.gather(path)
    if paths is not None:
        np.save(name, np.concatenate(paths, axis=1))


def main() -> None:
    """Run the job."""
    args = parse()
    comm = MPI.COMM_WORLD
    low = args.bodies * comm.rank // comm.size
    high = args.bodies * (comm.rank + 1) // comm.size

    rng = np.random.default_rng(comm.rank)
    pos = rng.standard_normal((high - low, 3))
    vel = np.zeros((high - low, 3))
    path = np.zeros((args.steps, high - low, 3))
    for step in range(args.steps):
        vel += args.dt * pull(comm, pos) / args.bodies
        vel *= 1 - FRICTION * args.dt
        vel += np.sqrt(2 * FRICTION * HEAT * args.dt) * rng.standard_normal(vel.shape)
        pos += args.dt * vel
        path[step] = pos

    if args.out:
        save(comm, path, args.out)


if __name__ == "__main__":
    main()
