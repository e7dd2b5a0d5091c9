"""What agreeing on a cut costs: safe points with nothing to do, markers on a few ranks, and messages on very many.

``mpiexec -n 4 python rounds.py`` measures the first two; ``python rounds.py --ranks 100000`` lets 100,000 simulated
ranks agree once, and counts what they send.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from folder import shared_folder
from mpi4py import MPI
from numpy.typing import NDArray

import mpickpt
from mpickpt.mpi.rounds import Rounds

HERE = Path(__file__).parent
COMM = MPI.COMM_WORLD
BYTES = {"up": 24, "marker": 16, "share of answer": 16, "answer": 16, "share of commit": 104, "commit": 104}
TIMED = ("next_event", "announce", "propose", "forward")


class Stopwatch:
    """Notes how long the calls of `Rounds` in a round take; calls that find nothing happen at every poll.

    Its own cost, one more Python call out of cold caches, is measured by an empty call in each step and subtracted.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in (*TIMED, "nothing", "empty")}
        self.empty = self._timed("empty", lambda: None)
        for name in TIMED:
            setattr(Rounds, name, self._timed(name, getattr(Rounds, name)))

    def _timed(self, name: str, function: Any) -> Any:  # noqa: ANN401
        def call(*args: object, **kwargs: object) -> object:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            nothing = name == "next_event" and result is None
            self.seconds["nothing" if nothing else name].append(time.perf_counter() - begin)
            return result

        return call

    def of_a_round(self, rounds: int) -> float:
        """Seconds of a round: the median of each call, times its number in a round."""
        own = self.of_itself()
        timed = [found for name in TIMED if (found := self.seconds[name])]
        return sum((statistics.median(found) - own) * len(found) / rounds for found in timed)

    def of_itself(self) -> float:
        """Seconds of a call that does nothing, as noted."""
        return statistics.median(self.seconds["empty"])

    def of_a_look(self) -> float:
        """Seconds of a poll that finds nothing."""
        return statistics.median(self.seconds["nothing"])


def _safe_points(folder: Path, count: int) -> float:
    """Seconds of a step of an empty loop with safe points, minus those of a step of `range`."""
    with mpickpt.open(folder / "safe", COMM) as ckpt:
        _u = ckpt.array("u", 1000)
        found = []
        for k in range(5):
            begin = time.perf_counter()
            for _ in ckpt.range(k * count, (k + 1) * count):
                pass
            middle = time.perf_counter()
            for _ in range(count):
                pass
            found.append((2 * middle - begin - time.perf_counter()) / count)
    return statistics.median(found)


def _markers(folder: Path, epochs: int, step_seconds: float) -> tuple[Stopwatch, int, int]:
    """Return what was noted, the number of rounds, and how often this rank was blocked for an answer."""
    watch = Stopwatch()
    work: NDArray[np.float64] = np.zeros(1 << 17)  # 1 MiB: a step pushes our code out of the inner caches
    with mpickpt.open(folder / "markers", COMM) as ckpt:
        _u = ckpt.array("u", 1000)
        for step in ckpt.range(epochs * 20):
            if COMM.rank == 0 and step % 20 == 10:
                ckpt.request()
            end = time.perf_counter() + step_seconds
            while time.perf_counter() < end:
                work += 1.0
            watch.empty()
            COMM.allreduce(step)
    stats = ckpt.stats()
    return watch, stats.rounds, stats.waits


def _simulate(size: int) -> None:
    sys.path.insert(0, str(HERE.parent / "tests"))
    from simulator import Job, Simulation  # noqa: PLC0415

    begin = time.perf_counter()
    job = Job(size, 20, lambda rank, step: 1.0, in_mpi=True, asks=[(5.0, size - 1, False)], longest_drain=0.5)
    simulation = Simulation(job)
    simulation.run()
    rounds = simulation.ranks[0].protocol.rounds
    epochs = max(1, len(simulation.cuts))
    messages = [rank.sent.total() / epochs for rank in simulation.ranks]
    sent = [sum(BYTES[kind] * n for kind, n in rank.sent.items()) / epochs for rank in simulation.ranks]
    print(
        f"{size} simulated ranks: {len(simulation.cuts)} epochs in {rounds} rounds; for each rank and epoch "
        f"{statistics.mean(messages):.1f} messages of {statistics.mean(sent):.0f} bytes in all; at most "
        f"{max(messages):.0f} messages, {max(sent):.0f} bytes (log2 of the ranks: {math.log2(size):.1f}); "
        f"{time.perf_counter() - begin:.0f} s to simulate"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", help="simulate so many ranks")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--step", type=float, default=0.002, help="seconds of a step")
    parser.add_argument("--dir", type=Path, default=Path(), help="where the checkpoints are written")
    options = parser.parse_args()
    for size in options.ranks or []:
        _simulate(size)
    if options.ranks:
        return
    with shared_folder(COMM, "rounds-", options.dir) as folder:
        safe = COMM.allreduce(_safe_points(folder, 200_000), MPI.MAX)
        watch, rounds, blocked = _markers(folder, options.epochs, options.step)
    marker = watch.of_a_round(rounds)
    worst = COMM.allreduce(marker, MPI.MAX)
    mean = COMM.allreduce(marker) / COMM.size
    looked = COMM.allreduce(watch.of_a_look(), MPI.MAX)
    own = COMM.allreduce(watch.of_itself()) / COMM.size
    waits = COMM.allreduce(blocked)
    if COMM.rank == 0:
        print(
            f"{COMM.size} ranks: safe point with nothing to do {safe * 1e9:.0f} ns; marker {mean * 1e6:.1f} us a rank "
            f"and epoch (worst rank {worst * 1e6:.1f}; the stopwatch's own {own * 1e6:.1f} us a call are taken off); "
            f"poll that finds nothing {looked * 1e6:.1f} us; {waits} waits"
        )


main()
