"""Figures from the notes of a run: what each epoch cost, what the run lost, how often to cut. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from mpickpt.protocol.policy import DOWNTIME, best_interval
from mpickpt.report.notes import Costs, EpochNote, RankNotes, RunNotes, total


@dataclass(frozen=True)
class EpochFigures:
    """One epoch, over all ranks that noted it.

    Attributes
    ----------
    epoch, step : int
        Its number, and the step that it was cut at.
    ranks : int
        How many ranks noted it.
    complete : bool
        Whether it is complete on all ranks of the run.
    errno : int
        Why it failed on a rank; 0 if it failed on none.
    cut : float
        When the first rank was cut, in seconds from the beginning of the run.
    blocked, faulted, waited : float
        Seconds on the rank that lost most: blocked at the cut; in write faults, until its next cut; and waiting at safe
        points.
    drain : float
        Seconds of the longest drain.
    nbytes, bytes_idle, bytes_urgent, bytes_waiting : int
        Bytes of all ranks, and those drained idle, urgently, and while the program waited.
    blocks_copied, blocks_drained : int
        Blocks of all ranks that the program copied before they were saved, and that were saved as they were.
    faults : int
        Write faults of all ranks.
    """

    epoch: int
    step: int
    ranks: int
    complete: bool
    errno: int
    cut: float
    blocked: float
    faulted: float
    waited: float
    drain: float
    nbytes: int
    bytes_idle: int
    bytes_urgent: int
    bytes_waiting: int
    blocks_copied: int
    blocks_drained: int
    faults: int

    @property
    def added(self) -> float:
        """Seconds that the program lost."""
        return self.blocked + self.faulted + self.waited

    @property
    def bandwidth(self) -> float:
        """Bytes of all ranks per second of the longest drain; 0 without one."""
        return self.nbytes / self.drain if self.drain > 0 else 0.0


@dataclass(frozen=True)
class RankFigures:
    """One rank over the whole run.

    Attributes
    ----------
    rank : int
        The rank.
    host : str
        Its node.
    seconds : float
        For which it is known to have run.
    costs : Costs
        All of its notes together.
    end : float
        Seconds that the program waited for the last drain at its end.
    """

    rank: int
    host: str
    seconds: float
    costs: Costs
    end: float

    @property
    def lost(self) -> float:
        """Seconds that the program lost to checkpoints."""
        return self.costs.lost + self.end

    @property
    def share(self) -> float:
        """The same as a share of the time, 0 to 1."""
        return min(1.0, self.lost / self.seconds) if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Interval:
    """The best interval, by `mpickpt.protocol.policy.best_interval`, and what it was computed from.

    Attributes
    ----------
    best : float
        Seconds between two cuts that minimise the expected lost time.
    measured : float or None
        Mean seconds between two cuts of the run; None if it made fewer than two.
    drain, lost, restart : float
        Seconds of a drain, lost to the program by an epoch (cut and write faults), and of a restart: of the slowest
        rank, averaged over the epochs.
    mtbf, downtime : float
        Seconds assumed between two failures, and from a failure to the next start.
    """

    best: float
    measured: float | None
    drain: float
    lost: float
    restart: float
    mtbf: float
    downtime: float


@dataclass(frozen=True)
class RunFigures:
    """One run.

    Attributes
    ----------
    name : str
        Its folder.
    started_ns : int
        When it began, in nanoseconds since 1970.
    world_size : int
        Number of ranks.
    ranks : tuple of RankFigures
        Those whose notes are there.
    epochs : tuple of EpochFigures
        Those that are noted one by one.
    summed : int
        Older epochs that are noted as sums alone.
    ended : bool
        Whether all ranks noted their end, and none left alone.
    restored : int or None
        The epoch that the run restored.
    interval : Interval or None
        None if no epoch that is noted one by one succeeded.
    """

    name: str
    started_ns: int
    world_size: int
    ranks: tuple[RankFigures, ...]
    epochs: tuple[EpochFigures, ...]
    summed: int
    ended: bool
    restored: int | None
    interval: Interval | None

    @property
    def seconds(self) -> float:
        """Seconds for which the run is known to have gone on."""
        return max(rank.seconds for rank in self.ranks)

    @property
    def most_lost(self) -> RankFigures:
        """The rank that lost the largest share of its time."""
        return max(self.ranks, key=lambda rank: rank.share)

    @property
    def mean_share(self) -> float:
        """The share of their time that the ranks lost, on average."""
        return fmean(rank.share for rank in self.ranks)


def figures_of(run: RunNotes, mtbf: float | None = None) -> RunFigures:
    """Compute all figures of a run.

    Parameters
    ----------
    run : RunNotes
        The notes, of at least one rank.
    mtbf : float, optional
        Seconds between two failures; by default what the session was opened with.
    """
    headers = [notes.header for notes in run.ranks.values()]
    first = headers[0]
    epochs = _epochs(run, first.ranks)
    return RunFigures(
        name=run.name,
        started_ns=first.started_ns,
        world_size=first.ranks,
        ranks=tuple(_rank(notes) for _, notes in sorted(run.ranks.items())),
        epochs=epochs,
        summed=max(notes.sums.epochs for notes in run.ranks.values()),
        ended=len(run.ranks) == first.ranks
        and all(notes.end is not None and not notes.end.by_itself for notes in run.ranks.values()),
        restored=first.restored,
        interval=_interval(run, first.mtbf if mtbf is None else mtbf),
    )


def costs_of_epochs(notes: RankNotes) -> Iterator[tuple[EpochNote, Costs]]:
    """Yield a rank's epochs and what each cost it, with the faults until the next cut."""
    followers: Sequence[Costs | None] = [*notes.epochs[1:], notes.end]
    for epoch, after in zip(notes.epochs, followers, strict=False):  # without epochs there is the end alone
        own = total([epoch])
        late = (after.late_faults, after.late_fault_seconds) if after is not None else (0, 0.0)
        yield epoch, Costs(**(vars(own) | {"late_faults": late[0], "late_fault_seconds": late[1]}))


def fault_rates(notes: RankNotes) -> list[tuple[float, float, float]]:
    """Return spans of a rank's time, each with its write faults per second: start, stop, rate."""
    spans: list[tuple[float, float, int]] = []
    last = notes.sums.until
    for epoch in notes.epochs:
        spans += [(last, epoch.cut, epoch.late_faults), (epoch.cut, epoch.drained, epoch.faults)]
        last = epoch.drained
    if notes.end is not None:
        spans.append((last, notes.end.closed, notes.end.late_faults))
    return [(start, stop, faults / (stop - start)) for start, stop, faults in spans if stop > start]


def _epochs(run: RunNotes, world_size: int) -> tuple[EpochFigures, ...]:
    """Merge the ranks' notes; an epoch that some rank has only in its sums is left out."""
    found: dict[int, list[tuple[EpochNote, Costs]]] = {}
    for notes in run.ranks.values():
        for epoch, costs in costs_of_epochs(notes):
            found.setdefault(epoch.epoch, []).append((epoch, costs))
    summed = max(notes.sums.last for notes in run.ranks.values())
    return tuple(_epoch(found[number], world_size) for number in sorted(found) if number > summed)


def _epoch(noted: Sequence[tuple[EpochNote, Costs]], world_size: int) -> EpochFigures:
    epochs, costs = [epoch for epoch, _ in noted], [cost for _, cost in noted]
    whole, slowest = total(costs), max(costs, key=lambda cost: cost.lost)
    return EpochFigures(
        epoch=epochs[0].epoch,
        step=epochs[0].step,
        ranks=len(noted),
        complete=len(noted) == world_size and not any(epoch.errno for epoch in epochs),
        errno=max(epoch.errno for epoch in epochs),
        cut=min(epoch.cut for epoch in epochs),
        blocked=slowest.blocked,
        faulted=slowest.fault_seconds + slowest.late_fault_seconds,
        waited=slowest.waited,
        drain=max(cost.drain for cost in costs),
        nbytes=whole.bytes_written,
        bytes_idle=whole.bytes_idle,
        bytes_urgent=whole.bytes_urgent,
        bytes_waiting=whole.bytes_waiting,
        blocks_copied=whole.blocks_copied,
        blocks_drained=whole.blocks_due - whole.blocks_copied,
        faults=whole.faults + whole.late_faults,
    )


def _rank(notes: RankNotes) -> RankFigures:
    end = notes.end
    waited = 0.0
    if end is not None:
        last = max([notes.sums.until, *(epoch.drained for epoch in notes.epochs)])
        waited = max(0.0, min(end.closed, last) - end.closing)
    everything = total([notes.sums, *notes.epochs, *([end] if end else [])])
    return RankFigures(notes.header.rank, notes.header.host, notes.seconds, everything, waited)


def _interval(run: RunNotes, mtbf: float) -> Interval | None:
    """Average the slowest rank of each epoch that is noted one by one; None if there are none."""
    drains: dict[int, float] = {}
    losses: dict[int, float] = {}
    cuts: dict[int, float] = {}
    for notes in run.ranks.values():
        for epoch, cost in costs_of_epochs(notes):
            cuts[epoch.epoch] = min(cuts.get(epoch.epoch, epoch.cut), epoch.cut)
            if epoch.errno == 0:
                drains[epoch.epoch] = max(drains.get(epoch.epoch, 0.0), epoch.drain)
                losses[epoch.epoch] = max(losses.get(epoch.epoch, 0.0), cost.lost - cost.waited)
    if not drains:
        return None
    restart = max(notes.header.restart_seconds for notes in run.ranks.values())
    drain, lost = fmean(drains.values()), fmean(losses.values())
    measured = (max(cuts.values()) - min(cuts.values())) / (len(cuts) - 1) if len(cuts) > 1 else None
    return Interval(best_interval(drain, lost, mtbf, DOWNTIME, restart), measured, drain, lost, restart, mtbf, DOWNTIME)
