"""What a session reports about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Restored:
    """The epoch that a session restored.

    Attributes
    ----------
    epoch, step : int
        Number of the epoch, and the step that is executed next.
    path : pathlib.Path
        The slot file.
    world_size : int
        Number of ranks that wrote it.
    shapes : mapping of str to tuple of int
        The names of this rank's arrays in it, and their shapes. If another number of ranks wrote it: the names of the
        global arrays, and their global shapes.
    """

    epoch: int
    step: int
    path: Path
    world_size: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)


@dataclass
class Stats:
    """What checkpointing did on this rank and what it cost, since the session was opened.

    Times are in seconds of wall time, sizes in bytes.

    Attributes
    ----------
    cuts : int
        Cuts that were made; an epoch that the storage refused before its cut counts in `failed` alone.
    complete, failed : int
        Epochs known to be complete on all ranks, and epochs that failed on any of them.
    last_complete : int
        Number of the newest epoch known to be complete on all ranks; 0 for none.
    blocked_seconds : float
        Time in which the program was blocked at its cuts while its image was fixed.
    waited_seconds : float
        Time in which safe points were blocked by the last drain or by other ranks.
    drain_seconds : float
        Time from each cut until this rank's image was on disk.
    stall_seconds, fault_seconds : float
        Time in which writes to arrays waited for room in the pool; and the total time of write faults, including
        copies and stalls. Both are summed over threads.
    blocks_copied : int
        Blocks that were copied because the program changed them before they were saved.
    rounds, waits, missed : int
        Rounds, in which the ranks agreed on the step of a cut; how often this rank was blocked until the answer came;
        cuts whose step it had passed, so that they were tried again.
    bytes_written, bytes_waiting : int
        Bytes handed to the storage, and those of them that were drained while the program waited in calls of MPI.
    """

    cuts: int = 0
    complete: int = 0
    failed: int = 0
    last_complete: int = 0
    blocked_seconds: float = 0.0
    waited_seconds: float = 0.0
    drain_seconds: float = 0.0
    stall_seconds: float = 0.0
    fault_seconds: float = 0.0
    blocks_copied: int = 0
    rounds: int = 0
    waits: int = 0
    missed: int = 0
    bytes_written: int = 0
    bytes_waiting: int = 0
