"""A program that is cut and restarted in one process, and the messages of its ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpickpt.mpi import Coordinator
from mpickpt.mpi.tracked.traffic import Traffic
from mpickpt.snapshot import crc32c

COMM = MPI.COMM_WORLD
SENDS = COMM.rank % 2 == 0 and COMM.rank + 1 < COMM.size  # ranks 0 and 2 send to 1 and 3
RECEIVES = COMM.rank % 2 == 1
OTHER = COMM.rank ^ 1
PATIENCE = 20.0


class Run:
    """A program's communicator, which can be opened again at the last epoch."""

    def __init__(self) -> None:
        self.idled = 0
        self.epoch = 0
        self.coordinator = Coordinator(COMM)
        self.traffic = Traffic(COMM, self._idle, crc32c)

    def _idle(self) -> None:
        self.idled += 1

    @property
    def comm(self) -> MPI.Intracomm:
        return self.traffic.comm

    def cut(self) -> None:
        self.epoch += 1
        self.traffic.cut(self.epoch)

    def settle(self, *, fault: str | None = None) -> str | None:
        """Wait until all is known; the epoch must have a fault on no rank, or on one that the pattern fits."""
        end = time.monotonic() + PATIENCE
        while not self.traffic.advance() and (fault is None or self.traffic._exchange is not None):
            assert time.monotonic() < end, self.traffic.missing()
            time.sleep(1e-4)
        self.traffic._end_exchange()  # a fault is known before the exchange is over
        self.traffic.advance()
        mine = self.traffic.fault
        faults = [text for text in COMM.allgather(mine) if text is not None]
        if fault is None:
            assert not faults, faults
        else:
            assert any(fault in text for text in faults), faults
        return mine

    def counts(self) -> tuple[int, int]:
        """Sum up late and early messages over all ranks."""
        late, early = self.traffic.counts()
        return COMM.allreduce(late), COMM.allreduce(early)

    def restart(self) -> None:
        """Drop all state, and restore the last epoch."""
        data = self.traffic.in_flight()
        self.traffic.close()
        self.traffic = Traffic(COMM, self._idle, crc32c)
        self.traffic.restore(data, self.coordinator.gather, self.coordinator.scatter)

    def close(self) -> None:
        self.traffic.close()
        self.coordinator.close()


TAG = 7
Array = NDArray[np.float64]
Send = Callable[[MPI.Intracomm, Array, int], None]
Receive = Callable[[MPI.Intracomm, Array, int, int, MPI.Status], None]
COLUMN = MPI.DOUBLE.Create_vector(3, 1, 2).Commit()


def message(number: int) -> Array:
    return np.array([number, number + 0.5, -number], np.float64)


def in_column(array: Array) -> Array:
    matrix = np.zeros((3, 2))
    matrix[:, 0] = array
    return matrix


def persistently(create: Callable[..., MPI.Prequest], *args: object) -> None:
    request = create(*args)
    request.Start()
    request.Wait()
    request.Free()
