"""What became of an epoch, as `Session.save` and `Session.wait` tell it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What became of an epoch on all ranks; true if it is complete.

    Attributes
    ----------
    epoch : int
        Its number.
    step : int
        The step with which a restart from it begins.
    complete : bool
        Whether it is on disk on every rank, so that a restart finds it.
    path : pathlib.Path
        The file of its slot. It is overwritten some epochs later.
    reason : str
        Why it failed; empty if it is complete.
    rank : int or None
        The lowest rank on which it failed; None if it is complete, or failed on all of them together.
    """

    epoch: int
    step: int
    complete: bool
    path: Path
    reason: str = ""
    rank: int | None = None

    def __bool__(self) -> bool:
        """Tell whether the epoch is complete."""
        return self.complete
