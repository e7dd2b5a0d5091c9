"""Where it is saved: the slots of the directory, made to fit what the ranks save, and where this rank's bytes lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mpickpt.errors import StoreError
from mpickpt.layout.arrays import ArraySpec, Layout, SlotOffsets
from mpickpt.mpi import Coordinator
from mpickpt.protocol.policy import choose_slot
from mpickpt.snapshot import Target
from mpickpt.store import SlotInfo, Store, revalidate, slot_path, spill_path


class Slots:
    """The slots, as one rank writes to them.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks: rank 0 makes the slots.
    store : Store
        The checkpoint directory.
    keep : int
        Number of slots.
    """

    def __init__(self, coordinator: Coordinator, store: Store, keep: int) -> None:
        self._coordinator = coordinator
        self._store = store
        self._keep = keep
        self._layout: Layout | None = None  # on rank 0
        self._full: list[int] = []  # the positions of this rank's arrays that are not empty
        self._digest = b""
        self._run = 0
        self._channels_follow = False
        self._targets: dict[int, Target] = {}  # made once, because a cut has no time for it

    def join(self, layout: Layout) -> None:
        """Take over the layout of all ranks, on rank 0."""
        self._layout = layout

    def fix(self, arrays: Sequence[ArraySpec], digest: bytes, run: int, *, channels_follow: bool) -> None:
        """Fix what this rank saves: its `arrays`, of a layout with this digest; in run `run`."""
        self._full = [i for i, spec in enumerate(arrays) if spec.nbytes]
        self._digest, self._run, self._channels_follow = digest, run, channels_follow
        self._targets.clear()

    def target(self, index: int) -> Target:
        """Return where this rank's image goes in slot `index`, which was provided."""
        return self._targets[index]

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
            revalidate(self._store.directory)
            self._targets[index] = self._target(index, offsets)

    def provide_all(self, step: int, epochs: Mapping[int, int | None], protected: int | None) -> None:
        """Make sure of the next slot, and of the others where that is possible; collective.

        Then ranks that are cut need not meet. A slot that holds a complete epoch of another layout has to wait, and so
        has a slot for which there is no room: its epochs fail until there is.

        Parameters
        ----------
        step : int
            The step that the program is in, for messages.
        epochs : mapping of int to int or None
            The slots that exist: index, and the epoch in it that may be of use, or None.
        protected : int or None
            The slot that is not to be written to next.

        Raises
        ------
        StoreError
            On all ranks, if the next slot cannot be created.
        """
        self.provide(choose_slot(self._keep, epochs, protected), step)
        fitting = self._coordinator.on_root(self._fitting, "rank 0 to inspect the slots")
        for index in range(self._keep):
            if epochs.get(index) is None or index in fitting:
                with suppress(StoreError):
                    self.provide(index, step)

    def forget(self, index: int) -> None:
        """Inspect slot `index` again before it is written to; on all ranks between the same cuts."""
        self._targets.pop(index, None)

    def has(self, index: int) -> bool:
        """Whether slot `index` was provided."""
        return index in self._targets

    def path(self, index: int) -> Path:
        """Return the file of slot `index`."""
        return slot_path(self._store.directory, index)

    def _target(self, index: int, offsets: SlotOffsets) -> Target:
        """Put together what this rank needs to write to slot `index`, in which its bytes lie at `offsets`."""
        without_empty = replace(  # the snapshotter has no empty arrays
            offsets,
            arrays=tuple(offsets.arrays[i] for i in self._full),
            checksums=tuple(offsets.checksums[i] for i in self._full),
        )
        path, rank = self.path(index), self._coordinator.rank
        return Target(
            path,
            without_empty,
            rank,
            self._run,
            self._digest,
            spill_path(path, rank),
            self._channels_follow,
            spill_path(path, rank, "channels"),
            f"mpickpt: rank {rank} has waited 30 s for the storage, as the pool is full: {path}\n",
        )

    # -- on rank 0 -----------------------------------------------------------------------------------------------

    def _fitting(self) -> set[int]:
        """Find the slots that have the present layout."""
        return {slot.index for slot in self._store.slots() if self._fits(slot)}

    def _fits(self, slot: SlotInfo) -> bool:
        """Return whether ranks can write to a slot as it is: through a symbolic link nobody does."""
        assert self._layout is not None
        return slot.digest == self._layout.digest and not slot.path.is_symlink()

    def _provide(self, index: int) -> list[SlotOffsets]:
        """Make sure that slot `index` has the present layout."""
        assert self._layout is not None
        if not self._fits(self._store.inspect(self.path(index))):
            return self._store.create(index, self._layout)
        return self._store.offsets(index)
