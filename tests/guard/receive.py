"""An MPI program: runs each case of `mpi_cases` into protected memory and reports the result.

For each case and size: fill a region, cut, have the call write to a part of it that begins and ends within blocks, and
compare the memory with what was sent and the image in the slot with what the region held at the cut. Rank 0 prints one
JSON object: how often each case was done, and what went wrong.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from mpi4py import MPI
from mpi_cases import CASES, Stage
from protected import BLOCK, Bench

from mpickpt.snapshot.guard import close_guard, open_guard

SIZES = (1, 1000, 3 * BLOCK // 2)  # bytes a rank: within a page, within a block, across blocks
LARGE = 64 << 20
LARGE_CASES = ("Recv", "Irecv", "Sendrecv", "Bcast", "Allgather", "Win_create", "File_Read_at")


def stays_in_use(name: str) -> bool:
    """Tell whether a call's buffer may be written to when the call has returned."""
    return name.startswith(("I", "File_I", "Get", "Rget", "Fetch", "Compare", "Win_")) or name.endswith(
        ("_init", "_begin")
    )


class Report:
    """What was done on this rank, and what went wrong."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.missing: dict[str, str] = {}
        self.wrong: list[str] = []

    def run(self, name: str, size: int, comm: MPI.Intracomm, folder: Path) -> None:
        """One case with a guard, a session and a region of its own: a buffer of an older case may still be held."""
        start = BLOCK + 13  # inside a page, whose other bytes are another buffer's
        total = size * comm.size if size < LARGE else size // comm.size * comm.size
        open_guard()
        bench = Bench(start + total + 2 * BLOCK, folder, comm.rank)
        rng = np.random.default_rng(comm.rank)
        bench.region[:] = rng.integers(0, 251, bench.region.size, np.uint8)
        into = bench.region[start : start + total]
        expected = bench.cut()
        bench.region[start - 5 : start] = 252  # the neighbour is written too, by the program
        try:
            received = CASES[name](Stage(comm, into, folder))
        except NotImplementedError as error:
            self.missing[name] = str(error)
        else:
            self.done[name] = self.done.get(name, 0) + 1
            if not np.array_equal(into, received):
                self.wrong.append(f"rank {comm.rank}: {name}, {size} bytes: wrong data")
        if not np.array_equal(bench.image(), expected):
            self.wrong.append(f"rank {comm.rank}: {name}, {size} bytes: torn image")
        comm.Barrier()
        if name in self.done:
            differs = np.zeros(bench.region.size, bool)
            np.not_equal(into, expected[start : start + total], out=differs[start : start + total])
            changed = np.flatnonzero(np.logical_or.reduceat(differs, np.arange(0, differs.size, BLOCK)))
            self.check_held(name, size, bench, changed, (start + total - 1) // BLOCK)
        bench.close()
        close_guard()

    def check_held(self, name: str, size: int, bench: Bench, changed: np.ndarray, last: int) -> None:
        """Cut once more: a buffer that stays in use stays writable, and nothing else does."""
        bench.cut()
        writable = np.flatnonzero(bench.writable())
        good = writable.size == 0
        if stays_in_use(name):
            good = bool(np.isin(changed, writable).all() and ((writable > 0) & (writable <= last)).all())
        if not good:
            self.wrong.append(f"rank {bench.rank}: {name}, {size} bytes: writable after a cut: {writable.tolist()}")


def main() -> None:
    """Run the cases named on the command line, or all."""
    comm = MPI.COMM_WORLD
    wanted = sys.argv[2:] or list(CASES)
    report = Report()
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as own:
        folder = Path(comm.bcast(own))
        for name in wanted:
            large = name in LARGE_CASES and comm.size == 2  # with more ranks it takes minutes and shows nothing else
            for size in (*SIZES, *((LARGE,) if large else ())):
                report.run(name, size, comm, folder)
        wrong = comm.gather(report.wrong)
        comm.Barrier()
    if comm.rank == 0:
        assert wrong is not None
        print(json.dumps({"done": report.done, "missing": report.missing, "wrong": sum(wrong, [])}))


main()
