"""Checkpoints of running MPI programs: saved while they compute, restarted from one HDF5 file.

    with mpickpt.open("heat.ckpt", comm, interval="10min") as ckpt:
        u = ckpt.array("u", (rows, cols), fill=0.0)
        for step in ckpt.range(100_000):
            ...

`open` saves and restores, `Checkpoint` reads what was saved, without MPI.
"""

from mpickpt.api import open
from mpickpt.errors import (
    DamageError,
    EpochError,
    InUseError,
    LayoutError,
    MpickptError,
    NothingToRestore,
    Stopped,
    StoreError,
    UsageError,
    WaitTimeout,
)
from mpickpt.parts import Part
from mpickpt.reader import Checkpoint
from mpickpt.session import Session
from mpickpt.stats import Restored, Stats

__all__ = [
    "Checkpoint",
    "DamageError",
    "EpochError",
    "InUseError",
    "LayoutError",
    "MpickptError",
    "NothingToRestore",
    "Part",
    "Restored",
    "Session",
    "Stats",
    "Stopped",
    "StoreError",
    "UsageError",
    "WaitTimeout",
    "open",
]
