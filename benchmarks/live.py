"""mpickpt itself as a contender, through the session that programs use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import mpickpt
import workload
from blocking import Contender

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from mpi4py import MPI
    from numpy.typing import NDArray

POLL_SECONDS = 0.001
NAME = "state"
EVERY = 1_000_000  # steps between cuts: more than a run has, so that a cut happens where the run says


class Live(Contender):
    """A session with a safe point at every step of the work, and a cut at one of them.

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
    """

    def __init__(self, folder: Path, state: NDArray[np.float64], comm: MPI.Comm, *, huge: bool, pool: int) -> None:
        super().__init__(folder, state)
        self.comm = comm
        self.huge = huge
        self.pool = pool

    def open(self) -> NDArray[np.float64]:
        """Open a session and save the state twice, so that both slots are in use."""
        self.session = mpickpt.open(self.folder, self.comm, every=EVERY, restart="never", pool=self.pool)
        if self.huge:
            state = self.session.array(NAME, self.state.shape, fill=1.0)
        else:
            state = self.session.protect(NAME, self.state)
        self.at_step = -1
        self.safe_point()
        for _ in range(2):
            self.cut()
            self.finish()
        return state

    def _go_to(self, step: int) -> None:
        self.at_step = next(self.session.range(step, step + 1))

    def safe_point(self) -> None:
        """Pass a safe point."""
        self._go_to(self.at_step + 1)

    def cut(self) -> None:
        """Be cut."""
        self._go_to((self.at_step // EVERY + 1) * EVERY)

    def finish(self) -> int:
        """Pass safe points, and sleep between them, until the epoch is whole on all ranks."""
        while (stats := self.session.stats()).whole < stats.cuts:
            if stats.failed:
                raise OSError(f"{self.folder}: an epoch failed, see the warning above")
            self.safe_point()
            time.sleep(POLL_SECONDS)
        return 0

    def close(self) -> None:
        """Close the session."""
        self.session.close()


def restart(folder: Path, state: NDArray[np.float64], comm: MPI.Comm, *, huge: bool) -> float:
    """Return the seconds until the state is back in memory, checked block by block."""
    if not huge:
        workload.touch(state)
    comm.Barrier()
    begin = time.perf_counter()
    session = mpickpt.open(folder, comm, every=EVERY, restart="auto")
    if huge:
        session.array(NAME, state.shape)
    else:
        session.protect(NAME, state)
    seconds = time.perf_counter() - begin
    session.close()
    return seconds
