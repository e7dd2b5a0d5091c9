"""How fast idle ranks drain and restart, compared with raw O_DIRECT writes and reads of the same bytes in the slots."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mpi4py import MPI

from mpickpt.snapshot import crc32c
from mpickpt.store import Store

import direct
import live
import memory

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
    state : NDArray[np.float64]
        The rank's state.
    huge : bool
        Which pages.
    """

    def __init__(self, comm: MPI.Intracomm, contender: live.Live, state: NDArray[np.float64], *, huge: bool) -> None:
        self.comm = comm
        self.contender = contender
        self.state = state
        self.huge = huge

    def measure(self, repetitions: int) -> dict[str, list[float]]:
        """Return the seconds that each took on the slowest rank; they alternate."""
        seconds: dict[str, list[float]] = {"raw write": [], "drain": [], "raw read": [], "restart": []}
        state = self.contender.open(live.NEVER)
        for _ in range(self.contender.warm_up):
            self._drain(state)
        places = self._places()
        for repetition in range(repetitions):
            path, offset = places[repetition % len(places)]
            for name in ("raw write", "drain") if repetition % 2 == 0 else ("drain", "raw write"):
                took = self._drain(state) if name == "drain" else self._raw_write(state, path, offset)
                seconds[name].append(self._slowest(took))
        path, offset = self._places()[0]
        self.contender.close()
        for repetition in range(repetitions):
            for name in ("raw read", "restart") if repetition % 2 == 0 else ("restart", "raw read"):
                took = self._restart() if name == "restart" else self._raw_read(path, offset)
                seconds[name].append(self._slowest(took))
        return seconds

    def _drain(self, state: NDArray[np.float64]) -> float:
        """Save the whole state: every block has changed."""
        memory.touch(state)
        self.comm.Barrier()
        begin = time.perf_counter()
        self.contender.cut()
        self.contender.sleep_until_done()
        return time.perf_counter() - begin

    def _raw_write(self, state: NDArray[np.float64], path: Path, offset: int) -> float:
        """Write what is in the slot again, from the same memory to the same place: the speed of a disk varies."""
        self.comm.Barrier()
        begin = time.perf_counter()
        direct.write(path, offset, state)
        return time.perf_counter() - begin

    def _restart(self) -> float:
        self._use_memory()
        return live.restart(self.contender.folder, self.state, self.comm, huge=self.huge)

    def _places(self) -> list[tuple[Path, int]]:
        """Return the slots and where in them this rank's state lies, the one with the newest epoch first."""
        store = Store(self.contender.folder, crc32c)
        slots = sorted(store.slots(), key=lambda slot: slot.newest, reverse=True)
        return [(slot.path, store.offsets(slot.index)[self.comm.rank].arrays[0]) for slot in slots]

    def _raw_read(self, path: Path, offset: int) -> float:
        """Read the same bytes as a restart does: into new memory for huge pages, otherwise into the program's own."""
        self._use_memory()
        self.comm.Barrier()
        begin = time.perf_counter()
        direct.read(path, offset, memory.reserve(self.state.nbytes, huge=True) if self.huge else self.state)
        return time.perf_counter() - begin

    def _use_memory(self) -> None:
        """Use more memory than will be needed, and free it, so that memory allocated next was in use before.

        A virtual machine may have to request other memory from its host, which takes much longer than clearing it.
        """
        memory.allocate(3 * self.state.nbytes, huge=True)

    def _slowest(self, seconds: float) -> float:
        return float(self.comm.allreduce(seconds, MPI.MAX))
