"""An MPI program: runs each case of `mpi_cases` into protected memory and tells what became of it.

For each case and size: fill a region, cut, have the call write to a part of it that begins and ends within blocks, and
compare the memory with what was sent and the image in the slot with what the region held at the cut. Rank 0 prints one
JSON object: how often each case was done, and what went wrong.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from mpi4py import MPI
from mpi_cases import CASES, Stage

from mpickpt.guard import close_guard, open_guard
from mpickpt.layout import SlotOffsets
from mpickpt.snapshot import DrainState, Snapshotter

BLOCK = 64 * 1024
SIZES = (1, 1000, 3 * BLOCK // 2)  # bytes a rank: within a page, within a block, across blocks
LARGE = 64 << 20
LARGE_CASES = ("Recv", "Irecv", "Sendrecv", "Bcast", "Allgather", "Win_create", "File_Read_at")


class Bench:
    """A region, its slot, and cuts into it."""

    def __init__(self, nbytes: int, folder: Path, rank: int) -> None:
        self.rank = rank
        self.region = Snapshotter.allocate(nbytes)
        self.path = folder / f"slot-{rank}-{nbytes}"
        crcs = 4 * (nbytes // BLOCK + 1)
        with self.path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, nbytes + 4 * 4096 + crcs)
        data = -(-nbytes // 4096) * 4096
        self.offsets = SlotOffsets(data, (0,), (data + 8192,), data + 4096, 4096)
        self.snapshotter = Snapshotter()
        self.snapshotter.add(self.region, owned=True)
        self.snapshotter.seal(BLOCK, max(nbytes // 4, 2 * BLOCK))
        self.epoch = 0

    def cut(self) -> np.ndarray:
        """Cut, and give a copy of the region as it is at the cut."""
        self.snapshotter.wait()
        self.epoch += 1
        expected = self.region.copy()
        self.snapshotter.cut(
            path=self.path, epoch=self.epoch, step=0, rank=self.rank, run=1, digest=bytes(32), offsets=self.offsets,
            objects=b"", spill=None,
        )  # fmt: skip
        return expected

    def image(self) -> np.ndarray:
        """Wait for the drain and give what it saved."""
        self.snapshotter.wait()
        assert self.snapshotter.progress().state is DrainState.COMPLETE, self.snapshotter.progress()
        return np.fromfile(self.path, np.uint8, self.region.size)

    def close(self) -> None:
        """Undo everything."""
        self.snapshotter.close()
        self.path.unlink()


class Report:
    """What was done on this rank, and what went wrong."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}
        self.missing: dict[str, str] = {}
        self.wrong: list[str] = []

    def run(self, name: str, size: int, comm: MPI.Intracomm, folder: Path) -> None:
        """One case with a guard, a session and a region of its own: a buffer of an older case may still be held."""
        start = BLOCK + 13  # in the midst of a page, whose other bytes are another buffer's
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
        bench.close()
        close_guard()


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
