"""What checkpoints cost a program that changes nothing: processor time, counted call by call.

``mpiexec -n 2 python unchanged.py``. Whole runs with and without checkpoints vary by more than the checkpoints cost. So
here the time of each safe point that does something is counted, and that of all other threads of the process. The
program reads all of its state repeatedly, which keeps the code of mpickpt out of the caches, and its ranks meet in each
step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from folder import shared_folder
from mpi4py import MPI
from rich.table import Table

import mpickpt
from mpickpt.session.session import Session

import aims
from launch import console

COMM = MPI.COMM_WORLD
WARM_UP = 4  # checkpoints that are not counted: afterwards both slots have been written, and code is loaded
STEPS = 64  # of a pass over the state


class Stopwatch:
    """Notes the processor time of the program's own thread in the safe points that do something, by what they do."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.counts = False
        act = Session._act

        def timed(session: Session, step: int) -> None:
            stats = session._driver.stats
            cuts, ended = stats.cuts, stats.drain_seconds + stats.complete
            begin = time.thread_time()
            act(session, step)
            took = time.thread_time() - begin
            what = "look"
            if stats.drain_seconds + stats.complete != ended:
                what = "end of a drain, word of the others"
            if stats.cuts != cuts:  # on a busy machine this can be the safe point where the last drain has ended
                what = "cut"
            if self.counts:
                self.seconds[what].append(took)

        Session._act = timed  # type: ignore[assignment,method-assign]


def _seconds_of_other_threads() -> float:
    """Processor seconds of all threads of this process but the first: those of the drain and of the libraries."""
    others = [task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in others) / 1e9


def _run(folder: Path, mib: int, interval: float, epochs: int) -> tuple[Stopwatch, float, float]:
    """Return what was noted of `epochs` checkpoints, the seconds of other threads, and the total time."""
    watch = Stopwatch()
    threads = begin = 0.0
    with mpickpt.open(folder, COMM, interval=interval) as ckpt:
        state = ckpt.array("state", mib << 17, fill=1.0)
        parts = np.array_split(state, STEPS)
        for step in ckpt.range(1 << 60):
            parts[step % STEPS].sum()
            cuts = COMM.allreduce(ckpt.stats().cuts if step % 8 == 0 else 0, MPI.MIN)
            if cuts == WARM_UP and not watch.counts:
                watch.counts, threads, begin = True, _seconds_of_other_threads(), time.perf_counter()
            if cuts == WARM_UP + epochs:
                watch.counts = False
                return watch, _seconds_of_other_threads() - threads, time.perf_counter() - begin
    raise AssertionError("a session that does not end")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="state of each rank")
    parser.add_argument("--interval", type=float, default=0.375, help="seconds between two cuts")
    parser.add_argument("--epochs", type=int, default=40, help="checkpoints that are counted")
    parser.add_argument("--dir", type=Path, default=Path(), help="where the checkpoints are written")
    options = parser.parse_args()
    with shared_folder(COMM, "unchanged-", options.dir) as folder:
        watch, threads, took = _run(folder, options.mib, options.interval, options.epochs)
    ranks: list[tuple[dict[str, list[float]], float]] | None = COMM.gather((dict(watch.seconds), threads))
    if ranks is None:
        return
    each = 1000 / len(ranks) / options.epochs  # to ms for a rank and checkpoint
    interval = took / options.epochs
    table = Table(title=f"{len(ranks)} ranks of {options.mib} MiB that change nothing, cut every {interval:.3f} s")
    for heading in ("", "for a rank and checkpoint", "median us", "ms in all"):
        table.add_column(heading, justify="right" if heading else "left")
    for what in sorted({what for seconds, _ in ranks for what in seconds}):
        found = [one for seconds, _ in ranks for one in seconds.get(what, [])]
        count = len(found) / len(ranks) / options.epochs
        table.add_row(what, f"{count:.2f}", f"{statistics.median(found) * 1e6:.0f}", f"{sum(found) * each:.3f}")
    of_threads = sum(threads for _, threads in ranks)
    table.add_row("threads of the drain", "", "", f"{of_threads * each:.3f}")
    of_program = sum(sum(map(sum, seconds.values())) for seconds, _ in ranks)
    total = (of_threads + of_program) * each
    table.add_row("sum", "", "", f"{total:.3f}", style="bold")
    console().print(table)
    print(f"{total / interval / 10:.2f} % of the time")
    console().print(aims.table([aims.of_nothing(total * 1024 / options.mib)]))


main()
