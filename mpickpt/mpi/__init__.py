"""What the ranks say to each other; the only package that imports mpi4py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpickpt.mpi.coordinator import (
    Commit,
    Coordinator,
    Share,
)
from mpickpt.mpi.reports import STORAGE
from mpickpt.mpi.world import abort, about_mpi, broadcast_world, gather_world, world_rank_and_size

if TYPE_CHECKING:
    from mpickpt.mpi.coordinator import Communicator
    from mpickpt.mpi.tracked.traffic import Traffic

__all__ = [
    "STORAGE",
    "Commit",
    "Communicator",
    "Coordinator",
    "Share",
    "Traffic",
    "abort",
    "about_mpi",
    "broadcast_world",
    "gather_world",
    "world_rank_and_size",
]
