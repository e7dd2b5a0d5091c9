"""Drives the protocol: what happens on this rank becomes events, at safe points and while the program waits.

`mpickpt.protocol` decides, and `mpickpt.session.performer` does as it says; the coordinator talks to the other ranks;
`mpickpt.session.epochs` cuts, and sees to the drain; `mpickpt.session.waits` waits. All of it is moved by the program
alone, at its safe points and inside the calls of ``ckpt.comm``: there is no thread of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from mpickpt.mpi import Coordinator, note_saved
from mpickpt.protocol import Blocked, Closing, Event, Protocol, Reached, Requested, Resumed
from mpickpt.protocol.policy import Clock
from mpickpt.report.recorder import Recorder
from mpickpt.restart.lazy import Loading
from mpickpt.session.archiver import Archiver
from mpickpt.session.checkpointer import Checkpointer
from mpickpt.session.epochs import Epochs
from mpickpt.session.hang import Hang
from mpickpt.session.idle import IdlePeriod
from mpickpt.session.outcome import Outcome, told_lost
from mpickpt.session.performer import Performer
from mpickpt.session.restoring import Restoring
from mpickpt.session.triggers import Triggers
from mpickpt.session.waits import Waits
from mpickpt.stats import Stats
from mpickpt.terminal import Bar, RunLine


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
        Requests of this rank.
    clock : Clock
        When to cut by time; all ranks keep it, and rank 0's counts.
    recorder : Recorder
        Takes notes of what happens.
    hang : Hang
        Knows whether the storage hangs.
    loading : Loading or None
        What a lazy restart still has to read and check.
    archiver : Archiver or None
        Archives epochs beside the program; None where none are wanted, and on all ranks but rank 0.
    line : RunLine or None
        Tells where the program is; None where nobody wants to know it, and on all ranks but rank 0.

    Attributes
    ----------
    next_step : int
        The next step whose safe point must not be passed without `fast_path` and `safe_point`.
    next_poll : float
        The next time, of `time.perf_counter`, at which any safe point should call them.
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
        hang: Hang,
        loading: Loading | None = None,
        archiver: Archiver | None = None,
        line: RunLine | None = None,
    ) -> None:
        self.next_step = 0
        self.next_poll = 0.0
        self._clock = clock
        self._hang = hang
        triggers.stalls = hang.stalls
        self._restoring = Restoring(coordinator, loading)
        self._epochs = Epochs(coordinator, checkpointer, protocol, clock, recorder, hang, self._restoring, archiver)
        self.stats = self._epochs.stats
        self._coordinator = coordinator
        self._checkpointer = checkpointer
        self._protocol = protocol
        self._triggers = triggers
        self._recorder = recorder
        self._line = line
        self._rounds = coordinator.rounds
        self._performer = Performer(coordinator, protocol, self._epochs, triggers, clock, checkpointer.directory)
        self._waits = Waits(coordinator, protocol, self._epochs, self._performer, self._next_event, self._handle)
        self._step = -1
        self._idle: IdlePeriod | None = None

    @property
    def storage_hung(self) -> bool:
        """Whether the storage of some rank hangs, as far as this one knows."""
        return self._protocol.storage_hung

    # -- safe points ---------------------------------------------------------------------------------------------

    def start(self, restored: int | None, restart_seconds: float) -> None:
        """Begin to keep time, at the first safe point.

        Parameters
        ----------
        restored : int or None
            The epoch that the run went back to.
        restart_seconds : float
            How long that took.
        """
        self._recorder.begin(restored, restart_seconds, *self._checkpointer.sizes)
        self._protocol.hold = self._checkpointer.traffic is None
        self._epochs.start(restart_seconds)

    def fast_path(self, step: int) -> bool:
        """Poll at the safe point of `step`: whether there is nothing to do; if so, find out when to poll again.

        If it is true, `safe_point` need not be called. It nearly always is, and runs after other work out of cold
        caches: each call that is made here, and each object that is touched, takes its time.
        """
        idle = self._idle
        if idle is None or step >= idle.end or self._triggers.asked:
            return False
        now = time.perf_counter()
        if now < self.next_poll - idle.seconds / 2:  # the steps have become twice as quick
            return False
        if now >= idle.until:
            if self._triggers.stirs(now):
                return False
            idle.until = self._triggers.due_at
        for test in idle.tests:
            if test():
                return False
        self._protocol.polled(step, now)
        self.next_step, self.next_poll = min(idle.end, step + idle.steps), now + idle.seconds
        if idle.drains:
            self._poll_drain(now)
        return True

    def safe_point(self, step: int) -> None:
        """Do what there is to do at the safe point of `step`, and find out when to come here again.

        Raises
        ------
        Stopped
            If the program is to end here.
        """
        now = time.perf_counter()
        cuts, self._step = self.stats.cuts, step
        self._handle(Reached(step, now))
        if self.stats.cuts == cuts:  # after a cut the program goes on at once: what has come can wait for the next poll
            self._poll(now)
        blocked = 0.0
        if self._protocol.blocked is not Blocked.NO:
            blocked = self._timed(lambda: self._waits.while_blocked(step, self._show))
        self._go_on(step, now, blocked)

    def _go_on(self, step: int, now: float, blocked: float) -> None:
        """Leave the safe point of `step`, and find out when to poll again; raise `Stopped` if the program is to end."""
        self._protocol.handle(Resumed(blocked=blocked))
        is_quiet = self._line is None and not self._restoring.is_running and not self._epochs.channels.are_awaited
        end, seconds = self._protocol.next_step, self._protocol.seconds_to_next_poll(quiet=is_quiet)
        steps = self._protocol.steps_to_next_poll(seconds)
        self.next_step, self.next_poll = min(end, step + steps), now + seconds
        if is_quiet and seconds > 0.0:
            tests = [*self._epochs.tests(), *self._rounds.tests()]
            self._idle = IdlePeriod(end, tests, self._triggers.due_at, seconds, steps, self._epochs.drains)
        self._stop_if_asked()

    def save(self, step: int) -> Outcome:
        """Make a checkpoint that records `step`, and wait until it is decided on all ranks; collective."""
        self._step, self._performer.saved = step, None
        try:
            self._handle(Reached(step, time.perf_counter(), save=True))
            blocked = self._timed(lambda: self._waits.save(step))
        except BaseException:
            self._protocol.handle(Resumed())  # which also ends the save
            raise
        self._go_on(step, time.perf_counter(), blocked)
        assert self._performer.saved is not None
        return self._performer.saved

    def wait(self, step: int) -> Outcome | None:
        """Wait inside `step` until the epoch in progress is decided; what became of it, or of the last one."""
        self._protocol.handle(Resumed(step))
        blocked = self._timed(lambda: self._waits.decide(step))
        self._protocol.handle(Resumed(step, blocked))
        self.next_step, self.next_poll = self._protocol.next_step, 0.0
        self._stop_if_asked()
        return self._epochs.last

    def request(self, *, stop: bool) -> None:
        """Ask for a cut in the name of the program; with `stop`, for the last one."""
        self._triggers.request(stop=stop)

    def idle(self, step: int = -1) -> None:
        """Take in what has come, inside `step`: a call of ``ckpt.comm`` waits."""
        if self._performer.is_busy:
            return
        self._protocol.handle(Resumed(step))
        self._poll(time.perf_counter())
        self.next_step = self._protocol.next_step
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._performer.stopped is not None:
            raise self._performer.stopped

    def _timed(self, wait: Callable[[], None]) -> float:
        """Wait, and count for how many seconds, which it returns: without the cut that may be made meanwhile."""
        since, blocked = time.perf_counter(), self.stats.blocked_seconds
        wait()
        seconds = time.perf_counter() - since - (self.stats.blocked_seconds - blocked)
        self.stats.waited_seconds += seconds
        self._recorder.waited(since, seconds)
        return seconds

    # -- polling -------------------------------------------------------------------------------------------------

    def _poll(self, now: float) -> None:
        """Take in all that has come, and see that the drain ends in time."""
        while (event := self._next_event(now)) is not None:
            self._handle(event)
        if self._restoring.is_running and self._restoring.poll(now, self._seconds_to_next_cut(now)):
            self._triggers.request(stop=False)  # all ranks meet at a cut, and are told there
        if self._epochs.drains:
            self._poll_drain(now)
        self._show(now)

    def _poll_drain(self, now: float) -> None:
        self._epochs.poll_drain(now, self._seconds_to_next_cut(now))
        self._hang.tell()

    def _seconds_to_next_cut(self, now: float) -> float:
        """Estimate how long it is to the next cut."""
        return min(self._protocol.seconds_to_next_cut(), self._clock.seconds_left(now))

    def _show(self, now: float) -> None:
        """Update the line that shows where the program is, if it is time."""
        decided = self.stats.complete + self.stats.failed
        if self._line is not None and self._step >= 0 and self._line.due(now, decided):
            self._line.show(self._epochs.state(self._step, now), now, decided)

    def _end_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    def _handle(self, event: Event) -> None:
        """Take in an event, which ends the idle period."""
        self._idle = None
        self._performer.handle(event)

    def tell_taken_signals(self) -> None:
        """Warn once of signals whose handlers are not the session's any more."""
        self._performer.tell_taken_signals()

    def _next_event(self, now: float) -> Event | None:
        """Return what happened next, if anything did."""
        request = self._triggers.take(now)
        if request is not None:
            return Requested(request)
        return self._epochs.next_event() or self._rounds.next_event()

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait until the last epoch is decided and all ranks have come here; collective."""
        closing = time.perf_counter()
        self._end_line()
        self._restoring.finish()
        self._performer.closing = True
        self._triggers.close(stopped=self._performer.stopped is not None)
        epoch = self._protocol.epoch
        shown = epoch is not None and self._coordinator.rank == 0
        with Bar(f"saving epoch {epoch.number if epoch else 0} before the end", shown) as bar:
            self._handle(Closing())
            self._waits.while_blocked(self._step, lambda _: bar.update(*self._checkpointer.saved()))
        self._tell_lost()
        self._recorder.end(closing, self.stats, self._epochs.end(), by_itself=False)

    def _tell_lost(self) -> None:
        """Say at the end if the last epoch failed, so that what is saved is older; who was stopped knows it already."""
        last, newest = self._epochs.last, self._epochs.newest
        if self._coordinator.rank == 0 and self._performer.stopped is None and last is not None and not last:
            text = told_lost(last, newest, self._protocol.newest_complete, self._checkpointer.directory)
            print(f"mpickpt: {text}", file=sys.stderr, flush=True)

    def leave(self) -> None:
        """End on this rank alone: its drain is waited for, no other rank is."""
        closing = time.perf_counter()
        self._end_line()
        self._triggers.close()
        self._idle = None
        self._epochs.leave()
        if not self._coordinator.is_lost:
            self._performer.leave()
        self._coordinator.commits.post_leaving()
        self._recorder.end(closing, self.stats, self._checkpointer.progress(), by_itself=True)

    def end(self) -> None:
        """Listen to no more requests."""
        self._triggers.close()
        if self.stats.complete:
            note_saved()

    def defer(self) -> None:
        """Leave requests to the next session, as a rank is lost."""
        if self._protocol.is_last:  # also where the rank is lost that was asked
            self._triggers.request(stop=True)
        self._triggers.defer()

    def disown(self) -> None:
        """Listen to nothing in a child process made by fork."""
        self._triggers.disown()

    def tell_hung_end(self) -> None:
        """Tell that the session has ended while the storage hung."""
        self._hang.session_ended()

    def current_stats(self) -> Stats:
        """Sum up, with the drain that is in progress."""
        return self._epochs.current_stats()
