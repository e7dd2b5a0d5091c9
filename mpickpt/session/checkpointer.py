"""One rank's part in a cut: what is saved meets where it is saved, in the snapshotter, which fixes the image.

When that happens, and what becomes of the epoch, is not decided here but in `mpickpt.protocol`.
"""

from __future__ import annotations

import errno
import secrets
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import MpickptError
from mpickpt.layout.arrays import Layout, RankLayout, objects_room_for
from mpickpt.layout.holders import told_shares
from mpickpt.mpi import Coordinator
from mpickpt.options import Options
from mpickpt.protocol import Epoch
from mpickpt.protocol.policy import Ceiling, PoolGrant, PoolRequest, share_out
from mpickpt.session.appended import Identity, check_owners
from mpickpt.session.collector import without_collector
from mpickpt.session.mappings import Region, Watch
from mpickpt.session.regions import Regions
from mpickpt.session.slots import Slots
from mpickpt.signals.forks import disinherit_descriptor, inherit_descriptor
from mpickpt.snapshot import CutPlan, Progress, Snapshotter, crc32c
from mpickpt.store import Store, revalidate

if TYPE_CHECKING:
    from mpickpt.mpi import Traffic

LOCK_PATIENCE = 180.0  # seconds: NFS servers keep a dead machine's locks for 90 s, mostly, and Lustre for 100 or more
CHANNELS_ROOM = 64 * 1024  # bytes for messages in flight; more of them spill


class Checkpointer:
    """Knows what is saved and where, and cuts.

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

    Attributes
    ----------
    regions : Regions
        What is saved.
    slots : Slots
        Where it is saved.
    store : Store
        The checkpoint directory, locked.
    snapshotter : Snapshotter
        Fixes the image, and drains it.
    traffic : Traffic or None
        Messages that may be in flight at a cut, where they are tracked.
    names : frozenset of str
        The arrays of all ranks, since the layout was fixed.
    run, started_ns : int
        The number of the run, and when it began by rank 0's clock, in nanoseconds since 1970.
    """

    def __init__(
        self, coordinator: Coordinator, options: Options, owner: str = "", job_memory: Ceiling | None = None
    ) -> None:
        self._coordinator = coordinator
        self._stall_limit = options.stall_limit
        self.directory = options.directory
        self.store = Store(options.directory, crc32c)
        self.regions = Regions(coordinator.rank)
        self.slots = Slots(coordinator, self.store, options.keep, options.stall_limit)
        self.snapshotter = Snapshotter(direct=options.direct, predict=options.predict)
        self.traffic: Traffic | None = None
        self.names: frozenset[str] = frozenset()
        self.run = self.started_ns = 0
        self._watch = Watch(self.snapshotter, options.pool, coordinator.rank, job_memory)
        self._request: PoolRequest | None = None
        self._grant = PoolGrant(0)
        self._shares_told: set[str] = set()
        self._sealed: list[Region] | None = None  # keeps their memory alive while it is protected
        self._watched = False  # the snapshotter has them
        self._block_bytes = 0
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

    def allocate(self, nbytes: int) -> NDArray[np.uint8]:
        """Allocate zeroed memory on pages of its own."""
        try:
            return self.snapshotter.allocate(nbytes) if nbytes else np.empty(0, np.uint8)
        except OSError as error:
            raise MpickptError(f"Rank {self._coordinator.rank}: no memory for an array of {nbytes} bytes.") from error

    # -- the layout ----------------------------------------------------------------------------------------------

    @without_collector
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
        regions = self.regions.arrays
        own = RankLayout(())
        try:
            room = CHANNELS_ROOM if self.traffic is not None else 0
            own = RankLayout(tuple(r.spec for r in regions), objects_room_for(len(self.regions.pickled())), room)
        except MpickptError as found:
            error = found
        coordinator.agree(error, f"all ranks to declare their arrays at step {step}")
        ranks = coordinator.gather((own, self.regions.files.identities()), f"the layouts of all ranks at step {step}")
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
        self._sealed = regions
        self.slots.fix([region.spec for region in regions], digest, self.run, channels_follow=self.traffic is not None)
        coordinator.agree(error, f"all ranks to watch their arrays at step {step}")

    def _seal(self) -> None:
        assert self._request is not None
        self._watch.seal(self._block_bytes, self._request, self._grant)
        self._watched = True

    def _join(self, ranks: list[tuple[RankLayout, list[Identity]]]) -> tuple[bytes, int, frozenset[str]]:
        check_owners([files for _, files in ranks])
        layout = Layout.of([rank for rank, _ in ranks])
        self.slots.join(layout)
        for text in told_shares(layout, self._shares_told):
            print(f"mpickpt: {text}", file=sys.stderr, flush=True)
        return layout.digest, layout.block_bytes, frozenset(layout.names)

    @property
    def layout_changed(self) -> bool:
        """Whether arrays were added or dropped since the layout was fixed: the next cut is a collective one."""
        return self._sealed is None or self._sealed != self.regions.arrays

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of this rank's arrays, and of a block."""
        return self.regions.nbytes, self._block_bytes

    def resume(self, index: int, epoch: int) -> None:
        """Tell the snapshotter that the arrays came from slot `index`, if that slot has the present layout.

        Arrays that are watched only from the next cut on may have changed without notice: then the slot gets all.
        """
        if self._watched and self.slots.has(index):
            target = self.slots.target(index)
            with suppress(OSError):  # then the slot gets all of them again, which is slower and as good
                self.snapshotter.resume(target.path, target.offsets, epoch)

    # -- a cut ---------------------------------------------------------------------------------------------------

    def cut(self, epoch: Epoch) -> None:
        """Pickle the objects and have the snapshotter fix the image, which it drains from then on.

        Raises
        ------
        OSError
            If what the program has appended to a file cannot be written, or the snapshotter refuses the cut.
        """
        files = self.regions.files
        unwritten = files.flush()
        target, payload = self.slots.target(epoch.slot), self.regions.pickled()
        plan = CutPlan(target, epoch.number, epoch.step, payload, files.descriptors())
        if not self._watched:
            self._seal()
        if self.traffic is not None:
            self.traffic.cut(epoch.number)
        if unwritten is not None:
            raise unwritten
        self.snapshotter.set_stall_limit(self._stall_limit, plan.target.stall_text)
        self.snapshotter.cut(plan)

    # -- its drain -----------------------------------------------------------------------------------------------

    def progress(self) -> Progress:
        """Return how far the drain of the last cut is."""
        return self.snapshotter.progress()

    def saved(self) -> tuple[int, int]:
        """Return how many bytes of the last cut are saved on this rank, and of how many; counted in whole blocks."""
        saved, dirty = self.snapshotter.saved()
        return saved * self._block_bytes, dirty * self._block_bytes

    def saved_share(self) -> float:
        """Return what share of the last cut is saved on this rank, from 0 to 1."""
        saved, dirty = self.snapshotter.saved()
        return saved / max(1, dirty)

    def boost(self, on: bool) -> None:
        """Let threads of normal priority drain while it is on."""
        self.snapshotter.boost(on)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the drain, at most so long; tell whether it has ended."""
        return self.snapshotter.wait(seconds)

    def add_slot(self, start: int) -> None:
        """Bring the slot that the last cut waits for, whose raw data begin at the byte `start`."""
        self.snapshotter.add_slot(start)

    def add_channels(self, data: bytes) -> None:
        """Bring the messages in flight, which the epoch waits for."""
        self.snapshotter.add_channels(data)

    def fail(self, errno: int) -> None:
        """End the epoch as failed, for this reason; raises OSError if none is being drained."""
        self.snapshotter.fail(errno)

    def untracked(self, progress: Progress) -> str | None:
        """Return which array an untracked writer has written to since the last cut, if `progress` says so."""
        found = progress.untracked
        if found is None or self._sealed is None:
            return None
        return f"array {self._watch.name_of(found[0])!r}, in the block at byte {found[1]}"

    def changed(self, progress: Progress) -> str | None:
        """Return why the last cut failed, if it was a file, or somebody who wrote to memory while it was saved."""
        if progress.unsynced is not None:
            return self.regions.files.note_unsynced(progress.unsynced, progress.errno)
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
        keep_lock = not self.slots.stop() or keep_lock
        self._watch.close()
        self.regions.close()
        self._sealed = None
        if keep_lock or not all_ended:
            self.store.keep_lock()
            return all_ended
        if self.store.lock_descriptor is not None:
            inherit_descriptor(self.store.lock_descriptor)
        self.store.unlock()
        return True
