"""Drives the protocol: what happens on this rank becomes events, and its instructions are carried out.

`mpickpt.protocol` decides; the coordinator talks to the other ranks; the checkpointer cuts and drains. All of it is
moved by the program alone, at its safe points and inside the calls of ``ckpt.comm``: there is no thread of its own.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from mpickpt.checkpointer import Checkpointer
from mpickpt.coordinator import Commit, Coordinator, Share, abort
from mpickpt.errors import EpochError, MpickptError, Stopped, StoreError, UsageError
from mpickpt.lazy import Loading
from mpickpt.policy import Clock, should_hurry
from mpickpt.progress import Bar, RunLine, RunState
from mpickpt.protocol import (
    PATIENCE,
    STOP_PATIENCES,
    Abandon,
    Announce,
    AnnounceEnd,
    Asked,
    Closing,
    Cut,
    Drained,
    Epoch,
    Event,
    GaveUp,
    Hurry,
    Instruction,
    Left,
    Marked,
    Miss,
    PassOn,
    PassOnLeft,
    Post,
    Propose,
    Protocol,
    Reached,
    Refused,
    SayBelowClosed,
    Settled,
    Stand,
    Stop,
)
from mpickpt.recorder import Recorder
from mpickpt.snapshot import DrainState, Progress
from mpickpt.stats import Stats
from mpickpt.store import slot_path
from mpickpt.triggers import Triggers

if TYPE_CHECKING:
    from mpickpt.coordinator import Traffic

LOOK_SECONDS = 0.002  # between two looks at safe points: often enough to answer in time, rare enough to cost nothing
GLANCE_SECONDS = 0.1  # a wait for the drain returns to Python so often, for Ctrl-C
MISSED = "a rank had to go on before it knew the step of the cut; it is tried again"


class Driver:
    """One rank's protocol at work.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    checkpointer : Checkpointer
        Cuts and drains.
    protocol : Protocol
        Decides.
    triggers : Triggers
        Wishes of this rank.
    clock : Clock
        When to cut by time; all ranks keep it, and rank 0's counts.
    recorder : Recorder
        Takes notes of what happens.
    loading : Loading or None
        What a lazy restart has still to read and check; there is no cut before it is done.
    line : RunLine or None
        Tells where the program is; None where nobody wants to know it, and on all ranks but rank 0.

    Attributes
    ----------
    next_step : int
        The next step whose safe point must not be passed without `safe_point`.
    next_look : float
        The next time, of `time.perf_counter`, at which any safe point should call it.
    stopped : Stopped or None
        What ends the program, once it was asked to stop.
    stats : Stats
        What it cost so far.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        checkpointer: Checkpointer,
        protocol: Protocol,
        triggers: Triggers,
        clock: Clock,
        recorder: Recorder,
        loading: Loading | None = None,
        line: RunLine | None = None,
    ) -> None:
        self.next_step = 0
        self.next_look = 0.0
        self.stopped: Stopped | None = None
        self.stats = Stats()
        self.clock = clock
        self._coordinator = coordinator
        self._checkpointer = checkpointer
        self._protocol = protocol
        self._triggers = triggers
        self._recorder = recorder
        self._loading = loading
        self._line = line
        self._rounds = coordinator.rounds
        self._todo: deque[Instruction] = deque()
        self._step = -1
        self._closing = False
        self._cut_at = self._whole_at = 0.0  # the last cut, and that of the newest whole epoch
        self._blocked_seconds = 0.0
        self._costs = (0.0, 0.0)  # of the last epoch: seconds of its drain, and lost to the program
        self._restart_seconds = 0.0
        self._channels_due = False
        self._fault: str | None = None  # why the epoch fails on this rank, if it is not the storage
        self._in_hand = False  # events are being handled: nothing else may be

    # -- safe points ---------------------------------------------------------------------------------------------

    def start(self, restart_seconds: float) -> None:
        """Begin to keep time, at the first safe point; reading the checkpoint took `restart_seconds`."""
        self._protocol.hold = self._checkpointer.traffic is None
        self._restart_seconds = restart_seconds
        if self._checkpointer.traffic is not None:
            self._finish_loading()  # a rank that waits for others at its first cut might keep a message from them
        self._cut_at = time.perf_counter()  # as if the epoch that was restored had been cut now
        self.clock.start(self._cut_at)

    def safe_point(self, step: int) -> None:
        """Do what there is to do at the safe point of `step`.

        Raises
        ------
        Stopped
            If the program is to end here.
        """
        now = time.perf_counter()
        cuts, self._step = self.stats.cuts, step
        self._handle(Reached(step, now))
        if self.stats.cuts == cuts:  # after a cut the program goes on at once: what has come can wait for the next look
            self._look(now)
        if self._protocol.stands is not Stand.NO:
            self._wait()
        self._protocol.handle(Left())
        self.next_step = self._protocol.next_step
        self.next_look = now + LOOK_SECONDS
        if self.stopped is not None:
            raise self.stopped

    def idle(self, step: int = -1) -> None:
        """Take in what has come, in the midst of `step`: a call of ``ckpt.comm`` waits."""
        if self._in_hand:
            return
        self._protocol.handle(Left(step))
        self._look(time.perf_counter())
        self.next_step = self._protocol.next_step
        if self.stopped is not None:
            raise self.stopped

    def _look(self, now: float) -> None:
        """Take in all that has come, and see that the drain ends in time."""
        while (event := self._next_event(now)) is not None:
            self._handle(event)
        epoch = self._protocol.epoch
        left = min(self._protocol.seconds_to_next_cut(), self.clock.seconds_left(now))
        if self._loading is not None and self._loading.look(now - self._cut_at, left):
            self._triggers.request(stop=False)  # all ranks meet at a cut, and are told there
        if epoch is not None and not epoch.posted:
            saved, due = self._checkpointer.snapshotter.saved()
            if should_hurry(saved / max(1, due), now - self._cut_at, left):
                self._checkpointer.snapshotter.hurry(True)
        if self._line is not None:
            self._tell(self._line, now)

    # -- where the program is ------------------------------------------------------------------------------------

    def _tell(self, line: RunLine, now: float) -> None:
        """Bring the line up to date, if it is time."""
        settled = self.stats.whole + self.stats.failed
        if self._step < 0 or not line.due(now, settled):
            return
        epoch, whole = self._protocol.epoch, self._protocol.newest_whole
        age = now - self._whole_at if self.stats.whole else None
        if epoch is None:
            state = RunState(self._step, whole=whole, age=age)
        else:
            saved, due = self._checkpointer.snapshotter.saved()
            share = 1.0 if epoch.posted else min(saved / max(1, due), 0.99)  # what commits it comes last
            state = RunState(self._step, epoch.number, share, whole, age)
        line.show(state, now, settled)

    def _end_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    # -- standing still ------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Stand still at a safe point, and count for how long: without the cut that may be made meanwhile."""
        since, blocked = time.perf_counter(), self.stats.blocked_seconds
        self._stand()
        seconds = time.perf_counter() - since - (self.stats.blocked_seconds - blocked)
        self.stats.waited_seconds += seconds
        self._recorder.waited(since, seconds)

    def _stand(self, bar: Bar | None = None) -> None:
        """Stay here, taking in what comes, as long as the protocol wants it."""

        def look() -> Event | None:
            now = time.perf_counter()
            if bar is not None:
                bar.update(*self._checkpointer.saved())
            elif self._line is not None:
                self._tell(self._line, now)
            return self._next_event(now)

        since = time.perf_counter()
        while (stand := self._protocol.stands) is not Stand.NO:
            if self.stopped is not None and not self._closing:
                return
            drains = self._protocol.epoch is not None and not self._protocol.epoch.posted
            seconds: float | None = None
            if drains:
                self._checkpointer.snapshotter.hurry(True)
                self._give_up_late_messages(time.perf_counter() - since)
                seconds = GLANCE_SECONDS
            elif stand is Stand.LIMITED and not self._checkpointer.layout_changed:
                seconds = max(0.0, since + self._protocol.patience - time.perf_counter())
            elif self.stopped is not None:
                seconds = STOP_PATIENCES * self._protocol.patience
            event = self._coordinator.wait(look, self._what(), seconds)
            if event is None and drains:
                continue
            if event is None and self.stopped is not None:
                self._end_the_hard_way(self.stopped)
            if event is None or isinstance(event, Drained):
                since = time.perf_counter()
            if event is None:
                event = GaveUp()
            self._handle(event)

    def _what(self) -> str:
        """Say what this rank stands still for."""
        epoch = self._protocol.epoch
        if epoch is not None:
            what = f"all ranks to finish epoch {epoch.number} (cut at step {epoch.step})"
        elif self._closing:
            what = "all ranks to close the session"
        else:
            what = "all ranks to say at which step to cut next"
        return f"{what}, being at step {self._step} itself"

    def _end_the_hard_way(self, stopped: Stopped) -> None:
        print(f"mpickpt: rank {self._coordinator.rank} ends all ranks: some do not come to their end", file=sys.stderr)
        sys.stderr.flush()
        abort(stopped.exit_code)

    # -- events --------------------------------------------------------------------------------------------------

    def _next_event(self, now: float) -> Event | None:
        """Give what happened next, if anything did."""
        wish = self._triggers.take(now)
        if wish is not None:
            return Asked(wish)
        epoch, traffic = self._protocol.epoch, self._checkpointer.traffic
        if traffic is not None:
            self._move(traffic)
        if epoch is not None:
            if epoch.posted:
                commit = self._coordinator.next_commit()
                if commit is not None:
                    return self._settled(epoch, commit)
            elif self._checkpointer.snapshotter.wait(0):
                return self._drained(epoch)
        return self._rounds.next_event()

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

    def _give_up_late_messages(self, stood: float) -> None:
        """Standing still for its own drain, a rank receives nothing: messages that are not here will not come."""
        traffic = self._checkpointer.traffic
        if traffic is None:
            return
        self._move(traffic)  # the last tracked call may have brought all that is needed
        if self._channels_due and (not traffic.exchanging or stood > PATIENCE):
            self._give_up(f"{traffic.missing()} The next cut cannot wait for them")

    def _drained(self, epoch: Epoch) -> Drained:
        """Note what became of this rank's drain."""
        self._checkpointer.snapshotter.hurry(False)
        progress = self._checkpointer.snapshotter.progress()
        add_progress(self.stats, progress)
        self._recorder.drained(progress)
        self._costs = (progress.drain_seconds, self._blocked_seconds + progress.fault_seconds)
        if progress.state is DrainState.FAILED:
            self._warn(epoch.number, epoch.step, epoch.slot, self._fault or _explain(progress.errno))
        return Drained(progress.state is DrainState.COMPLETE, progress.drain_seconds)

    def _settled(self, epoch: Epoch, commit: Commit) -> Event:
        """Note what all ranks found out about the epoch."""
        if commit.whole:
            self.stats.whole += 1
            self.stats.last_whole = epoch.number
            self._whole_at = self._cut_at
            self.clock.measured(commit.drain_seconds, commit.lost_seconds, self._restart_seconds)
        else:
            self.stats.failed += 1
        if commit.missed and self._coordinator.rank == 0:
            self._warn(epoch.number, epoch.step, epoch.slot, MISSED)
        if not commit.same_cut and commit.left is None:
            raise UsageError(
                f"Epoch {epoch.number} failed: rank {self._coordinator.rank} was cut for it at step {epoch.step}, and "
                f"another rank for another epoch or at another step. All ranks must take the same steps."
            )
        return Settled(commit.whole, commit.missed, commit.left)

    # -- instructions --------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        """Hand an event to the protocol and do as it says."""
        self._todo.extendleft(reversed(self._protocol.handle(event)))
        self._in_hand = True
        try:
            while self._todo:
                outcome = self._carry_out(self._todo.popleft())
                if outcome is not None:
                    self._todo.extendleft(reversed(self._protocol.handle(outcome)))
        finally:
            self._in_hand = False

    def _carry_out(self, instruction: Instruction) -> Event | None:
        match instruction:
            case PassOn(rounds, stop):
                self._rounds.pass_on(rounds, stop=stop)
            case Announce(stop):
                self._rounds.announce(stop=stop)
                return Marked(stop, time.perf_counter())
            case Propose(step):
                self._rounds.propose(step)
            case Cut(number, step, slot):
                return self._cut(number, step, slot)
            case Miss(number, step, slot):
                return self._miss(number, step, slot)
            case Post(epoch, complete):
                self._post(epoch, complete)
            case Hurry():
                self._checkpointer.snapshotter.hurry(True)
            case Stop(whole):
                self.stopped = self._stopped(whole)
            case Abandon(left):
                self._todo.clear()
                raise EpochError(
                    f"Rank {self._coordinator.rank}: no epoch can become whole any more, because rank {left} left the "
                    f"session by an exception. See what that rank says."
                )
            case SayBelowClosed():
                self._rounds.say_closed()
            case PassOnLeft(rank):
                self._rounds.pass_on_left(rank)
            case AnnounceEnd(left):
                self._rounds.announce_end(left)
        return None

    def _cut(self, number: int, step: int, slot: int) -> Event | None:
        """Fix the image of this rank for a new epoch; it is drained in the background.

        What the storage refuses makes a warning and a failed epoch; what the program did wrong raises.
        """
        self._finish_loading()
        began = time.perf_counter()
        self.clock.start(began)
        refused = self._refused(number, step, slot)
        if refused is not None:
            return refused
        before = self._checkpointer.snapshotter.progress()
        self._warn_of_unseen_writes(before)
        self._cut_at, self._costs = began, (0.0, 0.0)
        self._channels_due, self._fault = self._checkpointer.traffic is not None, None
        try:
            self._checkpointer.arm(number, step, slot)
        except BaseException as error:
            if self._checkpointer.snapshotter.progress().epoch == number:
                raise  # an interrupt just after the cut
            if isinstance(error, OSError):
                self._warn(number, step, slot, error.strerror or str(error))
                return Drained(False)
            self._todo.extendleft(reversed(self._protocol.handle(Drained(False))))
            self._carry_out(self._todo.popleft())  # tells the others
            raise
        self._blocked_seconds = time.perf_counter() - began
        self.stats.cuts += 1
        self.stats.blocked_seconds += self._blocked_seconds
        self._recorder.cut(number, step, slot, began, self._blocked_seconds, before)
        return None

    def _finish_loading(self) -> None:
        """Have the arrays of all ranks in memory of their own, and sound, before any slot is written to.

        Collective, once. One rank's word is not enough: if another one's arrays are damaged, the older epoch is needed,
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

    def _miss(self, number: int, step: int, slot: int) -> Event:
        """Do what the others did at the cut, without making one."""
        self._finish_loading()
        refused = self._refused(number, step, slot)
        if refused is None and self._checkpointer.traffic is not None:
            self._checkpointer.traffic.cut(number)
        return refused or Drained(False)

    def _refused(self, number: int, step: int, slot: int) -> Event | None:
        """Do what all ranks do together before a cut, if there is anything of that kind."""
        if self._checkpointer.layout_changed:
            self._checkpointer.fix_layout(step)
        try:
            self._checkpointer.provide(slot, step)
        except StoreError as error:
            self.stats.failed += 1
            if self._coordinator.rank == 0:
                warnings.warn(f"Epoch {number} (step {step}) failed: {error}", RuntimeWarning, stacklevel=7)
            return Refused()
        return None

    def _post(self, epoch: Epoch, complete: bool) -> None:
        drain, lost = self._costs
        self._coordinator.post_commit(
            Share(epoch.number, epoch.step, epoch.slot, complete, epoch.missed, drain, lost)
        )

    def _stopped(self, whole: bool) -> Stopped:
        directory = self._checkpointer.directory
        newest = self._protocol.newest_whole
        if whole:
            text = f"mpickpt: stopped as asked, after epoch {newest} of {directory} was whole; the same command goes on"
        elif newest is None:
            text = f"mpickpt: stopped as asked, but no epoch in {directory} could be made whole"
        else:
            text = f"mpickpt: stopped as asked; no new epoch could be made whole, epoch {newest} of {directory} stays"
        if self._coordinator.rank == 0 and not self._closing:  # otherwise it has come to its end by itself
            print(text, file=sys.stderr, flush=True)
        return Stopped(newest)

    def _warn(self, number: int, step: int, slot: int, reason: str) -> None:
        kept = self._protocol.newest_whole
        older = "No epoch is whole yet" if kept is None else f"Epoch {kept} stays"
        path = slot_path(self._checkpointer.directory, slot)
        warnings.warn(
            f"Epoch {number} (step {step}) failed on rank {self._coordinator.rank}: {path}: {reason}. {older}, and the "
            f"program goes on.",
            RuntimeWarning,
            stacklevel=7,
        )

    def _warn_of_unseen_writes(self, progress: Progress) -> None:
        where = self._checkpointer.unseen(progress)
        if where is not None:
            warnings.warn(
                f"Rank {self._coordinator.rank}: {where} was written to by something that mpickpt cannot see, and the "
                f"epochs up to {progress.epoch} may lack that. The next one saves "
                f"everything. Find the writer (docs/limits.md), and use ckpt.writable() where it writes.",
                RuntimeWarning,
                stacklevel=7,
            )

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait until the last epoch is settled and all ranks have come here; collective."""
        closing = time.perf_counter()
        self._end_line()
        self._finish_loading()
        self._closing = True
        self._triggers.close(stopped=self.stopped is not None)
        epoch = self._protocol.epoch
        shown = epoch is not None and self._coordinator.rank == 0
        with Bar(f"saving epoch {epoch.number if epoch else 0} before the end", shown) as bar:
            self._handle(Closing())
            self._stand(bar)
        progress = self._checkpointer.snapshotter.progress()
        self._warn_of_unseen_writes(progress)
        self._recorder.end(closing, self.stats, progress, by_itself=False)

    def leave(self) -> None:
        """End on this rank alone: its drain is waited for, no other rank is."""
        closing = time.perf_counter()
        self._end_line()
        self._triggers.close()
        epoch = self._protocol.epoch
        self._todo.clear()
        if epoch is not None and not epoch.posted:
            snapshotter = self._checkpointer.snapshotter
            snapshotter.hurry(True)
            if self._channels_due:
                self._give_up("the session ended before all messages in flight were known")
            while not snapshotter.wait(GLANCE_SECONDS):
                pass
            self._post(epoch, self._drained(epoch).complete)
        if not self._protocol.over:
            for instruction in self._protocol.leave():
                self._carry_out(instruction)
        self._coordinator.post_leaving()
        self._recorder.end(closing, self.stats, self._checkpointer.snapshotter.progress(), by_itself=True)

    def current_stats(self) -> Stats:
        """Sum up, with the drain that is under way."""
        stats = replace(self.stats)
        if self._protocol.epoch is not None and not self._protocol.epoch.posted:
            add_progress(stats, self._checkpointer.snapshotter.progress())
        protocol = self._protocol
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
    if number == errno.ESTALE:
        return (
            "the slot is not as this rank left it, so something else has written to it or put another file in its "
            "place; nothing was written to it, and the next epoch there saves everything"
        )
    return os.strerror(number)
