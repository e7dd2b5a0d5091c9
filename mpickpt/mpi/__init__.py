"""Communication between the ranks; the only folder that imports mpi4py.

A `Coordinator` is one rank's end of it: `commits` agree on epochs, `rounds` on the step of a cut. `world` works
without a session. It is called by the session, a restart and the command line, and knows nothing of what is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpickpt.mpi.commits import Commit, Share
from mpickpt.mpi.coordinator import Coordinator
from mpickpt.mpi.reports import STORAGE
from mpickpt.mpi.survival import Survival, find_loss, note_saved
from mpickpt.mpi.survival import begin as begin_survival
from mpickpt.mpi.survival import current as current_survival
from mpickpt.mpi.world import abort, about_mpi, broadcast_world, gather_world, world_comm, world_rank_and_size

if TYPE_CHECKING:
    from mpickpt.mpi.coordinator import Communicator
    from mpickpt.mpi.tracked.traffic import Traffic

__all__ = [
    "STORAGE",
    "Commit",
    "Communicator",
    "Coordinator",
    "Share",
    "Survival",
    "Traffic",
    "abort",
    "about_mpi",
    "begin_survival",
    "broadcast_world",
    "current_survival",
    "find_loss",
    "gather_world",
    "note_saved",
    "world_comm",
    "world_rank_and_size",
]
