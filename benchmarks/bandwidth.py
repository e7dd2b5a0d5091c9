"""How quickly idle ranks drain and restart, beside raw O_DIRECT writing and reading of as many bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mpi4py import MPI

import live
import memory
from direct import DirectFile

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class Idle:
    """A rank that computes nothing.

    Parameters
    ----------
    comm : MPI.Intracomm
        All ranks.
    contender : live.Live
        mpickpt.
    path : Path
        This rank's raw file, removed by `measure`.
    state : NDArray[np.float64]
        The rank's state.
    huge : bool
        Which pages.
    """

    def __init__(
        self, comm: MPI.Intracomm, contender: live.Live, path: Path, state: NDArray[np.float64], *, huge: bool
    ) -> None:
        self.comm = comm
        self.contender = contender
        self.path = path
        self.state = state
        self.huge = huge

    def measure(self, repetitions: int) -> dict[str, list[float]]:
        """Return the seconds that each took, alternating; of the slowest rank."""
        raw = DirectFile(self.path, self.state)
        seconds: dict[str, list[float]] = {"raw write": [], "drain": [], "raw read": [], "restart": []}
        state = self.contender.open(live.NEVER)
        for _ in range(self.contender.warm_up):
            self._drain(state)
        for repetition in range(repetitions):
            for name in ("raw write", "drain") if repetition % 2 == 0 else ("drain", "raw write"):
                took = self._drain(state) if name == "drain" else self._raw_write(raw)
                seconds[name].append(self._slowest(took))
        self.contender.close()
        for repetition in range(repetitions):
            for name in ("raw read", "restart") if repetition % 2 == 0 else ("restart", "raw read"):
                took = self._restart() if name == "restart" else self._raw_read(raw)
                seconds[name].append(self._slowest(took))
        raw.close()
        return seconds

    def _drain(self, state: NDArray[np.float64]) -> float:
        """Save all of it: every block has changed."""
        memory.touch(state)
        self.comm.Barrier()
        begin = time.perf_counter()
        self.contender.cut()
        self.contender.sleep_until_done()
        return time.perf_counter() - begin

    def _raw_write(self, raw: DirectFile) -> float:
        self.comm.Barrier()
        begin = time.perf_counter()
        raw.write(self.state)
        return time.perf_counter() - begin

    def _restart(self) -> float:
        self._use_memory()
        return live.restart(self.contender.folder, self.state, self.comm, huge=self.huge)

    def _raw_read(self, raw: DirectFile) -> float:
        """Read into memory as a restart does: new memory for huge pages, the program's own for 4 KiB pages."""
        self._use_memory()
        self.comm.Barrier()
        begin = time.perf_counter()
        raw.read(memory.reserve(self.state.nbytes, huge=True) if self.huge else self.state)
        return time.perf_counter() - begin

    def _use_memory(self) -> None:
        """Use as much memory as is about to be needed, and give it back.

        A virtual machine may have to ask its host for other memory, which takes seven times as long as clearing it.
        """
        memory.allocate(self.state.nbytes, huge=True)

    def _slowest(self, seconds: float) -> float:
        return float(self.comm.allreduce(seconds, MPI.MAX))
