"""One rank's work at a cut, and on the epoch until all ranks know what became of it.

An epoch goes through four stations: *cut* (the image is fixed, the drain begins), *drained* (this rank's image is on
disk, or the drain failed), *posted* (this rank has told the others, without waiting), *settled* (the answer of all
ranks is here). The next cut waits until the last epoch is settled, because only then is it known which slot holds the
newest epoch that is whole everywhere, and that one must not be overwritten.
"""

from __future__ import annotations

import os
import pickle
import secrets
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.coordinator import Coordinator
from mpickpt.errors import EpochError, LayoutError, MpickptError, StoreError, UsageError
from mpickpt.layout import ArraySpec, Layout, RankLayout, SlotOffsets, objects_room_for
from mpickpt.options import Options
from mpickpt.policy import choose_slot, should_hurry
from mpickpt.progress import DrainDisplay
from mpickpt.restore import Start
from mpickpt.snapshot import DrainState, Snapshotter, crc32c
from mpickpt.stats import Stats
from mpickpt.store import Store, slot_path, spill_path

GLANCE_SECONDS = 0.1  # a wait for the drain returns to Python so often, for Ctrl-C and the progress bar


@dataclass(frozen=True, eq=False)
class _Region:
    spec: ArraySpec
    memory: NDArray[np.uint8]
    owned: bool


@dataclass
class _Epoch:
    """An epoch that is not settled."""

    number: int
    step: int
    slot: int
    cut_at: float
    posted: bool = False


class Checkpointer:
    """Cuts, drains and settles; the session says when.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    options : Options
        Directory, slots, pool.
    """

    def __init__(self, coordinator: Coordinator, options: Options) -> None:
        self._coordinator = coordinator
        self._options = options
        self.store = Store(options.directory, crc32c)
        self.snapshotter = Snapshotter(direct=options.direct)
        self.objects: dict[str, Any] = {}
        self._stats = Stats()
        self._regions: dict[str, _Region] = {}
        self._sealed: list[_Region] | None = None  # keeps their memory alive while it is protected
        self._digest = b""
        self._layout: Layout | None = None  # on rank 0
        self._targets: dict[int, SlotOffsets] = {}
        self._epochs: dict[int, int | None] = {}
        self._protected: int | None = None
        self._last_number = 0
        self._run = 0
        self._epoch: _Epoch | None = None
        coordinator.on_root(self.store.lock, "rank 0 to lock the checkpoint directory")

    def begin(self, start: Start) -> None:
        """Take over what the look at the slots brought; collective."""
        self._epochs, self._protected = dict(start.epochs), start.protected
        self._last_number = start.next_epoch - 1
        self._run = self._coordinator.broadcast(secrets.randbits(64), "rank 0 to begin the run")

    # -- regions -------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Allocate zeroed memory on pages of its own."""
        try:
            return self.snapshotter.allocate(nbytes) if nbytes else np.empty(0, np.uint8)
        except OSError as error:
            raise MpickptError(f"Rank {self._coordinator.rank}: no memory for an array of {nbytes} bytes.") from error

    def add(self, spec: ArraySpec, memory: NDArray[np.uint8], *, owned: bool) -> None:
        """Save one more array from the next cut on."""
        self._regions[spec.name] = _Region(spec, memory, owned)

    def drop(self, name: str) -> None:
        """Save an array or object no longer."""
        if name in self.objects:
            del self.objects[name]
        elif name in self._regions:
            del self._regions[name]
        else:
            raise LayoutError(f"There is no array or object {name!r} to drop.")

    def fix_layout(self, step: int) -> None:
        """Tell all ranks what each of them saves, and give the regions to the snapshotter; collective.

        Raises
        ------
        LayoutError
            On all ranks, if the layouts do not fit together or an object cannot be pickled.
        """
        coordinator = self._coordinator
        error: MpickptError | None = None
        regions = list(self._regions.values())
        own = RankLayout(())
        try:
            own = RankLayout(tuple(r.spec for r in regions), objects_room_for(len(self._pickled())))
        except MpickptError as found:
            error = found
        coordinator.agree(error, f"all ranks to declare their arrays at step {step}")
        ranks = coordinator.gather(own, f"the layouts of all ranks at step {step}")
        if ranks is not None:
            self._layout = None
        digest, block_bytes = coordinator.on_root(lambda: self._join(ranks or []), "rank 0 to join the layouts")
        self._sealed = None  # until all is done: an interrupt on the way must not leave half a layout in force
        self.snapshotter.unseal()
        try:
            for region in regions:
                if region.spec.nbytes:
                    self.snapshotter.add(region.memory, owned=region.owned)
            state = sum(region.spec.nbytes for region in regions)
            self.snapshotter.seal(block_bytes, self._options.pool.bytes_for(state, block_bytes))
        except OSError as found:
            error = UsageError(
                f"The arrays cannot be watched: {found.strerror or found}. Do two of them overlap, is another session "
                f"open in this process, or is there no memory for the pool?"
            )
        self._sealed, self._digest = regions, digest
        self._targets.clear()
        coordinator.agree(error, f"all ranks to watch their arrays at step {step}")

    def _join(self, ranks: list[RankLayout]) -> tuple[bytes, int]:
        self._layout = Layout.of(ranks)
        return self._layout.digest, self._layout.block_bytes

    @property
    def _layout_changed(self) -> bool:
        return self._sealed is None or self._sealed != list(self._regions.values())

    def _pickled(self) -> bytes:
        try:
            return pickle.dumps(self.objects, protocol=5)
        except Exception as error:
            for name, value in self.objects.items():
                try:
                    pickle.dumps(value, protocol=5)
                except Exception as found:
                    raise LayoutError(f"Object {name!r} cannot be pickled: {found}") from found
            raise LayoutError(f"The objects cannot be pickled together: {error}") from error

    # -- a cut ---------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether an epoch is not settled."""
        return self._epoch is not None

    def prepare(self, step: int) -> int:
        """Choose the slot for the next epoch and have rank 0 create it if it does not fit; collective."""
        index = choose_slot(self._options.keep, self._epochs, self._protected)
        if index not in self._targets:
            what = f"rank 0 to create slot {index} for the cut at step {step}"
            self._targets[index] = self._coordinator.scatter_from_root(lambda: self._provide(index), what)
        return index

    def _provide(self, index: int) -> list[SlotOffsets]:
        """Make sure on rank 0 that slot `index` has the present layout."""
        assert self._layout is not None
        there = next((slot for slot in self.store.slots() if slot.index == index), None)
        if there is None or there.digest != self._layout.digest:
            self.store.create(index, self._layout)
        return self.store.offsets(index)

    def cut(self, step: int) -> None:
        """Fix the image of this rank for a new epoch; it is drained in the background. All ranks come here.

        What the storage refuses makes a warning and a failed epoch; what the program did wrong raises.
        """
        began = time.perf_counter()
        self._settle_blocking(step)
        self._stats.waited_seconds += time.perf_counter() - began
        if self._layout_changed:
            self.fix_layout(step)
        number = self._last_number = self._last_number + 1
        try:
            index = self.prepare(step)
        except StoreError as error:
            self._stats.failed += 1
            if self._coordinator.rank == 0:
                warnings.warn(f"Epoch {number} (step {step}) failed: {error}", RuntimeWarning, stacklevel=4)
            return
        self._epochs[index] = None
        self._epoch = _Epoch(number, step, index, began)
        try:
            self._arm(self._epoch)
        except BaseException as error:
            if self.snapshotter.progress().epoch != number:  # otherwise it is an interrupt just after the cut
                self._post(complete=False)
            if not isinstance(error, OSError):
                raise
            self._warn(number, step, slot_path(self._options.directory, index), error.strerror or str(error))
        else:
            self._stats.cuts += 1
        self._stats.blocked_seconds += time.perf_counter() - began

    def _arm(self, epoch: _Epoch) -> None:
        """Pickle the objects and have the snapshotter fix the image."""
        objects = self._pickled()
        path = slot_path(self._options.directory, epoch.slot)
        offsets = self._targets[epoch.slot]
        assert self._sealed is not None
        full = [i for i, region in enumerate(self._sealed) if region.spec.nbytes]
        self.snapshotter.cut(
            path=path,
            epoch=epoch.number,
            step=epoch.step,
            rank=self._coordinator.rank,
            run=self._run,
            digest=self._digest,
            offsets=replace(
                offsets,
                arrays=tuple(offsets.arrays[i] for i in full),
                checksums=tuple(offsets.checksums[i] for i in full),
            ),
            objects=objects,
            spill=spill_path(path, self._coordinator.rank),
        )

    # -- until it is settled -------------------------------------------------------------------------------------

    def look(self, step: int, seconds_left: Callable[[], float]) -> None:
        """Bring the epoch a station further if that is possible without waiting."""
        epoch = self._epoch
        if epoch is None:
            return
        if epoch.posted:
            if self._coordinator.commit_arrived():
                self._settle(step)
        elif self.snapshotter.wait(0):
            self._drained(epoch)
        else:
            progress = self.snapshotter.progress()
            saved = progress.blocks_saved / max(1, progress.blocks)
            if should_hurry(saved, time.perf_counter() - epoch.cut_at, seconds_left()):
                self.snapshotter.hurry(True)

    def finish(self, step: int) -> None:
        """Wait until the last epoch is settled, and show how it gets on; collective."""
        if self._epoch is None:
            return
        with DrainDisplay(self._epoch.number, self._coordinator.rank == 0) as display:
            self._settle_blocking(step, display)

    def _settle_blocking(self, step: int, display: DrainDisplay | None = None) -> None:
        epoch = self._epoch
        if epoch is None:
            return
        if not epoch.posted:
            self._wait_for_drain(display)
            self._drained(epoch)
        self._settle(step)

    def _wait_for_drain(self, display: DrainDisplay | None = None) -> None:
        self.snapshotter.hurry(True)
        while not self.snapshotter.wait(GLANCE_SECONDS):
            if display is not None:
                progress = self.snapshotter.progress()
                display.update(progress.blocks_saved, progress.blocks)

    def _drained(self, epoch: _Epoch) -> None:
        """Note what became of this rank's drain, and tell the others."""
        self.snapshotter.hurry(False)
        progress = self.snapshotter.progress()
        self._add_progress(self._stats)
        self._post(complete=progress.state is DrainState.COMPLETE)
        if progress.state is DrainState.FAILED:
            path = slot_path(self._options.directory, epoch.slot)
            self._warn(epoch.number, epoch.step, path, os.strerror(progress.errno))

    def _post(self, *, complete: bool) -> None:
        assert self._epoch is not None
        self._coordinator.post_commit(complete, (self._epoch.number, self._epoch.step, self._epoch.slot))
        self._epoch.posted = True

    def _settle(self, step: int) -> None:
        """Take the answer of all ranks; waits for it if it is not there."""
        epoch = self._epoch
        assert epoch is not None
        what = f"all ranks to finish epoch {epoch.number} (cut at step {epoch.step}), being at step {step} itself"
        commit = self._coordinator.commit(what)
        self._epoch = None
        if commit.whole:
            self._epochs[epoch.slot] = epoch.number
            self._protected = epoch.slot
            self._stats.whole += 1
            self._stats.last_whole = epoch.number
        else:
            self._stats.failed += 1
        if commit.left is not None:
            raise EpochError(
                f"Rank {self._coordinator.rank}: epoch {epoch.number} failed, because rank {commit.left} left the "
                f"session by an exception. See what that rank says."
            )
        if not commit.same_cut:
            raise UsageError(
                f"Epoch {epoch.number} failed: rank {self._coordinator.rank} was cut for it at step {epoch.step}, and "
                f"another rank for another epoch or at another step. All ranks must take the same steps."
            )

    def _warn(self, number: int, step: int, path: Path, reason: str) -> None:
        kept = None if self._protected is None else self._epochs.get(self._protected)
        older = "No epoch is whole yet" if kept is None else f"Epoch {kept} stays"
        warnings.warn(
            f"Epoch {number} (step {step}) failed on rank {self._coordinator.rank}: {path}: {reason}. {older}, and the "
            f"program goes on.",
            RuntimeWarning,
            stacklevel=5,
        )

    # -- figures and the end -------------------------------------------------------------------------------------

    def current_stats(self) -> Stats:
        """Sum up, with the drain that is under way."""
        stats = replace(self._stats)
        if self._epoch is not None and not self._epoch.posted:
            self._add_progress(stats)
        return stats

    def _add_progress(self, stats: Stats) -> None:
        progress = self.snapshotter.progress()
        stats.drain_seconds += progress.drain_seconds
        stats.stall_seconds += progress.stall_seconds
        stats.blocks_copied += progress.blocks_copied
        stats.bytes_written += progress.bytes_written
        stats.bytes_waiting += progress.bytes_waiting

    def close(self) -> None:
        """Let go of everything; collective, after `finish`."""
        self.snapshotter.close()
        self.store.unlock()
        self._coordinator.close()

    def leave(self, *, tell_others: bool) -> None:
        """Let go of everything on this rank alone: the drain is waited for, no other rank is."""
        try:
            if self._epoch is not None and not self._epoch.posted:
                self._wait_for_drain()
                self._drained(self._epoch)
        finally:
            self.snapshotter.close()
            self.store.unlock()
            if tell_others:
                with suppress(MpickptError):
                    self._coordinator.post_commit(False, (0, 0, 0), leaving=True)
