"""mpickpt itself as a contender, through the session that programs use."""

from __future__ import annotations

import os
import time
from itertools import chain
from typing import TYPE_CHECKING

import mpickpt

import memory
from blocking import Contender
from patterns import BLOCK_DOUBLES

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

POLL_SECONDS = 0.001
NAME = "state"
STRIDE = 1_000_000  # a step of the work counts as this many, so that a rank that waits never reaches the next cut
NEVER = 1_000_000  # steps between cuts, if only requested cuts are wanted
BLOCK_BYTES = 8 * BLOCK_DOUBLES


class Live(Contender):
    """A session with a safe point at every step of the work, and a cut at the head of each epoch.

    With huge pages the run works on memory that the session allocated; with 4 KiB pages on the memory that the other
    contenders use, which the session protects.

    Parameters
    ----------
    folder : Path
        The checkpoint directory, the same on all ranks.
    state : NDArray[np.float64]
        The rank's state.
    comm : MPI.Comm
        All ranks.
    huge : bool
        Which pages.
    pool : int
        Bytes for blocks that the program writes to before they are saved.
    environment : dict of str to str
        Environment variables that the session is opened with.
    """

    def __init__(
        self,
        folder: Path,
        state: NDArray[np.float64],
        comm: MPI.Intracomm,
        *,
        huge: bool,
        pool: int,
        environment: dict[str, str],
    ) -> None:
        super().__init__(folder, state)
        self.comm = comm
        self.huge = huge
        self.pool = pool
        self.environment = environment

    @property
    def warm_up(self) -> int:
        """Two epochs: then both slots are in use, and it is known when each block is written."""
        return 2

    def open(self, steps: int) -> NDArray[np.float64]:
        """Open a session that is cut every `steps` steps."""
        self.every = steps * STRIDE
        before = {key: os.environ.get(key) for key in self.environment}
        os.environ.update(self.environment)
        try:
            self.session = mpickpt.open(self.folder, self.comm, every=self.every, restart="never", pool=self.pool)
            if self.huge:
                state = self.session.array(NAME, self.state.shape, fill=1.0)
            else:
                state = self.session.protect(NAME, self.state)
            self._go_to(0)  # the first safe point, where the session creates its pool and threads
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value
        return state

    def _go_to(self, step: int) -> None:
        """Pass the safe point of a step at which an epoch begins; `safe_point` passes the other ones.

        If the next cut would come before this epoch is complete, the loop continues in single steps.
        """
        self.next_cut = step + self.every
        strides = self.session.range(step, self.next_cut, STRIDE)
        self.steps = chain(strides, self.session.range(self.next_cut - STRIDE + 1, self.next_cut))
        next(self.steps)

    def safe_point(self) -> None:
        """Pass a safe point as a program's loop does: the generator goes on."""
        next(self.steps)

    def cut(self) -> None:
        """Pass a safe point at which this rank is cut."""
        self._go_to(self.next_cut)

    def done(self) -> bool:
        """Return whether the epoch is complete on all ranks."""
        stats = self.session.stats()
        if stats.failed:
            raise OSError(f"{self.folder}: an epoch failed, see the warning above")
        return stats.complete >= stats.cuts

    def sleep_until_done(self) -> None:
        """Leave the cores to the drain."""
        while not self.done():
            time.sleep(POLL_SECONDS)
            self.safe_point()

    def told(self) -> dict[str, float]:
        """Return what the session has counted: bytes written and copied, seconds of faults, stalls and drains."""
        stats = self.session.stats()
        return {
            "written": stats.bytes_written,
            "copied": stats.blocks_copied * BLOCK_BYTES,
            "faults": stats.fault_seconds,
            "stalls": stats.stall_seconds,
            "drain": stats.drain_seconds,
        }

    def close(self) -> None:
        """Close and release the session: the next contender needs the memory of its array."""
        self.session.close()
        del self.session, self.steps


def restart(folder: Path, state: NDArray[np.float64], comm: MPI.Intracomm, *, huge: bool) -> float:
    """Return the seconds until the state is back in memory, checked block by block."""
    if not huge:
        memory.touch(state)
    comm.Barrier()
    begin = time.perf_counter()
    session = mpickpt.open(folder, comm, every=NEVER, restart="auto")
    if huge:
        _array = session.array(NAME, state.shape)
    else:
        _array = session.protect(NAME, state)
    seconds = time.perf_counter() - begin
    session.close()
    return seconds
