"""What one rank knows of its epochs, its round and its end, and what whoever drives it may ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

from mpickpt.protocol.agenda import Agenda
from mpickpt.protocol.epoch import Epoch
from mpickpt.protocol.lookahead import IDLE_POLL_SECONDS, POLL_SECONDS, Lookahead
from mpickpt.protocol.policy import NEVER
from mpickpt.protocol.rotation import Rotation
from mpickpt.protocol.saving import Saving
from mpickpt.protocol.tree import children
from mpickpt.protocol.value import value

PATIENCE = 5.0  # seconds: a blocked rank waits at least so long before it gives up,
PATIENT_STEPS = 3  # and for so many of its steps: the other ranks may be inside one
EPOCH_PATIENCES = 3  # it waits so many times as long for an epoch to be decided,
DRAIN_PATIENCE = 2.0  # or so many times as long as its own drain took, if that is longer
STOP_PATIENCES = 4  # ranks that stop wait so many times as long for others that do not come to their end
STOP_ATTEMPTS = 3  # epochs that may fail before a program that is to stop ends without one


class Blocked(Enum):
    """Whether the rank is blocked where it is, taking in what comes."""

    NO = 0
    LIMITED = 1  # for some time, then comes `GaveUp`: other ranks may be waiting for this one
    PATIENT = 2  # without a limit


@value
class Attempt:
    """The epoch that is not decided, how it came about, and whether this rank came past its cut."""

    epoch: Epoch
    stop: bool
    agreed: bool
    missed: bool


class RankState:
    """The state of one rank; only `mpickpt.protocol.Protocol` changes it.

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
    poll, idle_poll : float
        The longest time between two polls, in seconds: of a rank that takes part in something, and of an idle one.

    Attributes
    ----------
    epoch : Epoch or None
        The one that is not decided.
    is_last : bool
        The program ends when that one is complete.
    posted : bool
        The other ranks were told what became of it here.
    hold : bool
        A rank is blocked between the last cut and the end of a program that is to stop. That is right for programs
        whose messages stay between two safe points; in others another rank might be waiting for the blocked one.
    storage_hung : bool
        The storage of some rank hung in the last epoch: all ranks skip the next one.
    rounds, waits, missed : int
        How many markers came, how often this rank was blocked for an answer, and how many epochs failed because it
        gave up.
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
        poll: float = POLL_SECONDS,
        idle_poll: float = IDLE_POLL_SECONDS,
    ) -> None:
        self.rank = rank
        self.size = size
        self.hold = True
        self.posted = False
        self.rounds = self.waits = self.missed = 0
        self.storage_hung = False
        self._rotation = Rotation(keep, slots or {}, protected, next_epoch)
        self._agenda = Agenda(every)
        self._attempt: Attempt | None = None
        # where the rank is
        self._step = self._before = -1  # the last safe point that was polled, and the one before it
        self._at_safe_point = False
        self._closing = False
        self._saving: Saving | None = None  # the program waits for a checkpoint
        self._poll, self._idle_poll = poll, idle_poll
        self._lookahead = Lookahead(size, poll, idle_poll)
        # the round
        self._passed_on = (-1, False)
        self._wanted = self._wanted_stop = False  # on rank 0
        self._open = False  # on rank 0: a round whose cut has not been made here
        self._no_more = False  # a rank has come to its end: no round can succeed any more
        self._stop = False  # of the round that is agreed on
        self._proposal: int | None = None
        self._proposed_at = 0.0
        self._gave_up = self._waited = False  # of the proposal: the rank gave up waiting; that it waits was counted
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
        if self._agenda.has_missed or self._gave_up:
            return self._step + 1
        return self._agenda.nearest if self._proposal is None else min(self._agenda.nearest, self._proposal)

    @property
    def awaits_answer(self) -> bool:
        """A proposal was posted and `Agreed` has not come; no marker may be handed in before it."""
        return self._proposal is not None

    def seconds_to_next_poll(self, *, quiet: bool) -> float:
        """Return how long this rank may go on without a poll; `quiet` if the driver itself has nothing to do or show.

        Until its pace is known, a rank polls at each safe point. Then it is idle unless a step has to be agreed on, as
        nothing is late if the rank hears of it a little later. That holds before a cut that was agreed on, and until an
        epoch is decided: ranks that are some steps behind come to the cut later, and may drain for longer. But a rank
        that forwarded a request is about to hear of a marker.
        """
        if not self._lookahead.is_known:
            return 0.0
        awaits_marker = self._passed_on[0] >= self.rounds
        if not quiet or self._proposal is not None or awaits_marker or self._agenda.has_missed:
            return self._poll
        return self._idle_poll if self._attempt is None else min(self._idle_poll, IDLE_POLL_SECONDS)

    def steps_to_next_poll(self, seconds: float) -> int:
        """Return how many steps may go by in those `seconds` until the next poll, to notice a run of quick steps."""
        return self._lookahead.steps_in(seconds)

    def polled(self, step: int, now: float) -> None:
        """Take in that the rank polled at the safe point of `step`, below `next_step`, found nothing and goes on.

        It does what `Reached` and `Resumed` do, at a fraction of their cost.
        """
        self._before, self._step = self._step, step
        self._lookahead.polled(step, now)

    @property
    def over(self) -> bool:
        """The session has ended on this rank."""
        return self._over

    @property
    def patience(self) -> float:
        """After how many seconds a rank that is blocked for a limited time gives up, from the end of its drain on."""
        usual = max(PATIENCE, PATIENT_STEPS * self._lookahead.step_seconds)
        if self._lacks_answer or self._attempt is None:
            return usual
        return max(EPOCH_PATIENCES * usual, DRAIN_PATIENCE * self._drain_seconds)

    @property
    def newest_complete(self) -> int | None:
        """Number of the epoch to go back to if all fails now, if it is known."""
        return self._rotation.newest_complete

    def seconds_to_next_cut(self) -> float:
        """Estimate how long it is to the next cut whose step is known, at this rank's pace; infinite if none is."""
        nearest = self._agenda.nearest
        step_seconds = self._lookahead.step_seconds
        return max(0, nearest - self._step) * step_seconds if nearest < NEVER and step_seconds else math.inf

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
        if self._at_safe_point and self._saving is not None:
            return Blocked.PATIENT
        if self._at_safe_point and self._lacks_answer:
            return Blocked.NO if self._gave_up else Blocked.LIMITED
        if not self._at_safe_point or self._attempt is None or self._agenda.has_missed:
            return Blocked.NO
        if self._agenda.is_due(self._step):
            # Where no message crosses a safe point, waiting for all is safe as long as no rank can have missed a cut,
            # and without rounds none can.
            return Blocked.PATIENT if self.hold and self.rounds == 0 else Blocked.LIMITED
        return Blocked.LIMITED if self._holds else Blocked.NO

    @property
    def _is_ahead(self) -> bool:
        """The cut of the newest round is still to be made on this rank."""
        return self._proposal is not None or self._agenda.has_appointment
