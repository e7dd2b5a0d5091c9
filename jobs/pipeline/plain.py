"""A pipeline: blocks of noise flow through the ranks, and each rank smooths them by its own recursive filter.

Each rank passes on one block in each step, and up to eight more if they have arrived. Up to eight can be in flight to
the next rank, which acknowledges each. So the ranks are seldom at the same block, and there are messages between them
at any instant. The result has the same bits in each run on the same number of ranks.
"""

import argparse
import time

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Signals = NDArray[np.float64]
SAMPLES = 16  # of each channel in a block
AHEAD = 8
BLOCK, ACKNOWLEDGED = 1, 2  # tags


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of further work on a block, in the mean")
    parser.add_argument("--out", help="write each channel's greatest amplitude in each block here (.npy)")
    return parser.parse_args()


def can_go_on(comm: MPI.Intracomm, blocks: dict[str, int]) -> bool:
    """Return whether a block can be passed on without waiting: it has arrived, and fewer than eight are in flight."""
    if comm.rank < comm.size - 1:
        while comm.Iprobe(source=comm.rank + 1, tag=ACKNOWLEDGED):
            acknowledge(comm, blocks)
    has_room = comm.rank == comm.size - 1 or blocks["passed on"] - blocks["acknowledged"] < AHEAD
    return has_room and (comm.rank == 0 or comm.Iprobe(source=comm.rank - 1, tag=BLOCK))


def acknowledge(comm: MPI.Intracomm, blocks: dict[str, int]) -> None:
    """Wait until the next rank acknowledges one more block."""
    blocks["acknowledged"] = comm.recv(source=comm.rank + 1, tag=ACKNOWLEDGED)


def take(comm: MPI.Intracomm, rng: np.random.Generator, block: Signals, number: int) -> None:
    """Receive the next block from the previous rank; rank 0 generates it."""
    if comm.rank == 0:
        rng.standard_normal(out=block)
    else:
        comm.Recv(block, source=comm.rank - 1, tag=BLOCK)
        comm.send(number + 1, dest=comm.rank - 1, tag=ACKNOWLEDGED)


def smooth(block: Signals, level: Signals, rate: float) -> None:
    """Replace each sample by the running mean of its channel; `level` holds it from block to block."""
    for sample in block:
        level += rate * (sample - level)
        sample[:] = level


def linger(pause: float, rank: int, number: int) -> None:
    """Sleep not at all, briefly or longer, in turns, so that blocks queue up at different ranks."""
    time.sleep(pause * ((number // 20 + rank) % 3))


def give(comm: MPI.Intracomm, block: Signals, peaks: Signals, blocks: dict[str, int]) -> None:
    """Pass a block on to the next rank; the last rank records its peaks."""
    if comm.rank == comm.size - 1:
        np.abs(block).max(axis=0, out=peaks[blocks["passed on"]])
    else:
        while blocks["passed on"] - blocks["acknowledged"] == AHEAD:
            acknowledge(comm, blocks)
        comm.Send(block, dest=comm.rank + 1, tag=BLOCK)
    blocks["passed on"] += 1


def main() -> None:
    """Run the job."""
    args = parse()
    comm = MPI.COMM_WORLD
    last = comm.rank == comm.size - 1
    rate = 1 / (comm.rank + 2)
    block = np.empty((SAMPLES, args.channels))

    rng = np.random.default_rng(1)
    blocks = {"passed on": 0, "acknowledged": 0}
    level = np.zeros(args.channels)
    peaks = np.zeros((args.steps if last else 0, args.channels))
    for step in range(args.steps):
        most = min(step + 1 + AHEAD, args.steps)
        while blocks["passed on"] <= step or (blocks["passed on"] < most and can_go_on(comm, blocks)):
            take(comm, rng, block, blocks["passed on"])
            linger(args.pause, comm.rank, blocks["passed on"])
            smooth(block, level, rate)
            give(comm, block, peaks, blocks)
    while not last and blocks["acknowledged"] < args.steps:
        acknowledge(comm, blocks)

    if args.out and last:
        np.save(args.out, peaks)


if __name__ == "__main__":
    main()
