"""What the ranks say to each other; the only package that imports mpi4py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mpickpt.coordinator.ranks import (
    Commit,
    Coordinator,
    Share,
    abort,
    everywhere,
    import_mpi,
    wait_limit,
    world_rank_and_size,
)

if TYPE_CHECKING:
    from mpickpt.coordinator.ranks import Communicator
    from mpickpt.coordinator.traffic import Traffic

__all__ = [
    "Commit",
    "Communicator",
    "Coordinator",
    "Share",
    "abort",
    "everywhere",
    "import_mpi",
    "open_traffic",
    "wait_limit",
    "world_rank_and_size",
]


def open_traffic(
    comm: Communicator, idle: Callable[[], None], crc32c: Callable[[bytes | bytearray | memoryview], int]
) -> Traffic:
    """Make the tracked communicator of a session; collective. For the arguments see `Traffic`."""
    from mpickpt.coordinator.traffic import Traffic  # imports mpi4py

    return Traffic(comm, idle, crc32c)
