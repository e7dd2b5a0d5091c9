"""The slot that an epoch waits for, where that is created beside the program: it follows the cut."""

from __future__ import annotations

import errno
from contextlib import suppress

from mpickpt.session.checkpointer import Checkpointer
from mpickpt.session.epoch import InProgress
from mpickpt.session.failures import NO_SLOT


class Following:
    """Sees to it.

    Parameters
    ----------
    checkpointer : Checkpointer
        Has the slots, and drains.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer

    def begin(self, current: InProgress) -> None:
        """Note whether the slot of an epoch that is about to be cut is awaited."""
        current.awaits_slot = self._checkpointer.slots.is_awaited(current.epoch.slot)

    def cut(self, current: InProgress) -> None:
        """Have an epoch that was just cut fail if its slot is known not to come."""
        if self._checkpointer.slots.has_failed(current.epoch.slot):
            self._give_up(current, NO_SLOT)

    def advance(self, current: InProgress | None) -> None:
        """Take in what became of slots, without waiting; `current` is the epoch that is being drained, if one is."""
        while (news := self._checkpointer.slots.news()) is not None:
            index, start = news
            if current is None or not current.awaits_slot or current.epoch.slot != index:
                continue
            if start is None:
                self._give_up(current, NO_SLOT)
            else:
                current.awaits_slot = False
                self._checkpointer.add_slot(start)

    def leave(self, current: InProgress) -> None:
        """Have the epoch fail that waits for a slot: the session ends on this rank."""
        if current.awaits_slot:
            current.lacks = "the session ended before it was created"
            self._give_up(current, errno.ECANCELED)

    def _give_up(self, current: InProgress, number: int) -> None:
        current.awaits_slot = False
        with suppress(OSError):  # it has failed already
            self._checkpointer.fail(number)
