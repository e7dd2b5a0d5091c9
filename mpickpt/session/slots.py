"""Where it is saved: the slots of the directory, made to fit what the ranks save, and where this rank's bytes lie.

Rank 0 creates a slot while all wait, if that is quick. A slot of very many arrays *follows*: a process of its own
creates it, while the program goes on and may be cut for it, and all ranks get the news when it is there. Until then
they know where their bytes lie in it, but for where the first byte lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mpickpt.errors import StoreError, warn
from mpickpt.layout.arrays import ArraySpec, Layout, SlotOffsets
from mpickpt.layout.placing import place, shifted
from mpickpt.mpi import Coordinator
from mpickpt.protocol.policy import choose_slot
from mpickpt.session.collector import without_collector
from mpickpt.session.creation import Created, Creation
from mpickpt.snapshot import Target
from mpickpt.store import SlotInfo, Store, revalidate, slot_path, spill_path

MANY_ARRAYS = 1000  # of all ranks: a slot of more than these follows

_NOT_MADE = -1  # in the news, in the place of where a slot begins


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
    stall_limit : float
        Seconds without a sign of life after which storage hangs.
    """

    def __init__(self, coordinator: Coordinator, store: Store, keep: int, stall_limit: float) -> None:
        self._coordinator = coordinator
        self._stall_limit = stall_limit
        self._creation: Creation | None = None  # on rank 0
        self._fixed = 0  # how often the layout was fixed
        self._failed: set[int] = set()  # slots that follow, and cannot be created
        self._made: list[Created] = []  # on rank 0, of which the others have not been told
        self._last: Creation | None = None  # that was stopped
        self._waits = False  # a slot of this layout that followed was not created: all wait for the next ones
        self._relative: list[SlotOffsets] = []  # on rank 0, in slots that follow
        self._store = store
        self._keep = keep
        self._layout: Layout | None = None  # on rank 0
        self._full: list[int] = []  # the positions of this rank's arrays that are not empty
        self._digest = b""
        self._run = 0
        self._channels_follow = False
        self._targets: dict[int, Target] = {}  # made once, because a cut has no time for it

    def join(self, layout: Layout) -> None:
        """Take over the layout of all ranks, on rank 0; slots of another one are not needed any more."""
        self.stop()
        self._layout = layout
        self._relative = []
        self._waits = False

    def fix(self, arrays: Sequence[ArraySpec], digest: bytes, run: int, *, channels_follow: bool) -> None:
        """Fix what this rank saves: its `arrays`, of a layout with this digest; in run `run`."""
        self._full = [i for i, spec in enumerate(arrays) if spec.nbytes]
        self._digest, self._run, self._channels_follow = digest, run, channels_follow
        self._fixed += 1
        self._failed.clear()
        self._targets.clear()

    def target(self, index: int) -> Target:
        """Return where this rank's image goes in slot `index`, which was provided."""
        return self._targets[index]

    def provide(self, index: int, step: int) -> None:
        """Make sure that slot `index` has the present layout, or follows; collective where that is not known.

        Raises
        ------
        StoreError
            On all ranks, if rank 0 cannot create it.
        """
        if index not in self._targets:
            what = f"rank 0 to create slot {index} for the cut at step {step}"
            offsets, follows = self._coordinator.scatter_from_root(lambda: self._provide(index), what)
            revalidate(self._store.directory)
            if follows:
                self._coordinator.news.expect()
            self._targets[index] = self._target(index, offsets, follows=follows)

    @without_collector
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
        self._failed.discard(index)

    def has(self, index: int) -> bool:
        """Whether slot `index` was provided, and exists."""
        return index in self._targets and not self._targets[index].follows

    # -- slots that follow ---------------------------------------------------------------------------------------

    def is_awaited(self, index: int) -> bool:
        """Whether slot `index` follows, and there is no news of it."""
        return index in self._targets and self._targets[index].follows and index not in self._failed

    def has_failed(self, index: int) -> bool:
        """Whether slot `index`, which was to follow, cannot be created."""
        return index in self._failed

    @property
    def share(self) -> float | None:
        """How much of the slot that is being created is described, 0 to 1; None if none is, and on all ranks but 0."""
        return self._creation.share if self._creation is not None and self._creation.pending else None

    def tests(self) -> list[Callable[[], bool]]:
        """Return the tests that show whether `news` should be called; the same until then."""
        return self._coordinator.news.tests() if self._creation is None else [self._creation.has_news]

    def news(self) -> tuple[int, int | None] | None:
        """Return a slot that follows, and where its raw data begin, or None if it cannot be created; None for no news.

        Nothing is waited for. Rank 0 passes it on to all.
        """
        if self._creation is not None:
            return self._created(self._creation)
        while (told := self._coordinator.news.next()) is not None:
            fixed, index, at = told
            if fixed == self._fixed:
                return self._take_in(index, None if at == _NOT_MADE else at)
        return None

    def stop(self) -> bool:
        """Create no more slots that follow; on rank 0, and what is pending has failed.

        Returns
        -------
        bool
            False if the process that creates them hangs, so that it may still write to the directory.
        """
        creation, self._creation = self._creation, None
        if creation is not None:
            lost = self._coordinator.is_lost
            for index in [] if lost else [*(one.index for one in self._made), *creation.pending]:
                self._coordinator.news.tell(self._fixed, index, _NOT_MADE)
            self._made.clear()
            self._last = creation
        return self._has_ended()

    def _has_ended(self) -> bool:
        return self._last is None or self._last.close()

    def _take_in(self, index: int, start: int | None) -> tuple[int, int | None]:
        if start is None:
            self._failed.add(index)
        else:
            revalidate(self._store.directory)
            target = self._targets[index]
            self._targets[index] = replace(target, offsets=shifted(target.offsets, start), follows=False)
        return index, start

    def path(self, index: int) -> Path:
        """Return the file of slot `index`."""
        return slot_path(self._store.directory, index)

    def _target(self, index: int, offsets: SlotOffsets, *, follows: bool) -> Target:
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
            follows,
        )

    # -- on rank 0 -----------------------------------------------------------------------------------------------

    def _fitting(self) -> set[int]:
        """Find the slots that have the present layout."""
        return {slot.index for slot in self._store.slots() if self._fits(slot)}

    def _fits(self, slot: SlotInfo) -> bool:
        """Return whether ranks can write to a slot as it is: through a symbolic link nobody does."""
        assert self._layout is not None
        return slot.digest == self._layout.digest and not slot.path.is_symlink()

    def _provide(self, index: int) -> list[tuple[SlotOffsets, bool]]:
        """Make sure that slot `index` has the present layout, or have it created; offsets, and whether it follows."""
        layout, store = self._layout, self._store
        assert layout is not None
        if self.path(index).exists() and self._fits(store.inspect(self.path(index))):
            return [(offsets, False) for offsets in store.offsets(index)]
        if not self._has_ended():
            raise StoreError(
                f"Slot {self.path(index)} cannot be created: the process that was to create it before hangs in the "
                f"storage. See to the storage.",
                path=self.path(index),
            )
        if self._order(index, layout):
            if not self._relative:
                self._relative = place(layout, 0)[0]
            return [(offsets, True) for offsets in self._relative]
        return [(offsets, False) for offsets in store.create(index, layout)]

    def _order(self, index: int, layout: Layout) -> bool:
        """Have slot `index` created beside the program if that takes long; what can be known before is an error now."""
        if self._creation is None:
            are_few = sum(len(rank.arrays) for rank in layout.ranks) <= MANY_ARRAYS
            if are_few or self._waits or self._store.has_model(layout):
                return False
            self._store.check_room(index, layout)
            try:
                self._creation = Creation(self._store, layout, self._stall_limit)
            except OSError as error:
                warn(f"A slot of many arrays is created while all ranks wait, as no process can be started: {error}.")
                return False
        self._creation.order(index)
        return True

    def _created(self, creation: Creation) -> tuple[int, int | None] | None:
        """Take in the next slot that was created, or was not, and tell the others."""
        self._made += creation.poll()
        if not self._made:
            return None
        made = self._made.pop(0)
        self._coordinator.news.tell(self._fixed, made.index, _NOT_MADE if made.start is None else made.start)
        if not creation.pending and not self._made:
            self.stop()
        taken_in = self._take_in(made.index, made.start)
        if made.start is None:
            self._waits = True
            warn(f"Slot {self.path(made.index)} was not created: {made.why.rstrip('.')}.")
        return taken_in
