"""Checkpoints of running MPI programs: saved while they compute, restarted from one HDF5 file.

    with mpickpt.open("heat.ckpt", comm, interval="10min") as ckpt:
        u = ckpt.array("u", (rows, cols), fill=0.0)
        for step in ckpt.range(100_000):
            ...

`open` saves and restores; `Checkpoint` reads what was saved, without MPI. Each name is imported when it is first used:
reading a checkpoint needs no MPI, and printing the help needs no other package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpickpt.errors import (
        CorruptionError,
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
    from mpickpt.layout.parts import Part
    from mpickpt.reading.checkpoint import Checkpoint
    from mpickpt.session.api import open
    from mpickpt.session.main import main
    from mpickpt.session.outcome import Outcome
    from mpickpt.session.session import Session
    from mpickpt.stats import Restored, Stats

__all__ = [
    "Checkpoint",
    "CorruptionError",
    "EpochError",
    "InUseError",
    "LayoutError",
    "MpickptError",
    "NothingToRestore",
    "Outcome",
    "Part",
    "Restored",
    "Session",
    "Stats",
    "Stopped",
    "StoreError",
    "UsageError",
    "WaitTimeout",
    "main",
    "open",
]

_HOMES = {
    "session.api": ("open",),
    "session.main": ("main",),
    "session.outcome": ("Outcome",),
    "layout.parts": ("Part",),
    "reading.checkpoint": ("Checkpoint",),
    "session.session": ("Session",),
    "stats": ("Restored", "Stats"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name; called once for each."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
