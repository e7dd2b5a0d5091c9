"""The memory that the measured program works on."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_BYTES = 4096


def reserve(nbytes: int, *, huge: bool) -> NDArray[np.float64]:
    """Return new page-aligned memory, in huge or in 4 KiB pages, none of which are present yet.

    Parameters
    ----------
    nbytes : int
        Size in bytes, a multiple of 8.
    huge : bool
        Advise huge pages; otherwise forbid them.

    Returns
    -------
    NDArray[np.float64]
        One-dimensional.
    """
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.float64)


def allocate(nbytes: int, *, huge: bool) -> NDArray[np.float64]:
    """Return memory as `reserve` does, filled with ones, so that every page is present."""
    state = reserve(nbytes, huge=huge)
    state.fill(1.0)
    return state


def touch(state: NDArray[np.float64]) -> None:
    """Write to every page, so that all of it counts as changed and no page is left read-only."""
    state[:: PAGE_BYTES // 8] += 0.0
