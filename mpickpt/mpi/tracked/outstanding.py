"""What was begun on the tracked communicators of a session and has not ended: requests, and matched messages."""

from __future__ import annotations

from mpickpt.messages.ledger import Channel
from mpickpt.mpi.tracked.tracked import Unfinished

_PRUNE_AT = 256  # sends that the program does not wait for; then those that are complete are sorted out


class Outstanding:
    """The outstanding requests and messages of one rank."""

    def __init__(self) -> None:
        self._items: dict[int, Unfinished] = {}
        self._prune_at = _PRUNE_AT

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._items)

    def begin(self, item: Unfinished) -> None:
        """Add one."""
        self._items[id(item)] = item
        if len(self._items) > self._prune_at:
            for sent in [i for i in self._items.values() if i.harmless()]:
                self.end(sent)
            self._prune_at = 2 * len(self._items) + _PRUNE_AT

    def end(self, item: Unfinished) -> None:
        """Remove one that has ended."""
        self._items.pop(id(item), None)

    def check(self) -> None:
        """Find those that a call which is not tracked has completed."""
        for item in list(self._items.values()):
            item.notice()

    def at_cut(self) -> list[Unfinished]:
        """Return those with which no epoch can be complete, if they are outstanding at its cut."""
        return [i for i in self._items.values() if not i.harmless()]

    def oldest_posted(self, channel: Channel) -> int | None:
        """Return the stamp of the first posted receive that may take a message of the channel."""
        return min((i.stamp for i in self._items.values() if i.may_take(channel)), default=None)
