"""A farm: rank 0 hands out intervals whose cost is not known in advance, and the other ranks integrate over them.

Each worker has two items in its queue, and gets another one for each result; the master receives results in the order
in which they arrive. So a quick worker is many steps ahead of the master, a slow one is behind, and there are messages
between them at any instant. Every worker has its own sequence of items, so its messages are the same in each run,
however quick the workers are. The result has the same bits in each run on the same number of ranks.
"""

import argparse
import math
import time

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Results = NDArray[np.float64]
Generators = list[np.random.Generator]
AHEAD = 2
ITEM, RESULT = 1, 2  # tags
LEAST, TOLERANCE = 0.002, 1e-8


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="items of each worker")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of further work on an interval of length 1")
    parser.add_argument("--out", help="write the integral over each interval here (.npy)")
    return parser.parse_args()


def f(x: float) -> float:
    """Return sin(1/x) / sqrt(x), which oscillates with growing frequency and amplitude towards 0."""
    return math.sin(1 / x) / math.sqrt(x)


def integrate(low: float, high: float, pause: float) -> float:
    """Integrate f by adaptive Simpson's rule, halving the interval where f oscillates: the work grows towards 0."""
    time.sleep(pause * (high - low))
    total, todo = 0.0, [(low, high)]
    while todo:
        a, b = todo.pop()
        q1, middle, q3 = a + (b - a) / 4, (a + b) / 2, b - (b - a) / 4
        fa, fm, fb = f(a), f(middle), f(b)
        coarse = (b - a) / 6 * (fa + 4 * fm + fb)
        fine = (b - a) / 12 * (fa + 4 * f(q1) + 2 * fm + 4 * f(q3) + fb)
        if abs(fine - coarse) < TOLERANCE:
            total += fine
        else:
            todo += (middle, b), (a, middle)
    return total


def next_interval(rng: np.random.Generator) -> tuple[float, float]:
    """Draw an interval inside (0, 1)."""
    low, high = sorted(rng.uniform(LEAST, 1.0, 2).tolist())
    return low, high


def hand_out(comm: MPI.Intracomm, rngs: Generators, worker: int) -> None:
    """Send a worker its next item."""
    comm.send(next_interval(rngs[worker]), dest=worker + 1, tag=ITEM)


def lead(comm: MPI.Intracomm, rngs: Generators, results: Results, step: int) -> None:
    """Receive as many results as there are workers, from any of them, and hand out an item for each."""
    workers, steps = results.shape
    if step == 0:
        for item in range(min(AHEAD, steps) * workers):
            hand_out(comm, rngs, item % workers)
    status = MPI.Status()
    for _ in range(workers):
        number, integral = comm.recv(source=MPI.ANY_SOURCE, tag=RESULT, status=status)
        worker = status.Get_source() - 1
        results[worker, number] = integral
        if number + AHEAD < steps:
            hand_out(comm, rngs, worker)


def work(comm: MPI.Intracomm, step: int, pause: float) -> None:
    """Do one item."""
    low, high = comm.recv(source=0, tag=ITEM)
    comm.send((step, integrate(low, high, pause)), dest=0, tag=RESULT)


def main() -> None:
    """Run the job."""
    args = parse()
    comm = MPI.COMM_WORLD
    workers = max(1, comm.size - 1)
    alone, master = comm.size == 1, comm.rank == 0

    rngs = [np.random.default_rng((1, worker)) for worker in range(workers)]
    results = np.zeros((workers if master else 0, args.steps))
    for step in range(args.steps):
        if alone:
            results[0, step] = integrate(*next_interval(rngs[0]), args.pause)
        elif master:
            lead(comm, rngs, results, step)
        else:
            work(comm, step, args.pause)

    if master:
        print(f"the sum over {results.size} intervals is {results.sum():.12g}")
        if args.out:
            np.save(args.out, results)


if __name__ == "__main__":
    main()
