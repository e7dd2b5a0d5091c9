"""The cuts that are still to come on one rank, and those that it passed without being cut."""

from __future__ import annotations

from collections import deque

from mpickpt.protocol.policy import NEVER
from mpickpt.protocol.value import value


@value
class Appointment:
    """A cut at the first safe point at or beyond `step`.

    Attributes
    ----------
    step : int
        The step.
    stop : bool
        The program ends when its epoch is complete.
    agreed : bool
        The ranks agreed on it in a round; otherwise the number of the step demands it.
    before : int
        The last safe point before that of the cut, where it is known; -1 otherwise.
    """

    step: int
    stop: bool = False
    agreed: bool = True
    before: int = -1


class Agenda:
    """One rank's cuts, in the order in which all ranks number their epochs.

    Parameters
    ----------
    every : int or None
        A cut at the steps `every`, 2 · `every`, …; the first safe point of a run is none, as nothing is new there.
    """

    def __init__(self, every: int | None) -> None:
        self._every = every
        self._next_every = NEVER
        self._appointments: deque[Appointment] = deque()  # still to come
        self._missed: deque[Appointment] = deque()  # passed without being cut

    def start(self, step: int) -> None:
        """Begin at the first safe point, that of `step`."""
        if self._every is not None:
            self._next_every = (step // self._every + 1) * self._every

    @property
    def nearest(self) -> int:
        """The step of the next cut that is known."""
        return min(self._next_every, self._appointments[0].step) if self._appointments else self._next_every

    @property
    def next_every(self) -> int:
        """The step of the next cut that no round agrees on."""
        return self._next_every

    @property
    def has_appointment(self) -> bool:
        """Whether a cut that the ranks agreed on is still to come."""
        return bool(self._appointments)

    @property
    def has_missed(self) -> bool:
        """Whether a cut was missed whose epoch has not begun."""
        return bool(self._missed)

    def is_due(self, step: int) -> bool:
        """Whether a cut is due at the safe point of `step`."""
        return self._appointment_is_due(step) or step >= self._next_every

    def _appointment_is_due(self, step: int) -> bool:
        return bool(self._appointments) and step >= self._appointments[0].step

    def take(self, step: int) -> Appointment:
        """Take out the cut that is due at the safe point of `step`; one that is due there twice is one cut."""
        return self._appointments.popleft() if self._appointment_is_due(step) else Appointment(step, agreed=False)

    def take_missed(self) -> Appointment:
        """Take out the first cut that was missed."""
        return self._missed.popleft()

    def begin(self, cut: Appointment, step: int, *, missed: bool) -> None:
        """Take in that the epoch of `cut` begins at the safe point of `step`, by a cut there unless it was missed."""
        self._end_every(cut)
        if not missed:
            self._skip_every(step)

    def miss(self, step: int, before: int) -> None:
        """Take what is due at the safe point of `step` for missed; the safe point before was that of `before`."""
        if self._appointment_is_due(step):
            self._end_every(self._appointments[0])
            self._missed.append(self._appointments.popleft())
        else:
            self._missed.append(Appointment(step, agreed=False, before=before))
        self._skip_every(step)

    def agree(self, agreed: Appointment, passed: int) -> None:
        """Take in what the ranks agreed on; the last safe point that this rank passed is that of `passed`.

        A missed cut that falls on the same safe point is the same cut, and there is none behind a stop.
        """
        others = [missed for missed in self._missed if not missed.before < agreed.step <= missed.step]
        others = [missed for missed in others if not (agreed.stop and missed.step > agreed.step)]
        if passed >= agreed.step:
            self._end_every(agreed)
            others = sorted([*others, agreed], key=lambda missed: missed.step)
        else:
            self._appointments.append(agreed)
        self._missed = deque(others)

    def close(self) -> None:
        """Drop what is still to come: no rank comes to a step beyond the last."""
        self._appointments.clear()

    def _end_every(self, passed: Appointment) -> None:
        """Make no cut after the one before a stop: ranks learn at different steps that it is complete."""
        if passed.stop:
            self._every, self._next_every = None, NEVER

    def _skip_every(self, step: int) -> None:
        if self._every is not None and step >= self._next_every:
            self._next_every = (step // self._every + 1) * self._every
