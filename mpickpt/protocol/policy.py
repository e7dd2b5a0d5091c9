"""When to cut, which slot to write, when to boost a drain, how large pools are: decisions without I/O or clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NEVER = 2**62  # a step that no program reaches; its negative fits a 64-bit integer too
FIRST_INTERVAL = 60.0  # seconds to the first cut of interval="auto", before anything was measured
DOWNTIME = 60.0  # seconds from a failure to the next start of the program, in interval="auto"
KEPT_SHARE = 8  # a pool leaves one part in so many of what a limit leaves, for what else the program will need,
KEPT_BYTES = 16 << 20  # and so much for each rank: buffers of the drain, tables, pickled objects
LEAST_DRAINS = 1.1  # an interval of "auto" is no shorter than so many drains


class Clock:
    """When to cut by the time that went by; kept by rank 0 alone.

    Parameters
    ----------
    interval : float or None
        Seconds between two cuts; None to choose the best one from what checkpoints cost.
    mtbf : float
        Mean time between failures in seconds, for choosing it.
    """

    def __init__(self, interval: float | None, mtbf: float) -> None:
        self._fixed = interval
        self._mtbf = mtbf
        self._last: float | None = None
        self.interval = FIRST_INTERVAL if interval is None else interval
        self.drain = 0.0  # seconds of the last one; 0 before any

    def start(self, now: float) -> None:
        """Count from `now` on: a cut was made, or the program begins."""
        self._last = now

    def due(self, now: float) -> bool:
        """Whether the interval has gone by; if so, the next one begins."""
        if self.seconds_left(now) > 0.0:
            return False
        self._last = now
        return True

    @property
    def due_at(self) -> float:
        """When the interval has gone by; infinite before it began."""
        return math.inf if self._last is None else self._last + self.interval

    def seconds_left(self, now: float) -> float:
        """How much of the interval is left."""
        return max(0.0, self.due_at - now)

    def measured(self, drain: float, lost: float, restart: float) -> None:
        """Take in what a checkpoint cost: seconds of the drain, lost to the program, and of a restart."""
        self.drain = drain
        if self._fixed is None:
            self.interval = best_interval(drain, lost, self._mtbf, DOWNTIME, restart)


def best_interval(drain: float, lost: float, mtbf: float, downtime: float, restart: float) -> float:
    """Compute the interval between two cuts that loses the least time.

    For a checkpoint that is written while the program goes on, what one costs is not how long it takes (C) but what
    it takes from the program (S). A failure loses on average half an interval and the drain that was not finished. To
    first order that is least at sqrt(2 S (mu - D - R - C + S)), which is Young's and Daly's formula for S = C, and is
    derived for checkpoints that overlap the work in G. Aupy, A. Benoit, T. Herault, Y. Robert, J. Dongarra: Optimal
    Checkpointing Period: Time vs. Energy (PMBS 2013). It must not be shorter than a drain, with a margin of 10 %.

    Parameters
    ----------
    drain, lost : float
        C and S: seconds from the cut until the image is on disk, and by which a checkpoint makes the program longer.
    mtbf, downtime, restart : float
        mu, D and R: seconds between two failures, from a failure to the next start, and of reading a checkpoint.

    Returns
    -------
    float
        Seconds.
    """
    usable = max(0.0, mtbf - downtime - restart - drain + lost)
    return max(LEAST_DRAINS * drain, math.sqrt(2 * lost * usable))


def choose_slot(keep: int, epochs: Mapping[int, int | None], protected: int | None, pinned: int | None = None) -> int:
    """Choose the slot that the next epoch overwrites.

    Parameters
    ----------
    keep : int
        Number of slots to use, at least 2.
    epochs : mapping of int to int or None
        The slots that exist: index, and the epoch that is complete in it, or None where it holds nothing of use.
    protected : int or None
        The slot to go back to if all fails now: the newest epoch known complete everywhere, or the one restored.
    pinned : int or None
        The slot that is being archived: not overwritten while there is another one.

    Returns
    -------
    int
        The lowest index that holds nothing of use, otherwise the oldest epoch; never `protected`.
    """
    if keep < 2:
        raise ValueError(f"{keep} slots cannot keep one epoch safe while the next is written")
    free = [index for index in range(keep) if index != protected]
    free = [index for index in free if index != pinned] or free
    return min(free, key=lambda index: (epochs.get(index) or 0, index))


def should_boost(saved: float, elapsed: float, left: float) -> bool:
    """Whether the urgent threads must take over, so that the drain ends before the next cut.

    Parameters
    ----------
    saved : float
        Share of the blocks that is saved, 0 to 1.
    elapsed, left : float
        Seconds since this cut and, by estimate, to the next.

    Returns
    -------
    bool
        From half time on: whether less is saved than a steady drain would have saved by now.
    """
    total = elapsed + left
    return 2 * elapsed >= total > 0 and saved * total < elapsed


@dataclass(frozen=True)
class Ceiling:
    """A limit of memory, and what it leaves.

    Attributes
    ----------
    key : str
        The same for all processes that share it, and for no others.
    name : str
        What it is, for messages.
    left : int
        Bytes.
    counts_untouched : bool
        Memory counts that was reserved and never touched, as for the size of the address space.
    of_ranks : bool
        `left` is all of it: what the ranks that share it have in use is still to be taken away.
    """

    key: str
    name: str
    left: int
    counts_untouched: bool = False
    of_ranks: bool = False


@dataclass(frozen=True)
class PoolRequest:
    """What one rank says before its pool is reserved, all in bytes.

    Attributes
    ----------
    wanted, least : int
        The size that was asked for, and the one below which it makes no sense.
    untouched : int
        Memory of its arrays that is reserved and not in use yet: it will be.
    resident : int
        Memory that it has in use.
    ceilings : tuple of Ceiling
        What limits it.
    """

    wanted: int
    least: int
    untouched: int
    resident: int
    ceilings: tuple[Ceiling, ...]


@dataclass(frozen=True)
class PoolGrant:
    """What one rank gets: the size of its pool, and if it is less than it asked for, why.

    Attributes
    ----------
    nbytes : int
        May be less than the least that makes sense.
    limit : str
        The name of what limits it; empty if nothing does.
    left : int
        What that leaves for all ranks that share it, after their arrays; may be negative.
    ranks : int
        How many share it.
    """

    nbytes: int
    limit: str = ""
    left: int = 0
    ranks: int = 1


def share_out(requests: Sequence[PoolRequest | None]) -> list[PoolGrant]:
    """Divide what all limits leave by the ranks that share them: the least first, the rest in proportion.

    Parameters
    ----------
    requests : sequence of PoolRequest or None
        Of each rank; None of one that has failed.

    Returns
    -------
    list of PoolGrant
        One a rank; no rank gets more than it wants.
    """
    groups: dict[str, list[tuple[int, PoolRequest, Ceiling]]] = {}
    for rank, request in enumerate(requests):
        if request is not None:
            for ceiling in request.ceilings:
                groups.setdefault(ceiling.key, []).append((rank, request, ceiling))
    grants = [PoolGrant(request.wanted if request else 0) for request in requests]
    for group in groups.values():
        left = min(ceiling.left for _, _, ceiling in group)
        for _, request, ceiling in group:
            left -= request.resident if ceiling.of_ranks else 0
            left -= 0 if ceiling.counts_untouched else request.untouched
        usable = left - max(0, left) // KEPT_SHARE - KEPT_BYTES * len(group)
        wanted = sum(request.wanted for _, request, _ in group)
        if wanted <= usable:
            continue
        least = sum(request.least for _, request, _ in group)
        share = max(0, usable - least) / max(1, wanted - least)
        for rank, request, ceiling in group:
            own = request.least if usable >= least else max(0, usable * request.least // max(1, least))
            nbytes = own + int(share * (request.wanted - request.least))
            if nbytes < grants[rank].nbytes:
                grants[rank] = PoolGrant(nbytes, ceiling.name, left, len(group))
    return grants
