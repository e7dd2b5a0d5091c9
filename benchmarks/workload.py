"""The program under measurement: a state in memory, and a fixed amount of work that rewrites some of it.

Used by `worker.py` on every rank. The work is real: numpy multiplies and adds in place, in chunks that fit the
cache, so it competes for the memory bandwidth and the cores as a simulation does.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK_DOUBLES = 32 * 1024  # 256 KiB: fits the second-level cache, so one sweep is one pass over the memory
PAGE_BYTES = 4096

# The share of the state that each step rewrites, from its beginning.
PATTERNS = {"all": 1.0, "tenth": 0.1, "nothing": 0.0}


def reserve(nbytes: int, *, huge: bool) -> NDArray[np.float64]:
    """Return page-aligned memory of its own, asked for in huge or in 4 KiB pages, none of them present yet.

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
    """Write to every page, so that no run pays for pages that the one before left read-only."""
    state[:: PAGE_BYTES // 8] += 0.0


def step(state: NDArray[np.float64], pattern: str) -> float:
    """Do one step: rewrite the pattern's share of the state, or read all of it if that is nothing.

    Parameters
    ----------
    state : NDArray[np.float64]
        The rank's state.
    pattern : str
        A key of `PATTERNS`.

    Returns
    -------
    float
        A number that depends on what was read, so that the reading is not idle.
    """
    written = int(len(state) * PATTERNS[pattern])
    total = 0.0
    if written == 0:
        for begin in range(0, len(state), CHUNK_DOUBLES):
            chunk = state[begin : begin + CHUNK_DOUBLES]
            total += float(np.dot(chunk, chunk))
    for begin in range(0, written, CHUNK_DOUBLES):
        chunk = state[begin : min(begin + CHUNK_DOUBLES, written)]
        np.multiply(chunk, 0.999, out=chunk)
        np.add(chunk, 0.5, out=chunk)
    return total
