"""An MPI program: each call of plain_calls.c receives into protected memory, and the result is reported.

In addition to the data and the image, the blocks that are writable afterwards are compared with the reach of the call:
over shared memory the MPI library copies messages itself, and a fault would open what the guard missed. Rank 0 prints
one JSON object, as receive.py does.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from mpi4py import MPI
from protected import BLOCK, Bench

from mpickpt.snapshot.guard import close_guard, open_guard

START = BLOCK + 13  # inside a page
END_BYTES = 1000
APART = 3 * BLOCK  # of the two ends of an element


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


class Plain:
    """The library, and what went wrong in its calls."""

    def __init__(self, library: Path, folder: Path, comm: MPI.Intracomm) -> None:
        self.calls = ctypes.CDLL(str(library))
        self.folder = folder
        self.comm = comm
        self.wrong: list[str] = []

    def check(self, name: str, what: str, good: bool) -> None:
        """Note what is not as it should be."""
        if not good:
            self.wrong.append(f"rank {self.comm.rank}: {name}: {what}")

    def check_open(self, name: str, what: str, bench: Bench) -> None:
        """Compare the blocks that are writable with those that the call reaches."""
        bounds = (ctypes.c_long * 2)()
        self.calls.reach(bounds)
        reached = np.zeros(-(-bench.region.size // BLOCK), bool)
        if bounds[1] > bounds[0]:
            reached[(START + bounds[0]) // BLOCK : (START + bounds[1] - 1) // BLOCK + 1] = True
        found = bench.writable()
        blocks = f"writable {np.flatnonzero(found).tolist()}, reached {np.flatnonzero(reached).tolist()}"
        self.check(name, f"{what}: {blocks}", np.array_equal(found, reached))

    def run(self, name: str) -> None:
        """One call, or two with a cut in between."""
        room = (APART + END_BYTES + 64) * self.comm.size
        open_guard()
        bench = Bench(START + room + 2 * BLOCK, self.folder, self.comm.rank)
        bench.region[:] = np.random.default_rng(self.comm.rank).integers(0, 251, bench.region.size, np.uint8)
        into = bench.region[START : START + room]
        want = into.copy()
        self.calls.prepare(
            self.comm.py2f(), _pointer(into), _pointer(want), ctypes.c_long(APART), END_BYTES,
            bytes(self.folder / f"file-{name}"),
        )  # fmt: skip
        expected = bench.cut()
        if hasattr(self.calls, f"call_{name}"):
            self.check(name, "error", getattr(self.calls, f"call_{name}")() == 0)
            self.check_open(name, "after the call", bench)
        else:
            self.check(name, "error", getattr(self.calls, f"post_{name}")() == 0)
            self.check_open(name, "after the call", bench)
            self.check(name, "torn image of the cut before", np.array_equal(bench.image(), expected))
            expected = bench.cut()
            self.check_open(name, "after the cut", bench)
            self.check(name, "error", getattr(self.calls, f"end_{name}")() == 0)
        self.check(name, "wrong data", np.array_equal(into, want))
        self.check(name, "torn image", np.array_equal(bench.image(), expected))
        self.comm.Barrier()
        self.calls.finish()
        bench.close()
        close_guard()


def main() -> None:
    """Run the calls named on the command line."""
    comm = MPI.COMM_WORLD
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as own:
        plain = Plain(Path(sys.argv[1]), Path(comm.bcast(own)), comm)
        for name in sys.argv[3:]:
            plain.run(name)
        wrong = comm.gather(plain.wrong)
        comm.Barrier()
    if comm.rank == 0:
        assert wrong is not None
        print(json.dumps({"wrong": sum(wrong, [])}))


main()
