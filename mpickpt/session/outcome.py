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
        """Return whether the epoch is complete."""
        return self.complete


def is_gone(outcome: Outcome) -> bool:
    """Return whether somebody has deleted the slot of an epoch."""
    return not outcome.path.exists()


def told_stopped(complete: bool, newest: Outcome | None, number: int | None, directory: Path) -> str:
    """Say that the program ends as it was asked to.

    Parameters
    ----------
    complete : bool
        Whether the epoch that was to be made before is complete.
    newest : Outcome or None
        The newest complete epoch of the session.
    number : int or None
        That of the newest complete one in the directory, which may be of an older session.
    directory : pathlib.Path
        The checkpoint directory.
    """
    if not complete and newest is not None and is_gone(newest):
        return (
            f"mpickpt: stopped as asked; no new epoch became complete, and epoch {newest.epoch} is gone with "
            f"{newest.path}, which somebody has deleted"
        )
    if complete:
        return (
            f"mpickpt: stopped as asked, after epoch {number} of {directory} became complete; run the same command "
            f"again to continue"
        )
    if number is None:
        return f"mpickpt: stopped as asked, but no epoch in {directory} became complete"
    return f"mpickpt: stopped as asked; no new epoch became complete, epoch {number} of {directory} stays"


def told_lost(last: Outcome, newest: Outcome | None, number: int | None, directory: Path) -> str:
    """Say at the end of a session that its last epoch failed, why, and what is saved instead.

    Parameters
    ----------
    last : Outcome
        The epoch that failed.
    newest : Outcome or None
        The newest complete one of the session.
    number : int or None
        That of the newest complete one in the directory, which may be of an older session.
    directory : pathlib.Path
        The checkpoint directory.
    """
    if newest is not None and is_gone(newest):
        stays = f"Epoch {newest.epoch}, the newest complete one, is gone with {newest.path}, which somebody has deleted"
    elif number is None:
        stays = f"No epoch in {directory} is complete, so that the next start begins from nothing"
    else:
        step = f" (step {newest.step})" if newest is not None and newest.epoch == number else ""
        stays = f"Epoch {number}{step} of {directory} is the newest complete one, from which the next start goes on"
    where = "" if str(last.path) in last.reason else f"{last.path}: "
    return (
        f"the last epoch of this session, {last.epoch} (step {last.step}), failed, so that the last state is not "
        f"saved: {where}{last.reason.rstrip('.')}. {stays}."
    )
