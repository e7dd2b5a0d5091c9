"""What the ranks say to each other; the only package that imports mpi4py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpickpt.coordinator.ranks import (
    Commit,
    Coordinator,
    Share,
    everywhere,
    import_mpi,
    wait_limit,
)
from mpickpt.coordinator.reports import STORAGE
from mpickpt.coordinator.world import abort, about_mpi, broadcast_world, gather_world, world_rank_and_size

if TYPE_CHECKING:
    from mpickpt.coordinator.ranks import Communicator
    from mpickpt.coordinator.traffic import Traffic

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
    "everywhere",
    "gather_world",
    "import_mpi",
    "wait_limit",
    "world_rank_and_size",
]
