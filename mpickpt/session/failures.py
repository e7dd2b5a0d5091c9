"""Why epochs fail, in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mpickpt.mpi import Commit
from mpickpt.protocol import Epoch
from mpickpt.session.outcome import Outcome, is_gone
from mpickpt.store import why_full

SKIPPED = "it was skipped, as the storage of a rank hung"
MISSED = "a rank had to go on before it knew the step of the cut; it is tried again"
RAISED = "its cut raised an exception"
NO_SLOT = errno.ENOMEDIUM  # the slot was still being created at the cut, and cannot be created
# The slot is deleted, not as it was, no file any more, or was never there: it may have to be made again.
LOST = (errno.ENOENT, errno.ESTALE, errno.EINVAL, NO_SLOT)


def why_not(commit: Commit, rank: int, own: str) -> str:
    """Say why an epoch failed, as far as `rank` knows, where it failed for the reason `own` if it failed there."""
    if commit.missed:
        return MISSED
    if commit.failed == rank:
        reason = own
    elif commit.errno == errno.ECANCELED:
        reason = "the messages in flight to it were not known in time; that rank says which"
    else:
        reason = explain(commit.errno) if commit.errno else "that rank says why"
    named = f"Rank {commit.failed} "
    return reason if reason.startswith(named) else f"{named.rstrip()}: {reason}"


def what_stays(errno: int, number: int | None, newest: Outcome | None) -> str:
    """Say which epoch there is when one fails.

    Parameters
    ----------
    errno : int
        Why it fails on this rank, or 0.
    number : int or None
        The number of the newest complete epoch, which may be of an older session.
    newest : Outcome or None
        The newest complete epoch of this session.
    """
    if errno in LOST and newest is not None and is_gone(newest):
        return f"Epoch {newest.epoch} is gone with {newest.path.name}, too"
    return "No epoch is complete yet" if number is None else f"Epoch {number} stays"


def told_other_cut(epoch: Epoch, rank: int) -> str:
    """Say that the ranks were not cut together for `epoch`, as far as `rank` knows it."""
    return (
        f"Epoch {epoch.number} failed: rank {rank} was cut for it at step {epoch.step}, and another rank for another "
        f"epoch or at another step. All ranks must take the same steps."
    )


def told_untracked(rank: int, where: str, epoch: int) -> str:
    """Say that an untracked writer has written to `where` since the cut of `epoch`, or of an older one."""
    return (
        f"Rank {rank}: {where} was written to by something that mpickpt cannot see, and the epochs up to {epoch} may "
        f"lack that. The next one saves everything. Find the writer (docs/limits.md), and use ckpt.writable() where it "
        f"writes."
    )


def explain(number: int, slot: Path | None = None) -> str:
    """Say what an errno of the snapshotter means, on the rank that wrote to `slot`."""
    if number == errno.ELOOP:
        return "somebody has put a symbolic link in its place, through which nothing is written"
    if number == NO_SLOT:
        return "it could not be created, and rank 0 says why; that is tried again for the next epoch there"
    if number == errno.ENOBUFS:
        return "it is still being created, and the pool has no room for more of what the program changes meanwhile"
    if number == errno.ETIMEDOUT:
        return "the storage hangs"
    if number == errno.ENOENT:
        return "somebody has deleted it; it is made again for the next epoch there"
    if number == errno.ESTALE:
        return (
            "the slot is not as this rank left it, so something else has written to it or put another file in its "
            "place, or this machine does not know yet that it was made again; nothing was written to it, and the next "
            "epoch there saves everything"
        )
    mappings = _mappings() if number == errno.ENOMEM else None
    if mappings is not None:
        return (
            f"not all arrays could be protected: the process has {mappings[0]} memory mappings, and vm.max_map_count "
            f"allows {mappings[1]}"
        )
    full = "" if slot is None else why_full(slot, number)
    return f"{os.strerror(number)}: {full}" if full else os.strerror(number)


def _mappings() -> tuple[int, int] | None:
    """Count the process's memory mappings beside their limit, if it is used up."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    with Path("/proc/self/maps").open("rb", buffering=1 << 20) as maps:
        count = sum(1 for _ in maps)
    return (count, limit) if count >= 0.999 * limit else None
