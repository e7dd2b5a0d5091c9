"""The state machine; the head of the package says what it does."""

from __future__ import annotations

from mpickpt.protocol.agenda import Appointment
from mpickpt.protocol.events import (
    Agreed,
    BelowClosed,
    BelowDeparted,
    Closing,
    Decided,
    Drained,
    Ended,
    Event,
    GaveUp,
    Marked,
    Reached,
    Refused,
    Requested,
    RequestedBelow,
    Resumed,
)
from mpickpt.protocol.instructions import (
    Abandon,
    Announce,
    AnnounceEnd,
    Boost,
    Cut,
    EndSave,
    Forward,
    ForwardDeparture,
    Instruction,
    Miss,
    Post,
    Propose,
    SayBelowClosed,
    Skip,
    Stop,
)
from mpickpt.protocol.policy import NEVER
from mpickpt.protocol.saving import Saving
from mpickpt.protocol.state import STOP_ATTEMPTS, Attempt, Blocked, RankState


class Protocol(RankState):
    """One rank's part: events in, instructions out. Its parameters and attributes are those of `RankState`."""

    def handle(self, event: Event) -> list[Instruction]:
        """Take in what happened; returns what is to be done, in this order."""
        match event:
            case Reached():
                return self._reached(event)
            case Resumed(step, blocked):
                if blocked:
                    self._lookahead.blocked(blocked)
                self._at_safe_point = self._holds = False
                self._saving = None
                if step > self._step:
                    self._before, self._step = self._step, step
                return []
            case Requested():
                if self._is_ahead and self._stop >= event.stop:  # the cut that is agreed on is still to come here
                    return []
                return self._ask(self.rounds, event.stop)
            case RequestedBelow():
                return self._ask(event.rounds, event.stop)
            case Marked():
                return self._marked(event.stop, event.now)
            case Agreed():
                return self._agreed(event)
            case GaveUp():
                return self._gave_up_waiting()
            case Drained():
                self._drain_seconds = event.seconds
                return self._drained(event.complete, event.hung)
            case Refused():
                return self._decided(Decided(False, False))
            case Decided():
                self._rotation.pin(event.pinned)
                return self._decided(event)
            case Closing():
                self._closing, self._at_safe_point = True, False
                return self._go_on()
            case BelowClosed():
                self._children -= 1
                return self._go_on()
            case Ended():
                self._over = True
                return [] if event.departed is None else [Abandon(event.departed)]
            case BelowDeparted():
                return self._below_departed(event.rank)

    def leave(self) -> list[Instruction]:
        """End the session on this rank alone, by an exception: tell the others, and wait for none."""
        self._over = True
        return [AnnounceEnd(self.rank)] if self.rank == 0 else [ForwardDeparture(self.rank)]

    def _reached(self, event: Reached) -> list[Instruction]:
        first = self._step < 0
        if event.step != self._step:
            self._before, self._step = self._step, event.step
        elif event.save and not first:
            self._before = self._step  # its safe point was passed: what was agreed on for it is missed
        self._saving = Saving() if event.save else None
        self._at_safe_point = True
        if first:
            self._agenda.start(event.step)
        self._lookahead.seen(event.step, event.now)
        return self._go_on()

    def _go_on(self) -> list[Instruction]:
        """Find out what is next, at a safe point or while closing; inside a step, nothing is."""
        if self._closing:
            return self._close_on()
        if not self._at_safe_point:
            return []
        if self._lacks_answer and not self._gave_up and not self._waited:
            self.waits += 1
            self._waited = True
        if self._saving is not None:
            return self._save_on(self._saving)
        if self.blocked is not Blocked.NO:
            return []
        return self._cut_if_due() or self._announce_if_wanted()

    # -- cuts ----------------------------------------------------------------------------------------------------

    def _cut_if_due(self) -> list[Instruction]:
        if self._agenda.has_missed and self._attempt is None and not self._lacks_answer:
            return self._begin_missed()
        if not self._agenda.is_due(self._step):
            return []
        # After others that were missed, or maybe after one that is not agreed on yet: waiting was to no avail.
        if self._agenda.has_missed or self._lacks_answer:
            self._agenda.miss(self._step, self._before)
            return []
        return self._begin(self._agenda.take(self._step))

    def _save_on(self, saving: Saving) -> list[Instruction]:
        """Advance the save in which the program waits."""
        if self._lacks_answer or self._attempt is not None:
            return []
        if self._agenda.has_missed:
            return self._begin_missed()
        if not saving.needs_cut:
            return []
        instructions = self._begin(self._agenda.take(self._step))
        saving.number = self._rotation.number
        return instructions if self.storage_hung else [*instructions, Boost()]

    def _begin_missed(self) -> list[Instruction]:
        return self._begin(self._agenda.take_missed(), missed=True)

    def _begin(self, due: Appointment, *, missed: bool = False) -> list[Instruction]:
        """Begin the next epoch: by a cut here, by missing it, or by skipping it where a storage hung before."""
        epoch = self._rotation.begin(self._step, writes=not self.storage_hung)
        self._attempt, self.posted = Attempt(epoch, due.stop, due.agreed, missed), False
        self._agenda.begin(due, self._step, missed=missed)
        if due.agreed:
            self._open = False
        self.missed += missed
        self._holds = due.stop and self.hold and not missed
        if self.storage_hung:  # so no rank is cut needlessly: this epoch tells all whether it still does
            return [Skip(epoch)]
        if missed:
            return [Miss(epoch)]
        return [Cut(epoch), Boost()] if due.stop else [Cut(epoch)]

    def _gave_up_waiting(self) -> list[Instruction]:
        if self._lacks_answer:
            self._gave_up = True
        elif self._agenda.is_due(self._step):
            self._agenda.miss(self._step, self._before)
        else:
            self._holds = False
        return self._go_on()

    def _drained(self, complete: bool, hung: bool) -> list[Instruction]:
        attempt, self.posted = self._attempt, True
        assert attempt is not None
        post = Post(attempt.epoch, complete, attempt.missed, hung)
        return [post, *(self._go_on() if attempt.missed else [])]

    def _decided(self, event: Decided) -> list[Instruction]:
        attempt, self._attempt = self._attempt, None
        assert attempt is not None
        self._holds = False
        answers_again = self.storage_hung and not event.hung
        self.storage_hung = event.hung
        if event.complete:
            self._rotation.complete(attempt.epoch)
        if event.departed is not None:
            return [Abandon(event.departed)]
        ended: list[Instruction] = []
        if self._saving is not None and self._saving.number == attempt.epoch.number:
            if answers_again:  # it was skipped, and can be made now
                self._saving.number = None
            else:
                self._saving, ended = None, [EndSave()]
        return [*ended, *self._go_on_after(attempt, event, answers_again)]

    def _go_on_after(self, attempt: Attempt, event: Decided, answers_again: bool) -> list[Instruction]:
        if attempt.stop:
            self._stop_attempts += 1
            if event.complete or (self._stop_attempts >= STOP_ATTEMPTS and not event.missed):
                self._no_more = True
                self._saving = None
                return [Stop(event.complete), *self._go_on()]
        again = attempt.stop or (attempt.agreed and (event.missed or answers_again))
        if not event.complete and again and self.rank == 0:
            self._wanted = True
            self._wanted_stop = self._wanted_stop or attempt.stop
        return self._go_on() or self._announce_if_wanted()

    # -- rounds --------------------------------------------------------------------------------------------------

    def _ask(self, rounds: int, stop: bool) -> list[Instruction]:
        """Forward a request, or fulfil it; one that a later marker answers already is dropped."""
        if rounds < self.rounds:
            if self._stop >= stop:
                return []
            rounds = self.rounds
        if self.rank == 0:
            self._wanted = True
            self._wanted_stop = self._wanted_stop or stop
            return self._announce_if_wanted()
        if (rounds, stop) <= self._passed_on:
            return []
        self._passed_on = (rounds, stop)
        return [Forward(rounds, stop)]

    def _announce_if_wanted(self) -> list[Instruction]:
        if self.rank != 0 or not self._wanted or self._open or self._no_more or self._closing or self._step < 0:
            return []
        if self._attempt is not None and not self._wanted_stop:
            return []
        stop, self._wanted, self._wanted_stop = self._wanted_stop, False, False
        self._open = True
        return [Announce(stop)]

    def _marked(self, stop: bool, now: float) -> list[Instruction]:
        assert self._proposal is None
        self.rounds += 1
        self._stop = stop
        # A program that is to stop has little time, so its ranks rather wait for a moment.
        ahead = self._lookahead.steps + (1 if stop and not self._stop_attempts else 2)
        if self._closing:
            proposal = NEVER
        else:
            soonest = self._step if self._at_safe_point and self._before < self._step else self._step + 1
            proposal = soonest + (ahead if self.size > 1 else 0)
        self._proposal, self._proposed_at, self._gave_up, self._waited = proposal, now, False, False
        boost: list[Instruction] = [Boost()] if stop and self._attempt is not None and not self.posted else []
        return [Propose(proposal), *boost, *self._go_on()]

    def _agreed(self, event: Agreed) -> list[Instruction]:
        assert self._proposal is not None
        self._proposal, self._gave_up = None, False
        self._lookahead.answered(event.now - self._proposed_at)
        if event.departed is not None:
            return [Abandon(event.departed)]
        if event.step >= NEVER:  # a rank has come to its end, and cannot be cut any more
            self._open, self._no_more = False, True
            return self._go_on()
        passed = self._before if self._at_safe_point else self._step
        self._agenda.agree(Appointment(event.step, self._stop), passed)
        return self._go_on()

    # -- the end -------------------------------------------------------------------------------------------------

    def _close_on(self) -> list[Instruction]:
        self._agenda.close()
        if self._over or self._proposal is not None or self._attempt is not None:
            return []
        if self._agenda.has_missed:
            return self._begin_missed()
        if self._children or self._said_closed:
            return []
        if self.rank == 0:
            self._over = True
            return [AnnounceEnd(None)]
        self._said_closed = True
        return [SayBelowClosed()]

    def _below_departed(self, rank: int) -> list[Instruction]:
        if self.rank != 0:
            return [ForwardDeparture(rank)]
        self._over = True
        return [AnnounceEnd(rank), Abandon(rank)]
