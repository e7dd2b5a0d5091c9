"""Restart: which epoch is restored, and with which messages in flight.

Rank 0 inspects the slots and names a candidate. All ranks read it in parallel and check every byte. If one finds
damage, all try the next older candidate. If there are checkpoints but none of them is usable, that is an error: a fresh
start would overwrite data that can perhaps be rescued.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpickpt.errors import LayoutError, MpickptError, NothingToRestore, everywhere
from mpickpt.layout.arrays import Layout
from mpickpt.mpi import Coordinator
from mpickpt.options import Options, Restart
from mpickpt.reading.image import RankImage, images_of
from mpickpt.restart.lazy import LazyRanks, Loading
from mpickpt.restart.sources import OtherRanks, SameRanks, Source, check_payloads, check_share, read_own
from mpickpt.snapshot import Snapshotter
from mpickpt.stats import Restored
from mpickpt.store import SlotInfo, Store
from mpickpt.terminal import Bar

if TYPE_CHECKING:
    from mpickpt.mpi import Traffic

# The first thing at which all ranks meet once a session is open.
FIRST_SAFE_POINT = (
    "all ranks to come to their first safe point (workers that wait inside a library never do: then open the session "
    "on MPI.COMM_SELF, see docs/recipes.md)"
)
SHOWN = 5  # corrupt places that are reported of one epoch


@dataclass
class Start:
    """How a run begins.

    Attributes
    ----------
    source : Source or None
        Where arrays and objects come from; None for a fresh start.
    restored : Restored or None
        What the program is told of it.
    next_epoch : int
        Number of the first epoch of the run; higher than any in a slot, so that no epoch mixes two runs.
    epochs : dict
        For each slot that exists, by index: the usable epoch in it, or None.
    protected : int or None
        Index of the slot that a restart would use now.
    loading : Loading or None
        What a lazy restart still has to read and check.
    """

    source: Source | None = None
    restored: Restored | None = None
    next_epoch: int = 1
    epochs: dict[int, int | None] = field(default_factory=dict)
    protected: int | None = None
    loading: Loading | None = None

    def close(self) -> None:
        """Let go of what was read, if the run does not begin after all."""
        if self.loading is not None:
            self.loading.close()
        if self.source is not None:
            self.source.close()


@dataclass
class _Survey:
    """What rank 0 found in the directory."""

    candidates: list[tuple[int, Restored]]
    epochs: dict[int, int | None]
    next_epoch: int
    reasons: list[str]
    notice: str = ""


def begin(coordinator: Coordinator, store: Store, snapshotter: Snapshotter, options: Options) -> Start:
    """Find what to restore, and read it; collective.

    Raises
    ------
    NothingToRestore
        If there are checkpoints, but the requested one is missing or corrupt.
    """
    survey = coordinator.on_root(lambda: _survey(store, options), "rank 0 to look at the slots")
    start = Start(next_epoch=survey.next_epoch, epochs=survey.epochs)
    reasons = survey.reasons
    for index, restored in survey.candidates:
        source, damage = _read(coordinator, store, snapshotter, options, restored)
        if not damage:
            loading = source.loading if isinstance(source, LazyRanks) else None
            if coordinator.rank == 0:
                _tell(_success(restored, options.directory, coordinator.size, reasons, lazily=loading is not None))
            protected = index if index >= 0 else None
            restored = replace(restored, shapes=_shapes(source))
            return Start(source, restored, survey.next_epoch, survey.epochs, protected, loading)
        reason = f"{restored.path.name}: epoch {restored.epoch} is corrupt: {'; '.join(damage)}"
        reasons.append(reason)
        if index >= 0:
            survey.epochs[index] = None
        if coordinator.rank == 0:
            _tell(f"mpickpt: {options.directory}: {reason}")
    if survey.candidates:
        raise everywhere(_nothing(options.directory, reasons))
    if coordinator.rank == 0 and survey.notice:
        _tell(survey.notice)
    newest = [(epoch, index) for index, epoch in survey.epochs.items() if epoch is not None]
    start.protected = max(newest)[1] if newest else None
    return start


def messages(coordinator: Coordinator, traffic: Traffic, source: Source | None, directory: Path) -> bool:
    """Restore the messages in flight, at the first safe point; collective.

    Returns
    -------
    bool
        Whether any rank took ``ckpt.comm``, so that messages are counted from here on.

    Raises
    ------
    LayoutError
        On all ranks, if there are messages in flight and no rank took ``ckpt.comm``.
    """
    error: MpickptError | None = None
    data = b""
    try:
        if source is not None:
            data = source.channels()
    except MpickptError as wrong:
        error = wrong
    coordinator.agree(error, FIRST_SAFE_POINT)
    told = coordinator.gather((traffic.taken, len(data)), "all ranks to say whether they took ckpt.comm")
    summed = None if told is None else tuple(map(sum, zip(*told, strict=True)))
    takers, in_flight = coordinator.broadcast(summed, "rank 0 to tell of ckpt.comm") or (0, 0)
    if in_flight and not takers:
        raise everywhere(
            LayoutError(
                f"The epoch that was restored from {directory} holds messages in flight, but no rank takes ckpt.comm, "
                f"which would replay them."
            )
        )
    if in_flight:
        late, early = traffic.restore(data, coordinator.gather, coordinator.scatter)
        if coordinator.rank == 0:
            _tell(f"mpickpt: {late} late messages are replayed, {early} early ones are suppressed")
    return bool(takers)


def _survey(store: Store, options: Options) -> _Survey:
    """Inspect all slots and archived epochs, on rank 0."""
    slots = [*store.slots(), *store.archives()]
    complete = sorted((slot for slot in slots if slot.complete), key=lambda slot: slot.epoch or 0, reverse=True)
    found = _Survey(
        candidates=[],
        epochs={slot.index: slot.epoch if slot.complete else None for slot in slots if slot.index >= 0},
        next_epoch=max((slot.newest for slot in slots), default=0) + 1,
        reasons=[f"{slot.path.name}: {slot.why_not}" for slot in slots if not slot.complete],
    )
    wanted = _wanted(complete, options.restart)
    found.candidates = [
        (slot.index, Restored(slot.epoch or 0, slot.step or 0, slot.path, slot.world_size)) for slot in wanted
    ]
    if options.restart == "never":
        if complete:
            found.notice = (
                f"mpickpt: starts from the beginning; epoch {complete[0].epoch} in {options.directory} stays until a "
                f"new epoch is complete"
            )
    elif not wanted and slots:
        if options.restart != "auto" or not _never_was_complete(slots):
            others = [f"{slot.path.name}: epoch {slot.epoch} (step {slot.step}) is complete" for slot in complete]
            asked = [f"epoch {options.restart} was asked for"] if options.restart != "auto" else []
            raise _nothing(options.directory, [*asked, *others, *found.reasons])
        found.notice = (
            f"mpickpt: begins from the start, as no epoch in {options.directory} was ever complete: {found.reasons[0]}"
        )
    elif not wanted and options.restart != "auto":
        raise _nothing(options.directory, [f"epoch {options.restart} was asked for, but there are no slots"])
    return found


def _wanted(complete: Sequence[SlotInfo], restart: Restart) -> list[SlotInfo]:
    if restart == "never":
        return []
    return [slot for slot in complete if restart in ("auto", slot.epoch)]


def _never_was_complete(slots: Sequence[SlotInfo]) -> bool:
    """Whether the run that wrote the slots provably died before its first epoch was complete.

    Epochs go to slot 0 until one is complete; only then is another slot written to. So if no rank ever wrote to another
    slot, and no record is corrupt, there is nothing to restore.
    """
    sound = all(slot.readable and not slot.corrupt for slot in slots)
    return sound and slots[0].index == 0 and not any(slot.newest for slot in slots[1:])


def _read(
    coordinator: Coordinator, store: Store, snapshotter: Snapshotter, options: Options, restored: Restored
) -> tuple[Source | None, list[str]]:
    """Read and check one epoch on all ranks; return the same list of damage everywhere."""
    plan, problem = _plan(store, restored) if coordinator.rank == 0 else (None, None)
    problem = coordinator.broadcast(problem, "rank 0 to read a slot's structure")
    if problem is not None:
        return None, [problem]
    where = f"epoch {restored.epoch} of {options.directory}"
    bar = Bar(f"reading epoch {restored.epoch}", visible=coordinator.rank == 0)
    source: Source
    if restored.world_size == coordinator.size:
        own = coordinator.scatter(plan[1] if plan else None, "rank 0 to say where the arrays lie")
        if options.lazy and not own.packed:
            source, damage = LazyRanks(where, own, Loading(own, options.direct)), check_payloads(own)
        else:
            with bar:
                arrays, damage = read_own(own, snapshotter, options.direct, bar.update)
            source = SameRanks(where, own, arrays)
    else:
        layout, images = coordinator.broadcast(plan, "rank 0 to say where the arrays lie") or (Layout(()), [])
        with bar:
            damage = check_share(images, coordinator.rank, coordinator.size, options.direct, bar.update)
        source = OtherRanks(where, layout, images, coordinator.rank, coordinator.size, options.direct)
    found = coordinator.gather(damage, "all ranks to read their share of a checkpoint")
    everything = [sentence for own_damage in found for sentence in own_damage] if found is not None else []
    if len(everything) > SHOWN:
        everything[SHOWN:] = [f"and {len(everything) - SHOWN} more"]
    return source, coordinator.broadcast(everything, "rank 0 to tell of damage")


def _shapes(source: Source | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that the program may ask for without `remap`, by name."""
    if isinstance(source, OtherRanks):
        firsts = [source.layout.first(name) for name in source.layout.names]
        return {spec.name: spec.part.shape for spec in firsts if spec.part is not None}
    return {spec.name: spec.shape for spec in source.image.arrays} if isinstance(source, SameRanks) else {}


def _plan(store: Store, restored: Restored) -> tuple[tuple[Layout, list[RankImage]] | None, str | None]:
    """Return where all ranks' shares lie in a slot or archived epoch, or why that is not known."""
    try:
        layout, offsets = store.structure(restored.path)  # imports h5py, on rank 0 alone
        slot = store.inspect(restored.path)
        return (layout, images_of(restored.path, layout, offsets, slot.records, slot.packed)), None
    except MpickptError as error:
        return None, str(error)


def _success(restored: Restored, directory: Path, size: int, reasons: Sequence[str], *, lazily: bool) -> str:
    ranks = f"{size} rank{'s' if size > 1 else ''}"
    if restored.world_size != size:
        ranks += f" (written by {restored.world_size})"
    ranks += ", to be read and checked while it runs" if lazily else ""
    skipped = f"; passed over {'; '.join(reasons)}" if reasons else ""
    return f"mpickpt: restored epoch {restored.epoch} (step {restored.step}) of {directory} on {ranks}{skipped}"


def _nothing(directory: Path, reasons: Sequence[str]) -> NothingToRestore:
    listed = "".join(f"\n  {reason}" for reason in reasons)
    return NothingToRestore(
        f"Nothing in {directory} can be restored:{listed}\nNothing was changed. To start from the beginning there: "
        f"restart='never' (mpickpt run --restart never), or another directory."
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
