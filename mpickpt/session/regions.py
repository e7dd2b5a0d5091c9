"""One rank's work at a cut: what is saved, where in the slot, and the image itself.

When that happens, and what becomes of the epoch, is not decided here but in `mpickpt.protocol`.
"""

from __future__ import annotations

import errno
import secrets
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import LayoutError, MpickptError, StoreError, warn
from mpickpt.layout.arrays import ArraySpec, Layout, RankLayout, SlotOffsets, objects_room_for
from mpickpt.layout.extents import Extents
from mpickpt.layout.holders import told_shares
from mpickpt.mpi import Coordinator
from mpickpt.options import Options
from mpickpt.protocol.policy import Ceiling, PoolGrant, PoolRequest, choose_slot, share_out
from mpickpt.references import Pickled, Places, Saved, dump, out_of_order
from mpickpt.session.bindings import Bindings
from mpickpt.session.mappings import Region, Watch
from mpickpt.signals.forks import disinherit_descriptor, inherit_descriptor
from mpickpt.snapshot import Progress, Snapshotter, crc32c
from mpickpt.store import SlotInfo, Store, revalidate, slot_path, spill_path

if TYPE_CHECKING:
    from mpickpt.mpi import Traffic

LOCK_PATIENCE = 180.0  # seconds: NFS servers keep a dead machine's locks for 90 s, mostly, and Lustre for 100 or more
CHANNELS_ROOM = 64 * 1024  # bytes for messages in flight; more of them spill


@dataclass(frozen=True)
class _Target:
    """A slot as the snapshotter writes to it: made once, because a cut has no time for it."""

    path: Path
    offsets: SlotOffsets  # without empty arrays: the snapshotter has none
    spill: Path
    channels_spill: Path
    stall_text: str  # said by a write that waits long for the storage


class Checkpointer:
    """Knows what is saved, and cuts.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    options : Options
        Directory, slots, pool.
    owner : str
        What beside the process the lock of the directory names: the batch job, if there is one.
    job_memory : Ceiling or None
        What the batch job may take of this node's memory, if it says so.
    """

    def __init__(
        self, coordinator: Coordinator, options: Options, owner: str = "", job_memory: Ceiling | None = None
    ) -> None:
        self._coordinator = coordinator
        self._options = options
        self.store = Store(options.directory, crc32c)
        self.snapshotter = Snapshotter(direct=options.direct, predict=options.predict)
        self._watch = Watch(self.snapshotter, options.pool, coordinator.rank, job_memory)
        self._request: PoolRequest | None = None
        self._grant = PoolGrant(0)
        self.bindings = Bindings(coordinator.rank)
        self.extents = Extents()
        self.objects: dict[str, Any] = {}
        self._declared: dict[str, int] = {}  # the order in which names were first declared
        self._places: Places | None = None  # where the arrays lie, once it was asked
        self._holds_arrays = False  # some object does
        self._told: set[tuple[str, str]] = set()
        self._shares_told: set[str] = set()
        self._regions: dict[str, Region] = {}
        self._sealed: list[Region] | None = None  # keeps their memory alive while it is protected
        self._watched = False  # the snapshotter has them
        self._block_bytes = 0
        self._digest = b""
        self.names: frozenset[str] = frozenset()  # of the arrays of all ranks, since the layout was fixed
        self._layout: Layout | None = None  # on rank 0
        self._targets: dict[int, _Target] = {}
        self.traffic: Traffic | None = None  # messages that may be in flight at a cut, where they are tracked
        self.run = self.started_ns = 0
        self.directory = options.directory
        what = "rank 0 to lock the checkpoint directory"
        coordinator.on_root(lambda: self._lock(owner), what)
        # Rank 0 may have made the directory, and there may have been another of its name.
        revalidate(*reversed(self.directory.absolute().parents), self.directory)

    def _lock(self, owner: str) -> None:
        disinherit_descriptor(self.store.lock(owner, patience=LOCK_PATIENCE))

    def begin(self) -> None:
        """Give the run its number and its beginning by rank 0's clock; collective."""
        began = secrets.randbits(64), time.time_ns()
        self.run, self.started_ns = self._coordinator.broadcast(began, "rank 0 to begin the run")

    def saved(self) -> tuple[int, int]:
        """Tell how many bytes of the last cut are saved on this rank, and of how many; counted in whole blocks."""
        saved, due = self.snapshotter.saved()
        return saved * self._block_bytes, due * self._block_bytes

    # -- regions -------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Allocate zeroed memory on pages of its own."""
        try:
            return self.snapshotter.allocate(nbytes) if nbytes else np.empty(0, np.uint8)
        except OSError as error:
            raise MpickptError(f"Rank {self._coordinator.rank}: no memory for an array of {nbytes} bytes.") from error

    def add(self, spec: ArraySpec, memory: NDArray[np.uint8], array: NDArray[Any], *, owned: bool) -> None:
        """Save one more array from the next cut on; `array` is what the program has."""
        self._declared.setdefault(spec.name, len(self._declared))
        self._regions[spec.name] = Region(spec, memory, owned, type(array), weakref.ref(array))
        self.extents.add(spec.name, memory)
        self._places = None

    def add_object(self, name: str, value: object) -> None:
        """Save one more object, or another one in its place."""
        self._declared.setdefault(name, len(self._declared))
        self.objects[name] = value

    def drop(self, name: str) -> None:
        """Save an array or object no longer."""
        self.bindings.drop(name)
        if name in self.objects:
            del self.objects[name]
        elif name in self._regions:
            del self._regions[name]
            self.extents.drop(name)
            self._places = None
        else:
            raise LayoutError(f"There is no array or object {name!r} to drop.")

    def fix_layout(self, step: int, *, watch: bool = True) -> None:
        """Tell all ranks what each of them saves, and give the regions to the snapshotter; collective.

        Without `watch` the snapshotter gets them at the next cut: reserving the pool takes its time.

        Raises
        ------
        LayoutError
            On all ranks, if the layouts do not fit together or an object cannot be pickled.
        """
        coordinator = self._coordinator
        error: MpickptError | None = None
        request: PoolRequest | None = None
        regions = list(self._regions.values())
        own = RankLayout(())
        try:
            room = CHANNELS_ROOM if self.traffic is not None else 0
            own = RankLayout(tuple(r.spec for r in regions), objects_room_for(len(self._pickled())), room)
        except MpickptError as found:
            error = found
        coordinator.agree(error, f"all ranks to declare their arrays at step {step}")
        ranks = coordinator.gather(own, f"the layouts of all ranks at step {step}")
        if ranks is not None:
            self._layout = None
        joined = coordinator.on_root(lambda: self._join(ranks or []), "rank 0 to join the layouts")
        digest, self._block_bytes, self.names = joined
        self._sealed = None  # until all is done: an interrupt on the way must not leave half a layout in force
        self._watched = False
        try:
            self._watch.add(regions)
            request = self._watch.request(self._block_bytes)
        except MpickptError as found:
            error = found
        requests = coordinator.gather(request, f"all ranks to say how large a pool they want at step {step}")
        grants = None if requests is None else share_out(requests)
        self._request, self._grant = request, coordinator.scatter(grants, "rank 0 to divide the memory of the nodes")
        try:
            if watch and error is None:
                self._seal()
        except MpickptError as found:
            error = found
        self._sealed, self._digest = regions, digest
        self._targets.clear()
        coordinator.agree(error, f"all ranks to watch their arrays at step {step}")

    def _seal(self) -> None:
        assert self._request is not None
        self._watch.seal(self._block_bytes, self._request, self._grant)
        self._watched = True

    def _join(self, ranks: list[RankLayout]) -> tuple[bytes, int, frozenset[str]]:
        self._layout = Layout.of(ranks)
        for text in told_shares(self._layout, self._shares_told):
            print(f"mpickpt: {text}", file=sys.stderr, flush=True)
        return self._layout.digest, self._layout.block_bytes, frozenset(self._layout.names)

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of this rank's arrays, and of a block."""
        return sum(region.spec.nbytes for region in self._regions.values()), self._block_bytes

    @property
    def layout_changed(self) -> bool:
        """Whether arrays were added or dropped since the layout was fixed: the next cut is a collective one."""
        return self._sealed is None or self._sealed != list(self._regions.values())

    def _pickled(self) -> bytes:
        """Pickle the objects, with the saved arrays in them by name."""
        if self._places is None:
            self._places = Places(
                Saved(region.spec, region.memory.ctypes.data, region.kind, region.identity)
                for region in self._regions.values()
            )
        try:
            payload, found = dump(self.objects, self._places, apart=self._holds_arrays)
        except Exception as error:
            for name, value in self.objects.items():
                try:
                    dump({name: value}, self._places, apart=False)
                except Exception as wrong:
                    raise LayoutError(f"Object {name!r} cannot be pickled: {wrong}") from wrong
            raise LayoutError(f"The objects cannot be pickled together: {error}") from error
        self._holds_arrays = found.is_any
        if found.is_any:
            self._tell_of_arrays(found)
        return payload

    def _tell_of_arrays(self, found: Pickled) -> None:
        """Warn once of arrays in objects that would not be the same ones after a restart."""
        for holder, name in sorted(found.copies - self._told):
            warn(
                f"Object {holder!r} holds memory of array {name!r} in a way that cannot be named (another class of "
                f"array, or one that goes beyond it): it is copied at each cut, and after a restart it is an array of "
                f"its own. Let the object hold the array or a view of it.",
                UserWarning,
            )
        late = out_of_order(found, self._declared)
        for holder, name in sorted(late - self._told):
            warn(
                f"Object {holder!r} holds array {name!r}, which was declared after it. A restart in this order fails: "
                f"declare the array before the object.",
                UserWarning,
            )
        self._told |= found.copies | late

    # -- a cut ---------------------------------------------------------------------------------------------------

    def provide(self, index: int, step: int) -> None:
        """Make sure that slot `index` has the present layout; collective where that is not known.

        Raises
        ------
        StoreError
            On all ranks, if rank 0 cannot create it.
        """
        if index not in self._targets:
            what = f"rank 0 to create slot {index} for the cut at step {step}"
            offsets = self._coordinator.scatter_from_root(lambda: self._provide(index), what)
            revalidate(self.directory)
            self._targets[index] = self._target(index, offsets)

    def forget(self, index: int) -> None:
        """Look at slot `index` again before it is written to; on all ranks between the same cuts."""
        self._targets.pop(index, None)

    def provide_all(self, step: int, epochs: Mapping[int, int | None], protected: int | None) -> None:
        """Make sure of the next slot, and of the others where nothing stands against it; collective.

        Ranks that are cut need not meet then. A slot that holds an epoch of use in another layout has to wait, and so
        has one for which there is no room: its epochs fail until there is.

        Raises
        ------
        StoreError
            On all ranks, if the next slot cannot be created.
        """
        self.provide(choose_slot(self._options.keep, epochs, protected), step)
        fitting = self._coordinator.on_root(self._fitting, "rank 0 to look at the slots")
        for index in range(self._options.keep):
            if epochs.get(index) is None or index in fitting:
                with suppress(StoreError):
                    self.provide(index, step)

    def resume(self, index: int, epoch: int) -> None:
        """Tell the snapshotter that the arrays came from slot `index`, if that slot has the present layout.

        Arrays that are watched only from the next cut on may have changed without notice: then the slot gets all.
        """
        if self._watched and index in self._targets:
            with suppress(OSError):  # then the slot gets all of them again, and is none the worse for it
                self.snapshotter.resume(self._targets[index].path, self._targets[index].offsets, epoch)

    def _target(self, index: int, offsets: SlotOffsets) -> _Target:
        """Put together what this rank needs to write to slot `index`, in which its bytes lie at `offsets`."""
        assert self._sealed is not None
        full = [i for i, region in enumerate(self._sealed) if region.spec.nbytes]
        path, rank = slot_path(self.directory, index), self._coordinator.rank
        without_empty = replace(
            offsets,
            arrays=tuple(offsets.arrays[i] for i in full),
            checksums=tuple(offsets.checksums[i] for i in full),
        )
        stall_text = f"mpickpt: rank {rank} has waited 30 s for the storage, as the pool is full: {path}\n"
        return _Target(path, without_empty, spill_path(path, rank), spill_path(path, rank, "channels"), stall_text)

    def _fitting(self) -> set[int]:
        """Find the slots that have the present layout, on rank 0."""
        assert self._layout is not None
        return {slot.index for slot in self.store.slots() if self._fits(slot)}

    def _fits(self, slot: SlotInfo) -> bool:
        """Tell whether ranks can write to a slot as it is: through a symbolic link nobody does."""
        assert self._layout is not None
        return slot.digest == self._layout.digest and not slot.path.is_symlink()

    def _provide(self, index: int) -> list[SlotOffsets]:
        """Make sure on rank 0 that slot `index` has the present layout."""
        assert self._layout is not None
        if not self._fits(self.store.look(slot_path(self.directory, index))):
            self.store.create(index, self._layout)
        return self.store.offsets(index)

    def untracked(self, progress: Progress) -> str | None:
        """Tell which array was written to without being noticed since the last cut, if `progress` says so."""
        found = progress.untracked
        if found is None or self._sealed is None:
            return None
        return f"array {self._watch.name_of(found[0])!r}, in the block at byte {found[1]}"

    def changed(self, progress: Progress) -> str | None:
        """Tell why the last cut failed, if it was because somebody wrote to memory while it was copied or saved."""
        if progress.errno != errno.EREMCHG or self._sealed is None:
            return None
        if progress.torn is None:
            where = self.untracked(progress) or "an array"
            return (
                f"{where}, was written to by something that mpickpt cannot see while it was saved, so that what is in "
                f"the slot may be neither old nor new; the next epoch saves everything"
            )
        return (
            f"array {self._watch.name_of(progress.torn)!r}, which others have mapped too, was written to while the cut "
            f"copied it, so that its image would be of no instant; let nobody write to it between his own safe point "
            f"and that of this rank"
        )

    def cut(self, number: int, step: int, slot: int) -> None:
        """Pickle the objects and have the snapshotter fix the image, which it drains from then on."""
        objects = self._pickled()
        target = self._targets[slot]
        if not self._watched:
            self._seal()
        if self.traffic is not None:
            self.traffic.cut(number)
        self.snapshotter.set_stall_limit(self._options.stall_limit, target.stall_text)
        self.snapshotter.cut(
            path=target.path,
            epoch=number,
            step=step,
            rank=self._coordinator.rank,
            run=self.run,
            digest=self._digest,
            offsets=target.offsets,
            objects=objects,
            spill=target.spill,
            channels_follow=self.traffic is not None,
            channels_spill=target.channels_spill,
        )

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self, *, keep_lock: bool = False) -> bool:
        """Let go of everything on this rank, the arrays' memory too; the drain has ended.

        Where the storage of some rank hangs, what is still under way may reach a slot at any time: the directory then
        stays locked.

        Returns
        -------
        bool
            False if the storage of this rank hangs.
        """
        all_ended = self.snapshotter.close()
        self._watch.close()
        self.bindings.close()
        self._sealed = None
        self._regions.clear()
        self.extents.clear()
        if keep_lock or not all_ended:
            self.store.keep_lock()
            return all_ended
        if self.store.lock_descriptor is not None:
            inherit_descriptor(self.store.lock_descriptor)
        self.store.unlock()
        return True
