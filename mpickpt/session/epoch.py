"""What an epoch is on this rank, from the cut to its decision: it is drained, joined by messages, told to all.

`mpickpt.session.driver` says when; nothing here decides, and nothing here waits but for what all ranks do together.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mpickpt.errors import MpickptError, StoreError, UsageError, warn
from mpickpt.mpi import STORAGE, Commit, Coordinator, Share
from mpickpt.protocol import PATIENCE, Decided, Drained, Epoch, Event, Protocol, Refused
from mpickpt.protocol.policy import Clock, should_boost
from mpickpt.report.recorder import Recorder
from mpickpt.restart.lazy import Loading
from mpickpt.session.hang import Hang
from mpickpt.session.outcome import Outcome
from mpickpt.session.regions import Checkpointer
from mpickpt.snapshot import DrainState, Progress
from mpickpt.stats import Stats
from mpickpt.store import slot_path
from mpickpt.terminal import RunState

if TYPE_CHECKING:
    from mpickpt.mpi import Traffic

SKIPPED = "it was skipped, as the storage of a rank hung"
MISSED = "a rank had to go on before it knew the step of the cut; it is tried again"
# The slot is deleted, not as it was, or no file any more: it may have to be made again.
LOST = (errno.ENOENT, errno.ESTALE, errno.EINVAL)
INTERRUPT_SECONDS = 0.1  # a wait for the drain returns to Python so often, for Ctrl-C


class Epochs:
    """One rank's epochs, one after another.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    checkpointer : Checkpointer
        Cuts and drains.
    protocol : Protocol
        Is asked which epoch is under way, and which is the newest complete one.
    clock : Clock
        Is told of each cut, and of what epochs cost.
    recorder : Recorder
        Takes notes of what happens.
    hang : Hang
        Knows whether the storage hangs.
    loading : Loading or None
        What a lazy restart has still to read and check; there is no cut before it is done.

    Attributes
    ----------
    stats : Stats
        What it cost so far.
    last : Outcome or None
        What became of the epoch that was decided last.
    newest : Outcome or None
        The newest complete one of this session.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        checkpointer: Checkpointer,
        protocol: Protocol,
        clock: Clock,
        recorder: Recorder,
        hang: Hang,
        loading: Loading | None,
    ) -> None:
        self.stats = Stats()
        self.last: Outcome | None = None
        self.newest: Outcome | None = None
        self._coordinator = coordinator
        self._checkpointer = checkpointer
        self._protocol = protocol
        self._clock = clock
        self._recorder = recorder
        self._hang = hang
        self._loading = loading
        self._cut_at = self._complete_at = 0.0  # the last cut, and that of the newest complete epoch
        self._blocked_seconds = 0.0
        self._costs = (0.0, 0.0)  # of the last epoch: seconds of its drain, and lost to the program
        self._restart_seconds = 0.0
        self._channels_due = False
        self._fault: str | None = None  # why the epoch fails on this rank, if it is not the storage
        self._failure: tuple[int, str] = (0, "")  # the errno and the reason, if it failed on this rank

    def start(self, restart_seconds: float) -> None:
        """Begin to keep time; reading the checkpoint took `restart_seconds`."""
        self._restart_seconds = restart_seconds
        if self._checkpointer.traffic is not None:
            self.finish_loading()  # a rank that waits for others at its first cut might keep a message from them
        self._cut_at = time.perf_counter()  # as if the epoch that was restored had been cut now
        self._clock.start(self._cut_at)

    # -- a lazy restart ------------------------------------------------------------------------------------------

    def finish_loading(self) -> None:
        """Have the arrays of all ranks in memory of their own, and sound, before any slot is written to.

        Collective, once. One rank's word is not enough: if another one's arrays are corrupt, the older epoch is needed,
        which the first cut overwrites.
        """
        loading, self._loading = self._loading, None
        if loading is None:
            return
        error: MpickptError | None = None
        try:
            loading.finish()
        except MpickptError as found:
            error = found
        self._coordinator.agree(error, "all ranks to read and check what they restored")

    @property
    def loads(self) -> bool:
        """Whether arrays are still being read and checked."""
        return self._loading is not None

    def see_to_loading(self, now: float, left: float) -> bool:
        """See that all is loaded in the `left` seconds to the next cut; once True, if what is loaded is corrupt."""
        return self._loading is not None and self._loading.look(now - self._cut_at, left)

    # -- the cut -------------------------------------------------------------------------------------------------

    def prepare(self, number: int, step: int, slot: int) -> Event | None:
        """Do what all ranks do together before a cut, if there is anything of that kind."""
        if self._checkpointer.layout_changed:
            self._checkpointer.fix_layout(step)
        try:
            self._checkpointer.provide(slot, step)
        except StoreError as error:
            self.stats.failed += 1
            self.last = Outcome(number, step, complete=False, path=self._path(slot), reason=str(error))
            if self._coordinator.rank == 0:
                warn(f"Epoch {number} (step {step}) failed: {error}")
            return Refused()
        return None

    def cut(self, number: int, step: int, slot: int, began: float) -> Event | None:
        """Fix the image of this rank; it is drained in the background. The cut `began` then, of `time.perf_counter`.

        What the storage refuses makes a warning and a failed epoch; what the program did wrong raises.
        """
        self._checkpointer.bindings.check()
        before = self._checkpointer.snapshotter.progress()
        self._warn_of_untracked_writes(before)
        self._cut_at, self._costs = began, (0.0, 0.0)
        self._hang.begin(slot)
        self._channels_due, self._fault = self._checkpointer.traffic is not None, None
        self._failure = 0, "its cut raised an exception"
        try:
            self._checkpointer.cut(number, step, slot)
        except OSError as error:
            if self.is_cut(number):
                raise
            self._failure = error.errno or 0, error.strerror or str(error)
            self._warn(number, step, slot, self._failure[1])
            return Drained(False)
        self._blocked_seconds = time.perf_counter() - began
        self.stats.cuts += 1
        self.stats.blocked_seconds += self._blocked_seconds
        self._recorder.cut(number, step, slot, began, self._blocked_seconds, before)
        return None

    def is_cut(self, number: int) -> bool:
        """Whether the image of epoch `number` is fixed, whatever was raised since."""
        return self._checkpointer.snapshotter.progress().epoch == number

    def miss(self, number: int, step: int, slot: int) -> Event:
        """Do what the others did at the cut, without making one."""
        self.finish_loading()
        self._failure = 0, MISSED
        refused = self.prepare(number, step, slot)
        if refused is None and self._checkpointer.traffic is not None:
            self._checkpointer.traffic.cut(number)
        return refused or Drained(False)

    def skip(self, number: int, step: int) -> Drained:
        """Let a cut go by, as all ranks do, and find out whether the storage of this one still hangs."""
        hung = self._hang.skips(number, step)
        self._costs = (0.0, 0.0)
        self._failure = (errno.ETIMEDOUT, self._hang.reason()) if hung else (0, SKIPPED)
        return Drained(False, hung=hung)

    def give_up_if_hung(self, *, ending: bool) -> None:
        """Give the epoch up that this rank waits for, if the storage hangs; at the end of a program not so soon."""
        epoch = self._protocol.epoch
        if epoch is not None and not epoch.posted:
            self._hang.give_up(ending=ending or epoch.stop)

    def storage(self) -> str | None:
        """Say what this rank waits for, if that is its own storage."""
        epoch = self._protocol.epoch
        if epoch is None or epoch.posted or self.awaits_messages:
            return None
        return f"{STORAGE}which saves epoch {epoch.number} (cut at step {epoch.step}) in {self._hang.path}"

    # -- the drain -----------------------------------------------------------------------------------------------

    @property
    def drains(self) -> bool:
        """Whether an epoch is under way whose drain has not ended here."""
        return self._protocol.epoch is not None and not self._protocol.epoch.posted

    def see_to_drain(self, now: float, left: float) -> None:
        """See that the drain under way ends in the `left` seconds to the next cut."""
        saved, due = self._checkpointer.snapshotter.saved()
        if should_boost(saved / max(1, due), now - self._cut_at, left):
            self.boost()

    def boost(self) -> None:
        """Let threads of normal priority drain, until the drain has ended."""
        self._checkpointer.snapshotter.boost(True)

    def state(self, step: int, now: float) -> RunState:
        """Tell where the program is, being at `step`."""
        epoch, complete = self._protocol.epoch, self._protocol.newest_complete
        age = now - self._complete_at if self.stats.complete else None
        if epoch is None:
            return RunState(step, complete=complete, age=age)
        saved, due = self._checkpointer.snapshotter.saved()
        share = 1.0 if epoch.posted else min(saved / max(1, due), 0.99)  # what commits it comes last
        return RunState(step, epoch.number, share, complete, age)

    # -- messages in flight --------------------------------------------------------------------------------------

    def _move(self, traffic: Traffic) -> None:
        """Bring the exchange of counts further, and hand over the messages in flight when all are known."""
        if traffic.advance() and self._channels_due:
            if traffic.fault is None:
                self._channels_due = False
                self._checkpointer.snapshotter.add_channels(traffic.in_flight())
            else:
                self._give_up(traffic.fault)

    def _give_up(self, reason: str) -> None:
        """Fail the epoch for want of its messages, if it has not failed already."""
        self._channels_due = False
        self._fault = reason
        with suppress(OSError):
            self._checkpointer.snapshotter.fail(errno.ECANCELED)

    def give_up_late_messages(self, stood: float) -> None:
        """Standing still for its own drain, a rank receives nothing: messages that are not here will not come."""
        traffic = self._checkpointer.traffic
        if traffic is None:
            return
        self._move(traffic)  # the last tracked call may have brought all that is needed
        if self._channels_due and (not traffic.exchanging or stood > PATIENCE):
            self._give_up(f"{traffic.missing()} The next cut cannot wait for them")

    def receive_ahead(self) -> None:
        """Receive what has come on ``ckpt.comm`` in the name of the program, which waits for an epoch."""
        if self._checkpointer.traffic is not None:
            self._checkpointer.traffic.receive_ahead()

    @property
    def awaits_messages(self) -> bool:
        """Whether the epoch waits for messages in flight, or for word of them."""
        traffic = self._checkpointer.traffic
        return self._channels_due or (traffic is not None and traffic.exchanging)

    # -- how it ended --------------------------------------------------------------------------------------------

    def tests(self) -> list[Callable[[], bool]]:
        """Give what to call to learn whether `next_event` has something to tell, until then the same."""
        epoch = self._protocol.epoch
        if epoch is None:
            return []
        if epoch.posted:
            return self._coordinator.commits.tests()
        return [partial(self._checkpointer.snapshotter.wait, 0)]

    def next_event(self) -> Event | None:
        """Give what became of the epoch under way, if that is known by now; helps messages in flight along."""
        traffic = self._checkpointer.traffic
        if traffic is not None:
            self._move(traffic)
        epoch = self._protocol.epoch
        if epoch is None:
            return None
        if not epoch.posted:
            return self._drained(epoch) if self._checkpointer.snapshotter.wait(0) else None
        commit = self._coordinator.commits.next()
        return None if commit is None else self._decided(epoch, commit)

    def _drained(self, epoch: Epoch) -> Drained:
        """Note what became of this rank's drain."""
        self._checkpointer.snapshotter.boost(False)
        progress = self._checkpointer.snapshotter.progress()
        add_progress(self.stats, progress)
        hung = progress.state is DrainState.HUNG
        self._recorder.drained(progress, hung=hung)
        self._costs = (progress.drain_seconds, self._blocked_seconds + progress.fault_seconds)
        if progress.state in (DrainState.FAILED, DrainState.HUNG):
            reason = self._fault or self._checkpointer.changed(progress) or _explain(progress.errno)
            if hung:
                reason = self._hang.reason()
            self._failure = progress.errno, reason
            self._warn(epoch.number, epoch.step, epoch.slot, reason)
        return Drained(progress.state is DrainState.COMPLETE, progress.drain_seconds, hung)

    def post(self, epoch: Epoch, complete: bool) -> None:
        """Tell all ranks what became of the epoch here."""
        drain, lost = self._costs
        cut = epoch.number, epoch.step, epoch.slot
        self._coordinator.commits.post(
            Share(*cut, complete, epoch.missed, epoch.hung, drain, lost, self._failure[0])
        )

    def _decided(self, epoch: Epoch, commit: Commit) -> Event:
        """Note what all ranks found out about the epoch."""
        if commit.complete:
            self.stats.complete += 1
            self.stats.last_complete = epoch.number
            self._complete_at = self._cut_at
            self._clock.measured(commit.drain_seconds, commit.lost_seconds, self._restart_seconds)
        else:
            self.stats.failed += 1
            if commit.errno in LOST:
                self._checkpointer.forget(epoch.slot)
        reason = "" if commit.complete else self._why_not(commit)
        failed = None if commit.complete else commit.failed
        self.last = Outcome(epoch.number, epoch.step, commit.complete, self._path(epoch.slot), reason, failed)
        self.newest = self.last if commit.complete else self.newest
        if commit.missed and self._coordinator.rank == 0:
            self._warn(epoch.number, epoch.step, epoch.slot, MISSED)
        if not commit.same_cut and commit.left is None:
            raise UsageError(
                f"Epoch {epoch.number} failed: rank {self._coordinator.rank} was cut for it at step {epoch.step}, and "
                f"another rank for another epoch or at another step. All ranks must take the same steps."
            )
        return Decided(commit.complete, commit.missed, commit.left, commit.hung)

    def _why_not(self, commit: Commit) -> str:
        """Say why an epoch failed, as far as this rank knows."""
        if commit.missed:
            return MISSED
        if commit.failed == self._coordinator.rank:
            reason = self._failure[1]
        elif commit.errno == errno.ECANCELED:
            reason = "the messages in flight to it were not known in time; that rank says which"
        else:
            reason = _explain(commit.errno) if commit.errno else "that rank says why"
        return f"Rank {commit.failed}: {reason}"

    def _path(self, slot: int) -> Path:
        return slot_path(self._checkpointer.directory, slot)

    def _warn(self, number: int, step: int, slot: int, reason: str) -> None:
        kept = self._protocol.newest_complete
        older = "No epoch is complete yet" if kept is None else f"Epoch {kept} stays"
        if self._failure[0] in LOST and self.newest is not None and not self.newest.path.exists():
            older = f"Epoch {self.newest.epoch} is gone with {self.newest.path.name}, too"
        path = self._path(slot)
        warn(
            f"Epoch {number} (step {step}) failed on rank {self._coordinator.rank}: {path}: {reason}. {older}, and the "
            f"program goes on."
        )

    def _warn_of_untracked_writes(self, progress: Progress) -> None:
        where = self._checkpointer.untracked(progress)
        if where is not None:
            warn(
                f"Rank {self._coordinator.rank}: {where} was written to by something that mpickpt cannot see, and the "
                f"epochs up to {progress.epoch} may lack that. The next one saves "
                f"everything. Find the writer (docs/limits.md), and use ckpt.writable() where it writes."
            )

    # -- the end -------------------------------------------------------------------------------------------------

    def end(self) -> Progress:
        """Tell of the last drain, at the end of the session."""
        progress = self._checkpointer.snapshotter.progress()
        self._warn_of_untracked_writes(progress)
        return progress

    def leave(self) -> None:
        """Wait for the drain that is under way here, and tell the other ranks of it."""
        epoch = self._protocol.epoch
        if epoch is None or epoch.posted:
            return
        self.boost()
        if self._channels_due:
            self._give_up("the session ended before all messages in flight were known")
        while not self._checkpointer.snapshotter.wait(INTERRUPT_SECONDS):
            self._hang.give_up(ending=False)
        drained = self._drained(epoch)
        epoch.hung = drained.hung
        self.post(epoch, drained.complete)

    def current_stats(self) -> Stats:
        """Sum up, with the drain that is under way."""
        stats, protocol = replace(self.stats), self._protocol
        if self.drains:
            add_progress(stats, self._checkpointer.snapshotter.progress())
        stats.rounds, stats.waits, stats.missed = protocol.rounds, protocol.waits, protocol.missed
        return stats


def add_progress(stats: Stats, progress: Progress) -> None:
    """Add what a drain did."""
    stats.drain_seconds += progress.drain_seconds
    stats.stall_seconds += progress.stall_seconds
    stats.fault_seconds += progress.fault_seconds
    stats.blocks_copied += progress.blocks_copied
    stats.bytes_written += progress.bytes_written
    stats.bytes_waiting += progress.bytes_waiting


def _explain(number: int) -> str:
    """Say what an errno of the snapshotter means."""
    if number == errno.ELOOP:
        return "somebody has put a symbolic link in its place, through which nothing is written"
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
    return os.strerror(number)


def _mappings() -> tuple[int, int] | None:
    """Count the process's memory mappings beside their limit, if it is used up."""
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    with Path("/proc/self/maps").open("rb", buffering=1 << 20) as maps:
        count = sum(1 for _ in maps)
    return (count, limit) if count >= 0.999 * limit else None
