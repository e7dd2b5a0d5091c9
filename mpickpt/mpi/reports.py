"""Which ranks are late: ranks that wait for long report it to three collectors, so that a time-out can name the others.

Nothing is sent unless a rank waits for long, and no rank is waited for here.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mpickpt.mpi.pending import Pending, abandon

if TYPE_CHECKING:
    from mpi4py import MPI

STORAGE = "the storage, "  # prefix of a wait that is not for another rank
LISTEN_SECONDS = 0.2  # that a collector listens before it names ranks
_TAG = 1
_SHOWN = 8  # ranks that a message lists


def collectors(size: int) -> list[int]:
    """Return the ranks that others report to: several, as some of them may be late.

    One that hands out work to all others, which wait inside a library, is mostly the first or the last.
    """
    return sorted({0, min(1, size - 1), size - 1})


class Reports:
    """One rank's reports, and on a collector those of the others.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        A private communicator.
    mpi : module
        mpi4py.MPI.
    """

    def __init__(self, comm: MPI.Intracomm, mpi: ModuleType) -> None:
        self._comm = comm
        self._status = mpi.Status
        self._byte = mpi.BYTE
        self._collectors = collectors(comm.size)
        self._waiting: dict[int, str] = {}  # on a collector: the other ranks that wait, and for what

    def tell(self, what: str) -> None:
        """Report to the collectors that this rank waits for `what`."""
        text = np.frombuffer(what.encode(), np.uint8).copy()
        for collector in self._collectors:
            if collector != self._comm.rank:
                abandon(Pending(self._comm.Isend(text, collector, _TAG), text))

    def withdraw(self) -> None:
        """Report that this rank does not wait any more."""
        self.tell("")

    def take(self) -> None:
        """Receive the reports that have come."""
        if self._comm.rank not in self._collectors:
            return
        status = self._status()
        while self._comm.Iprobe(tag=_TAG, status=status):
            text = np.zeros(status.Get_count(self._byte), np.uint8)
            self._comm.Recv(text, status.source, _TAG)
            self._waiting[status.source] = text.tobytes().decode(errors="replace")

    def late_of_all(self) -> str | None:
        """Return `late()` if this rank is to report it, None otherwise: one report is enough."""
        if self._comm.rank not in self._collectors:
            return None
        late = self.late()
        others = (rank for rank in self._collectors if rank < self._comm.rank)
        return None if any(self._waiting.get(rank) for rank in others) else late

    def late(self) -> str:
        """Return a text that names the ranks that did not report; empty if nothing is known."""
        if self._comm.rank not in self._collectors:
            return ""
        end = time.monotonic() + LISTEN_SECONDS
        while time.monotonic() < end:
            self.take()
        waiting = {rank: text for rank, text in sorted(self._waiting.items()) if text}
        late = [rank for rank in range(self._comm.size) if rank not in waiting and rank != self._comm.rank]
        if not late:
            told = "; ".join(f"rank {rank} waits for {text}" for rank, text in list(waiting.items())[:_SHOWN])
            return f"All of them wait: {told}." if told else ""
        names = ", ".join(map(str, late[:_SHOWN])) + (f" and {len(late) - _SHOWN} more" if len(late) > _SHOWN else "")
        stuck = [f" Rank {rank} waits for {text}." for rank, text in waiting.items() if text.startswith(STORAGE)]
        return f"Not waiting, and therefore late: rank{'s' if len(late) > 1 else ''} {names}.{''.join(stuck[:_SHOWN])}"
