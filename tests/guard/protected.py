"""A region of protected memory and its slot, for the programs that run under mpiexec."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mpickpt.layout.arrays import SlotOffsets
from mpickpt.snapshot import CutPlan, DrainState, Snapshotter, Target

BLOCK = 64 * 1024


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
        target = Target(self.path, self.offsets, self.rank, run=1, digest=bytes(32))
        self.snapshotter.cut(CutPlan(target, self.epoch, step=0, objects=b""))
        return expected

    def writable(self) -> np.ndarray:
        """Tell of each block whether its pages are writable now; it fails if they differ within a block."""
        size = -(-self.region.size // 4096)
        pages = np.zeros(size, bool)
        begin = self.region.ctypes.data
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, mode = line.split(maxsplit=2)[:2]
            first, last = ((int(address, 16) - begin) // 4096 for address in span.split("-"))
            pages[max(first, 0) : max(last, 0)] |= "w" in mode
        by_block = np.pad(pages, (0, -size % (BLOCK // 4096)), mode="edge").reshape(-1, BLOCK // 4096)
        assert (by_block.all(1) == by_block.any(1)).all()
        return by_block.any(1)

    def image(self) -> np.ndarray:
        """Wait for the drain and give what it saved."""
        self.snapshotter.wait()
        assert self.snapshotter.progress().state is DrainState.COMPLETE, self.snapshotter.progress()
        return np.fromfile(self.path, np.uint8, self.region.size)

    def close(self) -> None:
        """Undo everything."""
        self.snapshotter.close()
        self.path.unlink()
