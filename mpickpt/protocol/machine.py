"""The state machine; the head of the package says what it does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from mpickpt.protocol.epoch import Epoch
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
from mpickpt.protocol.lookahead import IDLE_POLL_SECONDS, POLL_SECONDS, Lookahead
from mpickpt.protocol.policy import NEVER, choose_slot
from mpickpt.protocol.saving import Saving
from mpickpt.protocol.tree import children

PATIENCE = 5.0  # seconds that a rank stands still at the least before it gives up
PATIENT_STEPS = 3  # and so many of its steps: the others may be inside one
EPOCH_PATIENCES = 3  # so many times as long it stands for an epoch to be decided, or if that is longer,
DRAIN_PATIENCE = 2.0  # so many times as long as its own drain took
STOP_PATIENCES = 4  # so many times as long ranks that stop wait for others that do not come to their end
STOP_ATTEMPTS = 3  # epochs that may fail before a program that is to stop ends without


class Blocked(Enum):
    """Whether the rank has to stand still where it is, taking in what comes."""

    NO = 0
    LIMITED = 1  # for some time, then `GaveUp`: it may be what others wait for
    PATIENT = 2


@dataclass(frozen=True)
class _Appointment:
    """A cut at the first safe point at or beyond `step`; `agreed` on in a round, or told by the number of the step.

    `before` is the safe point before that, where it is known.
    """

    step: int
    stop: bool = False
    agreed: bool = True
    before: int = -1


@dataclass(frozen=True)
class _Attempt:
    """The epoch that is not decided, how it came about, and whether this rank came past its cut."""

    epoch: Epoch
    stop: bool
    agreed: bool
    missed: bool


class Protocol:
    """One rank's part.

    Parameters
    ----------
    rank, size : int
        This rank, and the number of ranks.
    keep : int
        Number of slots.
    every : int, optional
        Cut at the steps `every`, 2 · `every`, … without asking.
    slots : mapping of int to int or None
        The slots that exist: index, and the epoch in it that may be of use, or None.
    protected : int or None
        The slot to go back to if all fails now.
    next_epoch : int
        Number of the first epoch.
    look, rest : float
        At most so many seconds go by between two looks of the ranks, and of those that `rests` is true of.

    Attributes
    ----------
    epoch : Epoch or None
        The one that is not decided.
    is_last : bool
        The program ends when that one is complete.
    posted : bool
        The other ranks were told what became of it here.
    hold : bool
        Blocked still between the cut and the end of a program that is to stop. Right for programs whose messages stay
        between two safe points; with others a rank that stands might be what another one waits for.
    storage_hung : bool
        That of some rank, as far as the last epoch tells: all ranks skip the next one.
    rounds, waits, missed : int
        Markers that came; how often this rank stood still for an answer; epochs that failed because it gave up.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        *,
        keep: int = 2,
        every: int | None = None,
        slots: Mapping[int, int | None] | None = None,
        protected: int | None = None,
        next_epoch: int = 1,
        look: float = POLL_SECONDS,
        rest: float = IDLE_POLL_SECONDS,
    ) -> None:
        self.rank = rank
        self.size = size
        self.hold = True
        self.posted = False
        self.rounds = self.waits = self.missed = 0
        self.storage_hung = False
        self._keep = keep
        self._every = every
        self._slots: dict[int, int | None] = dict(slots or {})
        self._protected = protected
        self._number = next_epoch - 1
        self._attempt: _Attempt | None = None
        # where the rank is
        self._step = self._before = -1  # the last safe point that was looked at, and the one before it
        self._standing = False
        self._closing = False
        self._saving: Saving | None = None  # the program waits for a checkpoint where it stands
        self._next_every = NEVER
        self._look, self._rest = look, rest
        self._lookahead = Lookahead(size, look, rest)
        # the round
        self._passed_on = (-1, False)
        self._wanted = self._wanted_stop = False  # on rank 0
        self._open = False  # on rank 0: a round whose cut has not been made here
        self._no_more = False  # a rank has come to its end: no round can succeed any more
        self._stop = False  # of the round that is agreed on
        self._proposal: int | None = None
        self._proposed_at = 0.0
        self._gave_up = self._waited = False  # of the proposal: it may stand no longer; it was counted
        self._appointments: deque[_Appointment] = deque()  # still to come
        self._missed: deque[_Appointment] = deque()  # passed without being cut, in their order
        self._stop_attempts = 0
        self._drain_seconds = 0.0  # of the last epoch
        self._holds = False  # between the last cut and the end of the program
        # the end
        self._children = len(children(rank, size))
        self._said_closed = self._over = False

    # -- what the driver asks ------------------------------------------------------------------------------------

    @property
    def epoch(self) -> Epoch | None:
        """The epoch that is not decided."""
        return None if self._attempt is None else self._attempt.epoch

    @property
    def is_last(self) -> bool:
        """The program ends when the epoch in progress is complete."""
        return self._attempt is not None and self._attempt.stop

    @property
    def next_step(self) -> int:
        """No safe point at or beyond this step may be passed without `Reached`."""
        nearest = self._next_every
        if self._proposal is not None:
            nearest = self._step + 1 if self._gave_up else min(nearest, self._proposal)
        if self._appointments:
            nearest = min(nearest, self._appointments[0].step)
        return self._step + 1 if self._missed else nearest

    @property
    def awaits_answer(self) -> bool:
        """A proposal was posted and `Agreed` has not come; no marker may be handed in before it."""
        return self._proposal is not None

    def seconds_to_next_poll(self, *, quiet: bool) -> float:
        """Give how long this rank may go on without a look; `quiet` if the driver has nothing to see to, or to tell.

        Until its pace is known it looks at each safe point. Then it rests unless a step has to be agreed on: nothing is
        late if it hears of it a little later. So it is also before a cut that was agreed on, and until an epoch is
        decided: ranks that are some steps behind come to the cut later, and may drain for longer. But a rank that
        forwarded a request is about to hear of a marker.
        """
        if not self._lookahead.is_known:
            return 0.0
        awaits_marker = self._passed_on[0] >= self.rounds
        if not quiet or self._proposal is not None or awaits_marker or self._missed:
            return self._look
        return self._rest if self._attempt is None else min(self._rest, IDLE_POLL_SECONDS)

    def steps_to_next_poll(self, seconds: float) -> int:
        """Give how many steps may go by in those `seconds` until the next look, so that a run of quick ones shows."""
        return self._lookahead.steps_in(seconds)

    def polled(self, step: int, now: float) -> None:
        """Take in that the rank looked at the safe point of `step`, below `next_step`, found nothing and goes on.

        The same as `Reached` and `Resumed` at a fraction of their price.
        """
        self._before, self._step = self._step, step
        self._lookahead.polled(step, now)

    @property
    def over(self) -> bool:
        """The session has ended on this rank."""
        return self._over

    @property
    def patience(self) -> float:
        """Seconds until a rank that is `blocked` for a limited time gives up, from the end of its own drain on."""
        usual = max(PATIENCE, PATIENT_STEPS * self._lookahead.step_seconds)
        if self._lacks_answer or self._attempt is None:
            return usual
        return max(EPOCH_PATIENCES * usual, DRAIN_PATIENCE * self._drain_seconds)

    @property
    def newest_complete(self) -> int | None:
        """Number of the epoch to go back to if all fails now, if it is known."""
        return None if self._protected is None else self._slots.get(self._protected)

    def seconds_to_next_cut(self) -> float:
        """Estimate how long it is to the next cut whose step is known, at this rank's pace; infinite if none is."""
        nearest = min([self._next_every, *(appointment.step for appointment in self._appointments)])
        step_seconds = self._lookahead.step_seconds
        return max(0, nearest - self._step) * step_seconds if nearest < NEVER and step_seconds else math.inf

    # -- events --------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Instruction]:
        """Take in what happened; returns what is to be done, in this order."""
        match event:
            case Reached():
                return self._reached(event)
            case Resumed(step):
                self._standing = self._holds = False
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
                return self._gave_up_standing()
            case Drained():
                self._drain_seconds = event.seconds
                return self._drained(event.complete, event.hung)
            case Refused():
                return self._decided(Decided(False, False))
            case Decided():
                return self._decided(event)
            case Closing():
                self._closing, self._standing = True, False
                return self._go_on()
            case BelowClosed():
                self._children -= 1
                return self._go_on()
            case Ended():
                self._over = True
                return [] if event.departed is None else [Abandon(event.departed)]
            case BelowDeparted():
                return self._below_left(event.rank)

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
        self._standing = True
        if first and self._every is not None:
            self._next_every = (event.step // self._every + 1) * self._every  # the first is no cut: nothing is new
        self._lookahead.seen(event.step, event.now)
        return self._go_on()

    @property
    def _lacks_answer(self) -> bool:
        """The rank is as far as its own proposal, and does not know what was agreed on."""
        return self._proposal is not None and self._step >= self._proposal

    @property
    def blocked(self) -> Blocked:
        """Whether the rank may not go on from its safe point, or end, yet."""
        if self._over:
            return Blocked.NO
        if self._closing:
            return Blocked.PATIENT
        if self._standing and self._saving is not None:
            return Blocked.PATIENT
        if self._standing and self._lacks_answer:
            return Blocked.NO if self._gave_up else Blocked.LIMITED
        if not self._standing or self._attempt is None or self._missed:
            return Blocked.NO
        if self._is_due:
            # Where no message crosses a safe point, waiting for all is safe as long as no rank can have missed a cut,
            # and without rounds none can.
            return Blocked.PATIENT if self.hold and self.rounds == 0 else Blocked.LIMITED
        return Blocked.LIMITED if self._holds else Blocked.NO

    def _go_on(self) -> list[Instruction]:
        """Find out what is next, at a safe point or while closing; inside a step, nothing is."""
        if self._closing:
            return self._close_on()
        if not self._standing:
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

    @property
    def _appointment_is_due(self) -> bool:
        return bool(self._appointments) and self._step >= self._appointments[0].step

    @property
    def _is_due(self) -> bool:
        return self._appointment_is_due or self._step >= self._next_every

    def _cut_if_due(self) -> list[Instruction]:
        if self._missed and self._attempt is None and not self._lacks_answer:
            return self._begin(self._missed.popleft(), missed=True)
        if not self._is_due:
            return []
        # After others that were missed, or maybe after one that is not agreed on yet: waiting was to no avail.
        if self._missed or self._lacks_answer:
            self._miss_due()
            return []
        due = self._appointments.popleft() if self._appointment_is_due else _Appointment(self._next_every, agreed=False)
        return self._begin(due, missed=False)

    def _save_on(self, saving: Saving) -> list[Instruction]:
        """Bring the save further in which the program waits."""
        if self._lacks_answer or self._attempt is not None:
            return []
        if self._missed:
            return self._begin(self._missed.popleft(), missed=True)
        if not saving.needs_cut:
            return []
        here = _Appointment(self._step, agreed=False)
        instructions = self._begin(self._appointments.popleft() if self._appointment_is_due else here, missed=False)
        saving.number = self._number
        return instructions if self.storage_hung else [*instructions, Boost()]

    def _begin(self, due: _Appointment, *, missed: bool) -> list[Instruction]:
        """Begin the next epoch: by a cut here, or by missing it."""
        slot = choose_slot(self._keep, self._slots, self._protected)
        self._number += 1
        epoch = Epoch(self._number, self._step, slot)
        self._attempt, self.posted = _Attempt(epoch, due.stop, due.agreed, missed), False
        if due.agreed:
            self._open = False
        self._end_every(due)
        if not missed:
            self._skip_every()
        self.missed += missed
        if self.storage_hung:  # so no rank is cut needlessly: this epoch tells all whether it still does
            self._holds = due.stop and self.hold and not missed
            return [Skip(epoch)]
        self._slots[slot] = None
        if missed:
            return [Miss(epoch)]
        self._holds = due.stop and self.hold
        return [Cut(epoch), Boost()] if due.stop else [Cut(epoch)]

    def _miss_due(self) -> None:
        """Take what is due here for missed."""
        if self._appointment_is_due:
            self._end_every(self._appointments[0])
            self._missed.append(self._appointments.popleft())
        else:
            self._missed.append(_Appointment(self._step, agreed=False, before=self._before))
        self._skip_every()

    def _missed_but(self, agreed: _Appointment) -> list[_Appointment]:
        """Give the missed cuts but for one that falls on the same safe point, and is the same cut, or behind a stop."""
        others = [missed for missed in self._missed if not missed.before < agreed.step <= missed.step]
        return [missed for missed in others if not (agreed.stop and missed.step > agreed.step)]

    def _end_every(self, passed: _Appointment) -> None:
        """Make no cut after the one before a stop: ranks learn at different steps that it is complete."""
        if passed.stop:
            self._every, self._next_every = None, NEVER

    def _skip_every(self) -> None:
        if self._every is not None and self._step >= self._next_every:
            self._next_every = (self._step // self._every + 1) * self._every

    def _gave_up_standing(self) -> list[Instruction]:
        if self._lacks_answer:
            self._gave_up = True
        elif self._is_due:
            self._miss_due()
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
        came_back = self.storage_hung and not event.hung
        self.storage_hung = event.hung
        if event.complete:
            self._slots[attempt.epoch.slot] = attempt.epoch.number
            self._protected = attempt.epoch.slot
        if event.departed is not None:
            return [Abandon(event.departed)]
        ended: list[Instruction] = []
        if self._saving is not None and self._saving.number == attempt.epoch.number:
            if came_back:  # it was skipped, and can be made now
                self._saving.number = None
            else:
                self._saving, ended = None, [EndSave()]
        return [*ended, *self._go_on_after(attempt, event, came_back)]

    def _go_on_after(self, attempt: _Attempt, event: Decided, came_back: bool) -> list[Instruction]:
        if attempt.stop:
            self._stop_attempts += 1
            if event.complete or (self._stop_attempts >= STOP_ATTEMPTS and not event.missed):
                self._no_more = True
                self._saving = None
                return [Stop(event.complete), *self._go_on()]
        again = attempt.stop or (attempt.agreed and (event.missed or came_back))
        if not event.complete and again and self.rank == 0:
            self._wanted = True
            self._wanted_stop = self._wanted_stop or attempt.stop
        return self._go_on() or self._announce_if_wanted()

    # -- rounds --------------------------------------------------------------------------------------------------

    @property
    def _is_ahead(self) -> bool:
        """The cut of the newest round is still to be made on this rank."""
        return self._proposal is not None or bool(self._appointments)

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
        # A program that is to stop has little time, so its ranks rather stand still for a moment.
        ahead = self._lookahead.steps + (1 if stop and not self._stop_attempts else 2)
        if self._closing:
            proposal = NEVER
        else:
            soonest = self._step if self._standing and self._before < self._step else self._step + 1
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
        agreed = _Appointment(event.step, self._stop)
        if (self._before if self._standing else self._step) >= event.step:
            self._end_every(agreed)
            self._missed = deque(sorted([*self._missed_but(agreed), agreed], key=lambda missed: missed.step))
        else:
            self._missed = deque(self._missed_but(agreed))
            self._appointments.append(agreed)
        return self._go_on()

    # -- the end -------------------------------------------------------------------------------------------------

    def _close_on(self) -> list[Instruction]:
        self._appointments.clear()  # no rank comes to a step beyond the last
        if self._over or self._proposal is not None or self._attempt is not None:
            return []
        if self._missed:
            return self._begin(self._missed.popleft(), missed=True)
        if self._children or self._said_closed:
            return []
        if self.rank == 0:
            self._over = True
            return [AnnounceEnd(None)]
        self._said_closed = True
        return [SayBelowClosed()]

    def _below_left(self, rank: int) -> list[Instruction]:
        if self.rank != 0:
            return [ForwardDeparture(rank)]
        self._over = True
        return [AnnounceEnd(rank), Abandon(rank)]
