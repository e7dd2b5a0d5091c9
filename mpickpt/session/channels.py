"""Messages in flight of the epoch in progress: what it awaits before it can be complete on this rank."""

from __future__ import annotations

import errno
from contextlib import suppress

from mpickpt.protocol import PATIENCE
from mpickpt.session.checkpointer import Checkpointer
from mpickpt.session.epoch import InProgress


class Channels:
    """Sees to the messages in flight of one epoch after another; does nothing where messages are not tracked.

    Parameters
    ----------
    checkpointer : Checkpointer
        Has the traffic, and takes the messages.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._checkpointer = checkpointer
        self._current: InProgress | None = None

    def begin(self, current: InProgress) -> None:
        """Begin with the epoch `current`, which is about to be cut."""
        self._current = current
        current.awaits_messages = self._checkpointer.traffic is not None

    def cut(self, number: int) -> None:
        """Take part in the exchange of counts for epoch `number`, for which this rank is not cut."""
        if self._checkpointer.traffic is not None:
            self._checkpointer.traffic.cut(number)

    def advance(self) -> None:
        """Advance the exchange of counts, and hand over the messages in flight when all are known."""
        traffic, current = self._checkpointer.traffic, self._current
        if traffic is None or not traffic.advance() or current is None or not current.awaits_messages:
            return
        if traffic.fault is None:
            current.awaits_messages = False
            self._checkpointer.add_channels(traffic.in_flight())
        else:
            self.give_up(traffic.fault)

    def give_up(self, reason: str) -> None:
        """Fail the epoch for want of its messages, if it still awaits them and has not failed already."""
        current = self._current
        if current is None or not current.awaits_messages:
            return
        current.awaits_messages, current.lacks = False, reason
        with suppress(OSError):
            self._checkpointer.fail(errno.ECANCELED)

    def give_up_late(self, blocked: float) -> None:
        """Give up on messages that are not here: a rank that has been blocked for its own drain receives nothing."""
        traffic = self._checkpointer.traffic
        if traffic is None:
            return
        self.advance()  # the last tracked call may have brought all that is needed
        if self._is_awaiting and (not traffic.exchanging or blocked > PATIENCE):
            self.give_up(f"{traffic.missing()} The next cut cannot wait for them")

    def receive_ahead(self) -> None:
        """Receive what has come on ``ckpt.comm`` in the name of the program, which waits for an epoch."""
        if self._checkpointer.traffic is not None:
            self._checkpointer.traffic.receive_ahead()

    @property
    def are_awaited(self) -> bool:
        """Whether the epoch waits for messages in flight, or for word of them."""
        traffic = self._checkpointer.traffic
        return self._is_awaiting or (traffic is not None and traffic.exchanging)

    @property
    def _is_awaiting(self) -> bool:
        return self._current is not None and self._current.awaits_messages
