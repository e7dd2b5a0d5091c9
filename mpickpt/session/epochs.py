"""One rank's epochs, one after another: each is cut, drained, joined by its messages, and decided on all ranks.

`mpickpt.session.driver` says when; nothing here decides, and nothing here waits but for what all ranks do together.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from mpickpt.errors import StoreError, UsageError, warn
from mpickpt.mpi import STORAGE, Commit, Coordinator
from mpickpt.protocol import Decided, Drained, Epoch, Event, Post, Protocol, Refused
from mpickpt.protocol.policy import Clock, should_boost
from mpickpt.report.recorder import Recorder
from mpickpt.session.archiver import Archiver
from mpickpt.session.channels import Channels
from mpickpt.session.checkpointer import Checkpointer
from mpickpt.session.epoch import InProgress
from mpickpt.session.failures import LOST, MISSED, SKIPPED, explain, told_other_cut, told_untracked, what_stays, why_not
from mpickpt.session.following import Following
from mpickpt.session.hang import Hang
from mpickpt.session.outcome import Outcome
from mpickpt.session.restoring import Restoring
from mpickpt.snapshot import DrainState, Progress
from mpickpt.stats import Stats
from mpickpt.terminal import RunState

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
        Is asked which epoch is in progress, and which is the newest complete one.
    clock : Clock
        Is told of each cut, and of what epochs cost.
    recorder : Recorder
        Takes notes of what happens.
    hang : Hang
        Knows whether the storage hangs.
    restoring : Restoring
        A lazy restart: there is no cut before it is done.
    archiver : Archiver or None
        Archives epochs beside the program; None on all ranks but rank 0, and where no archives are wanted.

    Attributes
    ----------
    restoring : Restoring
        A lazy restart, if there is one.
    stats : Stats
        What it cost so far.
    channels : Channels
        Sees to the messages in flight.
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
        restoring: Restoring,
        archiver: Archiver | None = None,
    ) -> None:
        self.restoring = restoring
        self.stats = Stats()
        self.channels = Channels(checkpointer)
        self._following = Following(checkpointer)
        self.last: Outcome | None = None
        self.newest: Outcome | None = None
        self._coordinator = coordinator
        self._checkpointer = checkpointer
        self._protocol = protocol
        self._clock = clock
        self._recorder = recorder
        self._hang = hang
        self._archiver = archiver
        self._current: InProgress | None = None  # or the last one, once it is decided
        self._complete_at = 0.0  # the cut of the newest complete epoch
        self._restart_seconds = 0.0

    def start(self, restart_seconds: float) -> None:
        """Begin to keep time; reading the checkpoint took `restart_seconds`."""
        self._restart_seconds = restart_seconds
        if self._checkpointer.traffic is not None:
            self.restoring.finish()  # a rank that waits for others at its first cut might keep a message from them
        self.restoring.start()
        self._clock.start(time.perf_counter())  # as if the epoch that was restored had been cut now

    # -- the cut -------------------------------------------------------------------------------------------------

    def begin(self, epoch: Epoch) -> InProgress:
        """Begin with `epoch`, in the place of the last one, which is decided."""
        self._current = InProgress(epoch, time.perf_counter())
        return self._current

    def prepare(self) -> Refused | None:
        """Do what all ranks do together before a cut, if there is anything of that kind."""
        epoch = self._present.epoch
        if self._checkpointer.layout_changed:
            self._checkpointer.fix_layout(epoch.step)
        try:
            self._checkpointer.slots.provide(epoch.slot, epoch.step)
        except StoreError as error:
            self.stats.failed += 1
            self.last = Outcome(epoch.number, epoch.step, False, self._path(epoch), str(error))
            if self._coordinator.rank == 0:
                warn(f"Epoch {epoch.number} (step {epoch.step}) failed: {error}")
            return Refused()
        return None

    def cut(self) -> Drained | None:
        """Fix the image of this rank for the epoch that was begun and prepared; it is drained in the background.

        What the storage refuses makes a warning and a failed epoch; what the program did wrong raises.
        """
        current = self._present
        self._checkpointer.regions.check_bindings()
        before = self._checkpointer.progress()
        self._warn_of_untracked_writes(before)
        self._hang.begin(current.epoch.slot)
        self.channels.begin(current)
        self._following.begin(current)
        try:
            self._checkpointer.cut(current.epoch)
        except OSError as error:
            if self.is_cut(current.epoch):
                raise
            current.fail(error.errno or 0, error.strerror or str(error))
            self._warn(current)
            return Drained(False)
        current.blocked_seconds = time.perf_counter() - current.began
        self.stats.cuts += 1
        self.stats.blocked_seconds += current.blocked_seconds
        self._recorder.cut(current.epoch, current.began, current.blocked_seconds, before)
        self._following.cut(current)
        return None

    def is_cut(self, epoch: Epoch) -> bool:
        """Whether the image of `epoch` is fixed, whatever was raised since."""
        return self._checkpointer.progress().epoch == epoch.number

    def miss(self, epoch: Epoch) -> Event:
        """Do what the others did at the cut, without making one."""
        current = self.begin(epoch)
        self.restoring.finish()
        refused = self.prepare()
        if refused is not None:
            return refused
        current.fail(0, MISSED)
        self.channels.cut(epoch.number)
        return Drained(False)

    def skip(self, epoch: Epoch) -> Drained:
        """Let a cut go by, as all ranks do, and find out whether the storage of this one still hangs."""
        hung = self._hang.skips(epoch.number, epoch.step)
        self.begin(epoch).fail(*((errno.ETIMEDOUT, self._hang.reason()) if hung else (0, SKIPPED)))
        return Drained(False, hung=hung)

    @property
    def meets_at_next_cut(self) -> bool:
        """Whether the next cut is a collective one, at which all ranks meet: arrays were added or dropped."""
        return self._checkpointer.layout_changed

    @property
    def _present(self) -> InProgress:
        assert self._current is not None
        return self._current

    # -- the drain -----------------------------------------------------------------------------------------------

    @property
    def drains(self) -> bool:
        """Whether an epoch is in progress whose drain has not ended here."""
        return self._protocol.epoch is not None and not self._protocol.posted

    def poll_drain(self, now: float, remaining: float) -> None:
        """See that the drain in progress ends in the `remaining` seconds to the next cut."""
        if should_boost(self._checkpointer.saved_share(), now - self._present.began, remaining):
            self.boost()

    def boost(self) -> None:
        """Let threads of normal priority drain, until the drain has ended."""
        self._checkpointer.boost(True)

    def give_up_if_hung(self, *, ending: bool) -> None:
        """Give up the epoch that this rank waits for if the storage hangs; later at the end of a program."""
        if self.drains:
            self._hang.give_up(ending=ending or self._protocol.is_last)

    def storage(self) -> str | None:
        """Say what this rank waits for, if that is its own storage."""
        epoch = self._protocol.epoch
        if epoch is None or self._protocol.posted or self.channels.are_awaited:
            return None
        does = "in which rank 0 creates a slot for" if self._present.awaits_slot else "which saves"
        return f"{STORAGE}{does} epoch {epoch.number} (cut at step {epoch.step}) in {self._hang.path}"

    def state(self, step: int, now: float) -> RunState:
        """Return where the program is, being at `step`."""
        age = now - self._complete_at if self.stats.complete else None
        return _run_state(self._protocol, self._checkpointer, step, age)

    # -- how it ended --------------------------------------------------------------------------------------------

    def tests(self) -> list[Callable[[], bool]]:
        """Return what to call to learn whether `next_event` has something to return; the same until then."""
        tests = self._checkpointer.slots.tests()
        if self._protocol.epoch is not None:
            posted = self._protocol.posted
            tests += self._coordinator.commits.tests() if posted else [partial(self._checkpointer.wait, 0)]
        return tests

    def next_event(self) -> Event | None:
        """Return what became of the epoch in progress, if that is known by now; helps messages in flight along."""
        self.channels.advance()
        self._following.advance(self._current if self.drains else None)
        if self._protocol.epoch is None:
            return None
        if not self._protocol.posted:
            return self._drained() if self._checkpointer.wait(0) else None
        commit = self._coordinator.commits.next()
        return None if commit is None else self._decided(commit)

    def _drained(self) -> Drained:
        """Note what became of this rank's drain."""
        current = self._present
        self._checkpointer.boost(False)
        progress = self._checkpointer.progress()
        add_progress(self.stats, progress)
        hung = progress.state is DrainState.HUNG
        self._recorder.drained(progress, hung=hung)
        current.drained(progress)
        if progress.state in (DrainState.FAILED, DrainState.HUNG):
            path = self._path(current.epoch)
            reason = current.lacks or self._checkpointer.changed(progress) or explain(progress.errno, path)
            current.fail(progress.errno, self._hang.reason() if hung else reason)
            self._warn(current)
        is_saved = progress.state is DrainState.COMPLETE and progress.epoch == current.epoch.number
        return Drained(is_saved, progress.drain_seconds, hung)

    def post(self, post: Post) -> None:
        """Tell all ranks what became of the epoch here."""
        pinned = None if self._archiver is None else self._archiver.pinned()
        self._coordinator.commits.post(self._present.share(post, pinned))

    def _decided(self, commit: Commit) -> Event:
        """Note what all ranks found out about the epoch."""
        current, rank = self._present, self._coordinator.rank
        epoch = current.epoch
        if commit.complete:
            self.stats.complete += 1
            self.stats.last_complete = epoch.number
            self._complete_at = current.began
            self._clock.measured(commit.drain_seconds, commit.lost_seconds, self._restart_seconds)
            if self._archiver is not None:
                self._archiver.complete(epoch, self._path(epoch))
        else:
            self.stats.failed += 1
            if commit.errno in LOST:
                self._checkpointer.slots.forget(epoch.slot)
        reason = "" if commit.complete else why_not(commit, rank, current.reason)
        self.last = Outcome(epoch.number, epoch.step, commit.complete, self._path(epoch), reason, commit.failed)
        self.newest = self.last if commit.complete else self.newest
        if commit.missed and rank == 0:
            current.fail(current.errno, MISSED)
            self._warn(current)
        if not commit.same_cut and commit.departed is None:
            raise UsageError(told_other_cut(epoch, rank))
        return Decided(commit.complete, commit.missed, commit.departed, commit.hung, commit.pinned)

    def _path(self, epoch: Epoch) -> Path:
        return self._checkpointer.slots.path(epoch.slot)

    def _warn(self, failed: InProgress) -> None:
        """Warn of an epoch that fails on this rank, and say which one stays."""
        epoch, kept = failed.epoch, self._protocol.newest_complete
        stays = what_stays(failed.errno, kept, self.newest)
        warn(
            f"Epoch {epoch.number} (step {epoch.step}) failed on rank {self._coordinator.rank}: {self._path(epoch)}: "
            f"{failed.reason.rstrip('.')}. {stays}, and the program goes on."
        )

    def _warn_of_untracked_writes(self, progress: Progress) -> None:
        where = self._checkpointer.untracked(progress)
        if where is not None:
            warn(told_untracked(self._coordinator.rank, where, progress.epoch))

    # -- the end -------------------------------------------------------------------------------------------------

    def end(self) -> Progress:
        """Report the last drain, at the end of the session."""
        progress = self._checkpointer.progress()
        self._warn_of_untracked_writes(progress)
        return progress

    def leave(self) -> None:
        """Wait for the drain that is in progress here, and tell the other ranks of it."""
        if not self.drains:
            return
        self.boost()
        self.channels.give_up("the session ended before all messages in flight were known")
        self._following.leave(self._present)
        while not self._checkpointer.wait(INTERRUPT_SECONDS):
            self._hang.give_up(ending=False)
        drained = self._drained()
        self.post(Post(self._present.epoch, drained.complete, hung=drained.hung))

    def current_stats(self) -> Stats:
        """Sum up, with the drain that is in progress."""
        stats, protocol = replace(self.stats), self._protocol
        if self.drains:
            add_progress(stats, self._checkpointer.progress())
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


def _run_state(protocol: Protocol, checkpointer: Checkpointer, step: int, age: float | None) -> RunState:
    """Return where the program is, being at `step`; the newest complete epoch is `age` seconds old, if it is known."""
    epoch, complete, creating = protocol.epoch, protocol.newest_complete, checkpointer.slots.share
    if epoch is None:
        return RunState(step, complete=complete, age=age, creating=creating)
    # What commits an epoch comes last, so that a drain in progress is never all of it.
    share = 1.0 if protocol.posted else min(checkpointer.saved_share(), 0.99)
    return RunState(step, epoch.number, share, complete, age, creating)
