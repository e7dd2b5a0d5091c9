"""What one cut saves, and where: made once, above the native core, and handed down to it as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mpickpt.layout.arrays import SlotOffsets


@dataclass(frozen=True, slots=True)
class Target:
    """Where one rank's image goes: the same for all cuts into one slot.

    Attributes
    ----------
    path : Path
        The slot file, which exists unless it `follows`.
    offsets : SlotOffsets
        Where this rank's bytes lie in it, arrays in the order of `Snapshotter.add`.
    rank, run, digest
        For the record.
    spill : Path or None
        The file for objects that outgrow their room in the slot; None if they never do.
    channels_follow : bool
        An epoch is not complete before `Snapshotter.add_channels` has brought the messages in flight at its cut.
    channels_spill : Path or None
        The file for messages that outgrow their room; needed if they follow.
    stall_text : str
        A line that a write says when it has waited long for room in the pool (`Snapshotter.set_stall_limit`).
    follows : bool
        The slot is still being created: the offsets count from where its raw data begin, and the drain waits for
        `Snapshotter.add_slot`.
    """

    path: Path
    offsets: SlotOffsets
    rank: int
    run: int
    digest: bytes
    spill: Path | None = None
    channels_follow: bool = False
    channels_spill: Path | None = None
    stall_text: str = ""
    follows: bool = False


@dataclass(frozen=True, slots=True)
class CutPlan:
    """One cut.

    Attributes
    ----------
    target : Target
        Where the image goes.
    epoch, step : int
        For the record.
    objects : bytes
        Saved beside the regions.
    files : tuple of int
        Descriptors of other files, which are synced before the epoch is complete; they may be closed after the cut.
    """

    target: Target
    epoch: int
    step: int
    objects: bytes
    files: tuple[int, ...] = ()
