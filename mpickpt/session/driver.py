"""Drives the protocol: what happens on this rank becomes events, and its instructions are carried out.

`mpickpt.protocol` decides; the coordinator talks to the other ranks; `mpickpt.session.epoch` cuts, and sees to the
drain. All of it is moved by the program alone, at its safe points and inside the calls of ``ckpt.comm``: there is no
thread of its own.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mpickpt.errors import EpochError, Stopped, warn
from mpickpt.mpi import Coordinator, abort
from mpickpt.protocol import (
    STOP_PATIENCES,
    Abandon,
    Announce,
    AnnounceEnd,
    Blocked,
    Boost,
    Closing,
    Cut,
    Drained,
    EndSave,
    Event,
    Forward,
    ForwardDeparture,
    GaveUp,
    Instruction,
    Left,
    Marked,
    Miss,
    Post,
    Propose,
    Protocol,
    Reached,
    Requested,
    SayBelowClosed,
    Skip,
    Stop,
)
from mpickpt.protocol.policy import Clock
from mpickpt.report.recorder import Recorder
from mpickpt.restart.lazy import Loading
from mpickpt.session.epoch import INTERRUPT_SECONDS, Epochs
from mpickpt.session.hang import Hang
from mpickpt.session.outcome import Outcome, told_lost
from mpickpt.session.regions import Checkpointer
from mpickpt.session.saving import Saver
from mpickpt.session.triggers import Triggers
from mpickpt.signals.takeover import Handlers
from mpickpt.stats import Stats
from mpickpt.terminal import Bar, RunLine
from mpickpt.waiting import Stopwatch


@dataclass(slots=True)
class _IdlePeriod:
    """A time in which a rank has nothing to do but look whether that is over; it ends with the next event.

    Attributes
    ----------
    end : int
        It is over at this step,
    tests : list of callable
        and when one of these says so,
    until : float
        and maybe from this time on, of `time.perf_counter`: then the triggers have to be asked.
    seconds, steps : float, int
        So many go by between two looks, of what comes first.
    drains : bool
        The drain has to be seen to.
    """

    end: int
    tests: list[Callable[[], bool]]
    until: float
    seconds: float
    steps: int
    drains: bool


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
        What a lazy restart has still to read and check; there is no cut before it is done.
    line : RunLine or None
        Tells where the program is; None where nobody wants to know it, and on all ranks but rank 0.

    Attributes
    ----------
    next_step : int
        The next step whose safe point must not be passed without `glance` and `safe_point`.
    next_poll : float
        The next time, of `time.perf_counter`, at which any safe point should call them.
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
        hang: Hang,
        loading: Loading | None = None,
        line: RunLine | None = None,
    ) -> None:
        self.next_step = 0
        self.next_poll = 0.0
        self.stopped: Stopped | None = None
        self.clock = clock
        self.hang = hang
        triggers.stalls = hang.stalls
        self._epochs = Epochs(coordinator, checkpointer, protocol, clock, recorder, hang, loading)
        self.stats = self._epochs.stats
        self._coordinator = coordinator
        self._checkpointer = checkpointer
        self._protocol = protocol
        self._triggers = triggers
        self._handlers = Handlers(triggers.signals, coordinator.rank)
        self._recorder = recorder
        self._line = line
        self._rounds = coordinator.rounds
        self._saver = Saver(coordinator, protocol, self._epochs, self._next_event, self._handle)
        self._saved: Outcome | None = None
        self._todo: deque[Instruction] = deque()
        self._step = -1
        self._closing = False
        self._saves_last = False  # the epoch under way is the one before the end
        self._in_hand = False  # events are being handled: nothing else may be
        self._idle_period: _IdlePeriod | None = None

    @property
    def storage_hung(self) -> bool:
        """Whether the storage of some rank hangs, as far as this one knows."""
        return self._protocol.storage_hung

    # -- safe points ---------------------------------------------------------------------------------------------

    def start(self, restart_seconds: float) -> None:
        """Begin to keep time, at the first safe point; reading the checkpoint took `restart_seconds`."""
        self._protocol.hold = self._checkpointer.traffic is None
        self._epochs.start(restart_seconds)

    def glance(self, step: int) -> bool:
        """Look at the safe point of `step` whether there is nothing to do; if so, say when to look again.

        The short way: if it is gone, `safe_point` need not be called. It is gone nearly always, and after other work
        out of cold caches: each call that is made on it, and each object that is looked at, costs some microseconds.
        """
        idle = self._idle_period
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
            self._see_to_drain(now)
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
        if self.stats.cuts == cuts:  # after a cut the program goes on at once: what has come can wait for the next look
            self._look(now)
        if self._protocol.blocked is not Blocked.NO:
            self._wait(self._stand)
        self._go_on(step, now)

    def _go_on(self, step: int, now: float) -> None:
        """Leave the safe point of `step`, and find out when to look again; raise `Stopped` if the program is to end."""
        self._protocol.handle(Left())
        is_quiet = self._line is None and not self._epochs.loads and not self._epochs.awaits_messages
        end, seconds = self._protocol.next_step, self._protocol.seconds_to_next_poll(quiet=is_quiet)
        steps = self._protocol.steps_to_next_poll(seconds)
        self.next_step, self.next_poll = min(end, step + steps), now + seconds
        if is_quiet and seconds > 0.0:
            tests = [*self._epochs.tests(), *self._rounds.tests()]
            self._idle_period = _IdlePeriod(end, tests, self._triggers.due_at, seconds, steps, self._epochs.drains)
        if self.stopped is not None:
            raise self.stopped

    def save(self, step: int) -> Outcome:
        """Make a checkpoint that records `step`, and wait until it is decided on all ranks; collective."""
        self._step, self._saved = step, None
        try:
            self._handle(Reached(step, time.perf_counter(), save=True))
            self._wait(lambda: self._saver.save(step, self._is_stopped))
        except BaseException:
            self._protocol.handle(Left())  # which also ends the save
            raise
        self._go_on(step, time.perf_counter())
        assert self._saved is not None
        return self._saved

    def wait(self, step: int) -> Outcome | None:
        """Wait inside `step` until the epoch in progress is decided; what became of it, or of the last one."""
        self._protocol.handle(Left(step))
        self._wait(lambda: self._saver.wait(step, self._is_stopped))
        self.next_step, self.next_poll = self._protocol.next_step, 0.0
        if self.stopped is not None:
            raise self.stopped
        return self._epochs.last

    def _is_stopped(self) -> bool:
        return self.stopped is not None

    def _seconds_left(self, now: float) -> float:
        """Estimate how long it is to the next cut."""
        return min(self._protocol.seconds_to_next_cut(), self.clock.seconds_left(now))

    def idle(self, step: int = -1) -> None:
        """Take in what has come, inside `step`: a call of ``ckpt.comm`` waits."""
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
        if self._epochs.loads and self._epochs.see_to_loading(now, self._seconds_left(now)):
            self._triggers.request(stop=False)  # all ranks meet at a cut, and are told there
        if self._epochs.drains:
            self._see_to_drain(now)
        if self._line is not None:
            self._tell(self._line, now)

    def _see_to_drain(self, now: float) -> None:
        self._epochs.see_to_drain(now, self._seconds_left(now))
        self.hang.tell()

    def _tell(self, line: RunLine, now: float) -> None:
        """Bring the line up to date, if it is time."""
        decided = self.stats.complete + self.stats.failed
        if self._step >= 0 and line.due(now, decided):
            line.show(self._epochs.state(self._step, now), now, decided)

    def _end_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()

    # -- standing still ------------------------------------------------------------------------------------------

    def _wait(self, stand: Callable[[], None]) -> None:
        """Blocked still, and count for how long: without the cut that may be made meanwhile."""
        since, blocked = time.perf_counter(), self.stats.blocked_seconds
        stand()
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
            self._epochs.give_up_if_hung(ending=self._closing)
            return self._next_event(now)

        watch = Stopwatch()
        try:
            self._stand_while(look, watch)
        finally:
            self._coordinator.end_watch(watch)

    def _stand_while(self, look: Callable[[], Event | None], watch: Stopwatch) -> None:
        since = Stopwatch()
        while (stand := self._protocol.blocked) is not Blocked.NO:
            if self.stopped is not None and not self._closing:
                return
            drains = self._epochs.drains
            seconds: float | None = None
            if drains:
                self._epochs.boost()
                self._epochs.give_up_late_messages(since.seconds())
                seconds = INTERRUPT_SECONDS
            elif stand is Blocked.LIMITED and not self._checkpointer.layout_changed:
                seconds = max(0.0, self._protocol.patience - since.seconds())
            elif self.stopped is not None:
                seconds = STOP_PATIENCES * self._protocol.patience
            event = self._coordinator.wait(look, self._what(), seconds, watch)
            if event is None and drains:
                continue
            if event is None and self.stopped is not None:
                self._end_the_hard_way(self.stopped)
            if event is None or isinstance(event, Drained):
                since.restart()
            if event is None:
                event = GaveUp()
            self._handle(event)

    def _what(self) -> str:
        """Say what this rank stands still for."""
        epoch = self._protocol.epoch
        storage = self._epochs.storage()
        if storage is not None:
            what = storage
        elif epoch is not None:
            what = f"all ranks to finish epoch {epoch.number} (cut at step {epoch.step})"
        elif self._closing:
            what = "all ranks to close the session"
        else:
            what = "all ranks to say at which step to cut next"
        return f"{what}, being at step {self._step} itself"

    def _end_the_hard_way(self, stopped: Stopped) -> None:
        print(f"mpickpt: rank {self._coordinator.rank} ends all ranks: some do not come to their end", file=sys.stderr)
        abort(stopped.exit_code)

    # -- events --------------------------------------------------------------------------------------------------

    def _next_event(self, now: float) -> Event | None:
        """Give what happened next, if anything did."""
        request = self._triggers.take(now)
        if request is not None:
            return Requested(request)
        return self._epochs.next_event() or self._rounds.next_event()

    # -- instructions --------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        """Hand an event to the protocol and do as it says."""
        self._todo.extendleft(reversed(self._protocol.handle(event)))
        self._in_hand, self._idle_period = True, None
        self._tell_of_last_epoch()
        try:
            while self._todo:
                outcome = self._carry_out(self._todo.popleft())
                if outcome is not None:
                    self._todo.extendleft(reversed(self._protocol.handle(outcome)))
        finally:
            self._in_hand = False
            self._tell_of_last_epoch()

    def _tell_of_last_epoch(self) -> None:
        """Have no second SIGTERM end the program while the epoch before its end is cut and drained."""
        epoch = self._protocol.epoch
        saves = epoch is not None and epoch.stop
        if saves is not self._saves_last:
            self._saves_last = saves
            self._triggers.saves_last(saves)

    def _carry_out(self, instruction: Instruction) -> Event | None:
        match instruction:
            case Forward(rounds, stop):
                self._rounds.pass_on(rounds, stop=stop)
            case Announce(stop):
                self._rounds.announce(stop=stop)
                return Marked(stop, time.perf_counter())
            case Propose(step):
                self._rounds.propose(step)
            case Cut(number, step, slot):
                return self._cut(number, step, slot)
            case Miss(number, step, slot):
                self.tell_taken_signals()
                return self._epochs.miss(number, step, slot)
            case Skip(number, step, _):
                self.clock.start(time.perf_counter())
                return self._epochs.skip(number, step)
            case Post(epoch, complete):
                self._epochs.post(epoch, complete)
            case Boost():
                self._epochs.boost()
            case EndSave():
                self._saved = self._epochs.last
            case Stop(complete):
                self.stopped = self._stopped(complete)
            case Abandon(left):
                self._todo.clear()
                error = EpochError(
                    f"Rank {self._coordinator.rank}: no epoch can become complete any more, because rank {left} left "
                    f"the session by an exception. See what that rank says."
                )
                error.elsewhere = True
                raise error
            case SayBelowClosed():
                self._rounds.say_closed()
            case ForwardDeparture(rank):
                self._rounds.pass_on_left(rank)
            case AnnounceEnd(left):
                self._rounds.announce_end(left)
        return None

    def _cut(self, number: int, step: int, slot: int) -> Event | None:
        """Make a cut; if the program made that impossible, the others are told before it is raised here."""
        self._epochs.finish_loading()
        began = time.perf_counter()
        self.clock.start(began)
        taken = self._handlers.taken()
        refused = self._epochs.prepare(number, step, slot)
        try:
            for text in taken:
                warn(text)
            if refused is not None:
                return refused
            outcome = self._epochs.cut(number, step, slot, began)
            self._handlers.cut()
            return outcome
        except BaseException:
            if not self._epochs.is_cut(number):
                self._todo.extendleft(reversed(self._protocol.handle(Drained(False))))
                self._carry_out(self._todo.popleft())
            raise

    def tell_taken_signals(self) -> None:
        """Warn once of signals whose handlers are not the session's any more."""
        for text in self._handlers.taken():
            warn(text)

    def _stopped(self, complete: bool) -> Stopped:
        directory = self._checkpointer.directory
        newest = self._protocol.newest_complete
        if complete:
            text = (
                f"mpickpt: stopped as asked, after epoch {newest} of {directory} became complete; the same command "
                f"goes on"
            )
        elif newest is None:
            text = f"mpickpt: stopped as asked, but no epoch in {directory} became complete"
        else:
            text = f"mpickpt: stopped as asked; no new epoch became complete, epoch {newest} of {directory} stays"
        if self._coordinator.rank == 0 and not self._closing:  # otherwise it has come to its end by itself
            print(text, file=sys.stderr, flush=True)
        return Stopped(newest)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait until the last epoch is decided and all ranks have come here; collective."""
        closing = time.perf_counter()
        self._end_line()
        self._epochs.finish_loading()
        self._closing = True
        self._triggers.close(stopped=self.stopped is not None)
        epoch = self._protocol.epoch
        shown = epoch is not None and self._coordinator.rank == 0
        with Bar(f"saving epoch {epoch.number if epoch else 0} before the end", shown) as bar:
            self._handle(Closing())
            self._stand(bar)
        self._tell_lost()
        self._recorder.end(closing, self.stats, self._epochs.end(), by_itself=False)

    def _tell_lost(self) -> None:
        """Say at the end if the last epoch failed, so that what is saved is older; who was stopped knows it already."""
        epochs = self._epochs
        if self._coordinator.rank == 0 and self.stopped is None and epochs.last is not None and not epochs.last:
            text = told_lost(epochs.last, epochs.newest, self._protocol.newest_complete, self._checkpointer.directory)
            print(f"mpickpt: {text}", file=sys.stderr, flush=True)

    def leave(self) -> None:
        """End on this rank alone: its drain is waited for, no other rank is."""
        closing = time.perf_counter()
        self._end_line()
        self._triggers.close()
        self._todo.clear()
        self._idle_period = None
        self._epochs.leave()
        if not self._protocol.over:
            for instruction in self._protocol.leave():
                self._carry_out(instruction)
        self._coordinator.commits.post_leaving()
        self._recorder.end(closing, self.stats, self._checkpointer.snapshotter.progress(), by_itself=True)

    def current_stats(self) -> Stats:
        """Sum up, with the drain that is under way."""
        return self._epochs.current_stats()
