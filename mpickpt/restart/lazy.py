"""A lazy restart: the program computes on arrays that are still being read and checked.

An array is a private mapping of the slot, so the program and the kernel can use it at once. A `Loader` reads and checks
it in the background and gives it memory of its own. One rule makes that safe: no rank is cut, and no session ends
normally, before all ranks have loaded all blocks and found them valid (docs/decisions/032-lazy-restart.md).
"""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import CorruptionError, MpickptError, StoreError
from mpickpt.layout.arrays import ArraySpec, blocks_in
from mpickpt.protocol.policy import should_boost
from mpickpt.reading.image import Damage, RankImage
from mpickpt.restart.sources import Remap, SameRanks
from mpickpt.snapshot import Loader, Snapshotter

INTERRUPT_SECONDS = 0.1  # after which a wait for the loader returns to Python, for Ctrl-C


class Loading:
    """Loads the arrays of one rank that the program asks for.

    Parameters
    ----------
    image : RankImage
        The rank's share of the epoch.
    direct : bool
        Whether arrays that are not mapped are read past the page cache.
    """

    def __init__(self, image: RankImage, direct: bool) -> None:
        self._image = image
        self._direct = direct
        self._loader: Loader | None = None
        self._is_bad = False
        self._mapped: list[int] = []  # positions of the arrays, in the order in which the loader has them

    def array(self, index: int) -> NDArray[np.uint8]:
        """Return array `index` to compute on, and begin to load it; if it cannot be mapped, it is read now.

        Raises
        ------
        CorruptionError
            If it is read now and corrupt.
        """
        nbytes = self._image.arrays[index].nbytes
        count = blocks_in(nbytes, self._image.block_bytes)
        sums = self._image.checksums(index, 0, count)
        if nbytes and len(sums) == count:
            try:
                self._loader = self._loader or Loader(self._image.path, self._image.block_bytes)
                memory = self._loader.map(self._image.offsets.arrays[index], nbytes, sums)
            except OSError:
                pass  # pages larger than the slot's alignment, a file system without mappings, a file that is too short
            else:
                self._mapped.append(index)
                return memory
        memory = Snapshotter.allocate(nbytes) if nbytes else np.empty(0, np.uint8)
        self.read(index, memory)
        return memory

    def read(self, index: int, out: NDArray[np.uint8]) -> None:
        """Read array `index` into `out` now; CorruptionError if it is corrupt."""
        damage = self._image.read_array(index, out, direct=self._direct)
        if damage:
            raise self._error(damage[0])

    def poll(self, elapsed: float, remaining: float) -> bool:
        """Boost the loader if all would not be loaded before the next cut.

        Parameters
        ----------
        elapsed, remaining : float
            Seconds since the first safe point, and estimated seconds to the next cut.

        Returns
        -------
        bool
            Whether `finish` will raise; True only once.
        """
        if self._loader is None or self._is_bad:
            return False
        progress = self._loader.progress()
        if should_boost(progress.nbytes_loaded / max(1, progress.nbytes), elapsed, remaining):
            self._loader.boost(True)
        self._is_bad = progress.corrupt is not None or progress.errno != 0
        return self._is_bad

    def finish(self) -> None:
        """Wait until all is loaded.

        Raises
        ------
        CorruptionError
            If a block is corrupt.
        StoreError
            If the slot cannot be read, or there is no memory.
        """
        if self._loader is None:
            return
        self._loader.boost(True)
        while not self._loader.wait(INTERRUPT_SECONDS):
            pass
        progress = self._loader.progress()
        if progress.corrupt is not None:
            part, block = progress.corrupt
            raise self._error(self._image.damage(self._mapped[part], block, "wrong checksum"))
        if progress.errno:
            raise StoreError(
                f"Rank {self._image.rank}: {self._image.path} cannot be loaded: {os.strerror(progress.errno)}. Nothing "
                f"was saved since the restart.",
                errno=progress.errno,
                path=self._image.path,
            )

    def leave(self) -> None:
        """Load all arrays, valid or not: they stay usable when the slot is overwritten."""
        try:
            with suppress(MpickptError):
                self.finish()
        finally:
            self.close()

    def close(self) -> None:
        """Stop loading."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def _error(self, damage: Damage) -> CorruptionError:
        found = damage.error()
        found.args = (
            f"Epoch {damage.epoch} in {damage.path} is corrupt: {damage}. It was restored lazily, so the program may "
            f"have computed with it; nothing was saved since. Start again without --lazy (--no-lazy, "
            f"MPICKPT_LAZY=no): that checks before it computes, and goes back to an older epoch.",
        )
        return found


class LazyRanks(SameRanks):
    """An epoch written by the same number of ranks, whose arrays are read while the program computes on them.

    Parameters
    ----------
    where : str
        The epoch, in words.
    image : RankImage
        This rank's share of it.
    loading : Loading
        Loads it.
    """

    def __init__(self, where: str, image: RankImage, loading: Loading) -> None:
        super().__init__(where, image)
        self.loading = loading

    def memory(self, spec: ArraySpec) -> NDArray[np.uint8]:
        """Return the memory of the array, which is still being loaded."""
        return self.loading.array(self.find(spec))

    def read_into(self, spec: ArraySpec, out: NDArray[np.generic], remap: Remap | None) -> None:
        """Read the array straight into `out`, which is contiguous, and check it."""
        straight = out if spec.order == "C" else out.T
        self.loading.read(self.find(spec), straight.reshape(-1).view(np.uint8))
