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


class Live(Contender):
    """A session whose every `step` after the first is a cut.

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
        self.session = mpickpt.open(self.folder, self.comm, every=1, restart="never", pool=self.pool)
        if self.huge:
            state = self.session.array(NAME, self.state.shape, fill=1.0)
        else:
            state = self.session.protect(NAME, self.state)
        self.session.step()
        for _ in range(2):
            self.cut()
            self.finish()
        return state

    def cut(self) -> None:
        """Be cut."""
        self.session.step()

    def finish(self) -> int:
        """Sleep until the drain has ended."""
        while self.session.stats().draining:
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
    session = mpickpt.open(folder, comm, every=1, restart="auto")
    if huge:
        session.array(NAME, state.shape)
    else:
        session.protect(NAME, state)
    seconds = time.perf_counter() - begin
    session.close()
    return seconds
