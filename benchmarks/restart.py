"""What a restart costs: from `mpickpt.open` to the first step, eager and lazy, beside raw pread of the same bytes.

``mpiexec -n 2 python restart.py --mib 64 1024`` measures states of 64 and 1024 MiB on each rank. The contenders take
turns, forwards in one round and backwards in the next. The slot is not in the page cache, and as much memory as they
need was in use just before: a virtual machine may have to request other memory from its host, which takes much longer
than clearing it.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from folder import shared_folder
from mpi4py import MPI
from numpy.typing import NDArray

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

import memory
from direct import CALL_BYTES

COMM = MPI.COMM_WORLD
MIB = 2**20
NEVER = 1_000_000  # steps between two cuts: there is none
WAYS = ("array", "protect", "lazy")
STEP_DOUBLES = MIB // 8  # the first step rewrites 1 MiB
BUFFER_BYTES = 256 * MIB  # raw reads go there repeatedly, so that all of its pages are present


class Bench:
    """A saved state, and the ways to read it back.

    Parameters
    ----------
    folder : Path
        The checkpoint directory, the same on all ranks.
    nbytes : int
        Size of each rank's array, a multiple of 4 MiB.
    """

    def __init__(self, folder: Path, nbytes: int) -> None:
        self.folder = folder
        self.doubles = nbytes // 8
        with mpickpt.open(folder, COMM, every=1, restart="never", pool="1MiB") as ckpt:
            _u = ckpt.array("u", self.doubles, fill=float(COMM.rank + 1))
            for _ in ckpt.range(2):
                pass
        slot = Store(folder, crc32c).slots()[0]
        self.path = slot.path
        self.offset = Store(folder, crc32c).offsets(slot.index)[COMM.rank].arrays[0]
        self.buffer = memory.allocate(min(nbytes, BUFFER_BYTES), huge=True)

    def prepare(self) -> None:
        """Drop the slot from the page cache, and use memory and free it."""
        if COMM.rank == 0:
            with self.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        gc.collect()  # the last session and its array
        memory.allocate(10 * self.doubles, huge=True)  # the array, and a pool of a quarter of it
        COMM.Barrier()

    def raw(self) -> tuple[float, float]:
        """Read as many bytes with O_DIRECT, 4 MiB per call, into memory that is present."""
        view = self.buffer.view(np.uint8).data
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        begin = time.perf_counter()
        for at in range(0, 8 * self.doubles, CALL_BYTES):
            to = at % len(view)
            if os.preadv(descriptor, [view[to : to + CALL_BYTES]], self.offset + at) != CALL_BYTES:
                raise OSError(f"{self.path}: short read at byte {at}")
        seconds = time.perf_counter() - begin
        os.close(descriptor)
        return seconds, seconds

    def array(self) -> tuple[float, float]:
        """Restart a program whose array the session allocates."""
        return self._restart(self._declare, lazy=False)

    def lazy(self) -> tuple[float, float]:
        """Restart the same program lazily."""
        return self._restart(self._declare, lazy=True)

    def _declare(self, ckpt: mpickpt.Session) -> NDArray[np.float64]:
        return ckpt.array("u", self.doubles)

    def protect(self) -> tuple[float, float]:
        """Restart a program that brings its own array."""
        own = memory.allocate(8 * self.doubles, huge=False)
        COMM.Barrier()
        return self._restart(lambda ckpt: ckpt.protect("u", own), lazy=False)

    def _restart(self, declare: Callable[[mpickpt.Session], NDArray[np.float64]], *, lazy: bool) -> tuple[float, float]:
        """Return the seconds until the first step is done, and until all is in memory and checked."""
        begin = time.perf_counter()
        ckpt = mpickpt.open(self.folder, COMM, every=NEVER, lazy=lazy)
        u = declare(ckpt)
        loaded = time.perf_counter() - begin
        for _ in ckpt.range(2, 3):
            u[:STEP_DOUBLES] += 1.0
        first = time.perf_counter() - begin
        ckpt.close()  # waits until a lazy restart has loaded all
        return first, time.perf_counter() - begin if lazy else loaded


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 1024], help="MiB of each rank")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="what to measure beside raw pread")
    parser.add_argument("--dir", type=Path, default=Path(), help="where the checkpoints are written")
    options = parser.parse_args()
    for mib in options.mib:
        with shared_folder(COMM, "restart-", options.dir) as folder:
            bench = Bench(folder, mib * MIB)
            ways = {"raw pread": bench.raw} | {name: getattr(bench, name) for name in options.ways}
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for turn in range(options.rounds):
                for name in ways if turn % 2 == 0 else reversed(ways):
                    bench.prepare()
                    found[name].append(slowest(ways[name]()))
        if COMM.rank == 0:
            raw = statistics.median(seconds for _, seconds in found["raw pread"])
            for name, times in found.items():
                tell(f"{COMM.size} ranks of {mib} MiB, {name}", times, raw)


def slowest(times: tuple[float, float]) -> tuple[float, float]:
    """Return the times of the slowest rank."""
    first, loaded = (COMM.allreduce(seconds, MPI.MAX) for seconds in times)
    return first, loaded


def tell(what: str, times: list[tuple[float, float]], raw: float) -> None:
    """Print medians and ranges in milliseconds, and the bandwidth as a share of raw pread's."""
    first, loaded = zip(*times, strict=True)
    ranges = [f"{1e3 * statistics.median(s):.0f} ({1e3 * min(s):.0f}-{1e3 * max(s):.0f})" for s in (first, loaded)]
    share = raw / statistics.median(loaded)
    print(f"{what:40} first step {ranges[0]:22} ms, all loaded {ranges[1]:22} ms, {share:.2f} of raw", flush=True)


if __name__ == "__main__":
    main()
