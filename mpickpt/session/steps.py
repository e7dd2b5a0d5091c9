"""Which step the program is in, and with which one a restart goes on: the number that an epoch records.

The head of a step is its safe point, so a cut there records the step that begins. ``ckpt.save()`` may be called
anywhere: what it records depends on whether a step is under way, and whether it was done.
"""

from __future__ import annotations

from enum import Enum

from mpickpt.errors import UsageError


class _Where(Enum):
    BETWEEN = 0  # before the first step, or after a loop that came to its end
    INSIDE = 1  # of a step that was begun
    LEFT = 2  # the loop was left in the middle of a step


class Steps:
    """Follows a program through its steps.

    Parameters
    ----------
    resume : int
        The step that the program begins with; that of the epoch that was restored, or 0.

    Attributes
    ----------
    current : int
        The last step that was begun.
    """

    def __init__(self, resume: int) -> None:
        self.current = resume - 1
        self._resume = resume
        self._loop: range | None = None  # that `current` belongs to
        self._where = _Where.BETWEEN
        self._are_counted = False  # the program has loops, or calls `Session.step`
        self._done = resume - 1  # the last step that is known to be done

    def left_of(self, steps: range) -> range:
        """Return those of `steps` that are still to be done.

        Raises
        ------
        UsageError
            If they count downwards, below 0, or over steps that were done already.
        """
        self._are_counted = True
        if steps.start < 0 or steps.step < 1:
            raise UsageError(f"{steps} does not count upwards from 0 or more: a step's number tells the progress.")
        if steps and steps[0] < self._resume:
            left = steps[-(-(self._resume - steps[0]) // steps.step) :]
            if left and left[0] != self._resume:
                raise UsageError(f"The restored step {self._resume} is not one of {steps}. Was the program changed?")
            steps = left
        if steps and steps[0] <= self.current:
            raise UsageError(f"{steps} starts at or below step {self.current}, which was done already: go on counting.")
        return steps

    def backwards(self, step: int) -> UsageError:
        """Make the error of a loop that comes to `step` after a later one."""
        return UsageError(
            f"Step {step} of a loop comes after step {self.current} of another one inside it: a step's number is the "
            f"progress, so that loops over steps follow each other. Use one of them, and a plain range inside it."
        )

    def begin(self, loop: range) -> None:
        """Note that a loop over these steps, of which there is one at least, begins; the caller sets `current`."""
        self._loop, self._where = loop, _Where.INSIDE

    def end(self) -> None:
        """Note that the loop came to its end: its last step is done."""
        self._where, self._done = _Where.BETWEEN, self.current

    def leave(self) -> None:
        """Note that the loop was left in the middle of a step."""
        if self._where is _Where.INSIDE:
            self._where = _Where.LEFT

    def next(self) -> int:
        """Begin the next step, outside a loop over steps."""
        self._are_counted = True
        self._loop, self._where = None, _Where.INSIDE
        self.current += 1
        return self.current

    def to_record(self, next_step: bool | None) -> int:
        """Return the step that a checkpoint records here; with `next_step` the one under way counts as done.

        Raises
        ------
        UsageError
            If that cannot be known, or what is said cannot be.
        """
        if self._where is _Where.BETWEEN:
            if next_step and not self._are_counted:
                self.current += 1
                self._done = self.current
            return self._following
        if next_step is None and self._where is _Where.LEFT and self._done < self.current:
            raise UsageError(
                f"The loop was left in step {self.current}, and only the program knows whether that step is done: call "
                f"save(next_step=True) if all of it is, save(next_step=False) if nothing of it was changed yet."
            )
        if next_step is False and self._done == self.current:
            raise UsageError(f"save(next_step=True) said that step {self.current} is done, so it cannot begin there.")
        if next_step:
            self._done = self.current
        return self._following if self._done == self.current else self.current

    @property
    def _following(self) -> int:
        """The step after the last one that was begun; that of the next loop begins where this one stops."""
        if self._loop is None:
            return self.current + 1
        return min(self.current + self._loop.step, self._loop.stop)
