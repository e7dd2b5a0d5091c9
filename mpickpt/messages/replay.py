"""What a rank still has to do for the restored epoch: replay late messages, and suppress early ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from mpickpt.errors import EpochError
from mpickpt.messages.inflight import InFlight, Late, Suppressed


class Replay:
    """Replays late messages to receives, and suppresses sends whose messages have arrived already.

    Parameters
    ----------
    rank : int
        This rank.
    crc32c : callable
        Returns the CRC-32C of bytes.

    Attributes
    ----------
    waiting : list of Late
        Messages that are not replayed yet, in order.
    """

    def __init__(self, rank: int, crc32c: Callable[[bytes | bytearray | memoryview], int]) -> None:
        self._rank = rank
        self._crc32c = crc32c
        self.waiting: list[Late] = []
        self._due: dict[tuple[str, int, int], deque[int | None]] = {}
        self._done: dict[tuple[str, int, int], int] = {}

    def load(self, late: Iterable[Late], suppressed: Iterable[Suppressed]) -> None:
        """Add messages to replay, and messages to suppress."""
        self.waiting += late
        for m in suppressed:
            if m.checksums:
                self._due.setdefault((m.path, m.dest, m.tag), deque()).extend(m.checksums)

    def left(self) -> InFlight:
        """Return what remains to be done, for the next checkpoint."""
        suppressed = tuple(Suppressed(*channel, tuple(due)) for channel, due in self._due.items())
        return InFlight(late=tuple(self.waiting), suppressed=suppressed)

    @property
    def suppresses(self) -> bool:
        """Whether there is anything to be suppressed on any channel."""
        return bool(self._due)

    def find(self, path: str, source: int | None, tag: int | None) -> Late | None:
        """Return the message that a receive gets next, without taking it; None means any source or any tag."""
        for message in self.waiting:
            if message.path == path and source in (None, message.source) and tag in (None, message.tag):
                return message
        return None

    def take(self, message: Late) -> None:
        """Take out a message that is received now."""
        self.waiting.remove(message)

    def suppress(self, path: str, dest: int, tag: int, content: Callable[[], bytes | memoryview]) -> bool:
        """Suppress a send if its message arrived before the restart; return False if it is to be sent.

        Parameters
        ----------
        path, dest, tag : str, int, int
            The channel.
        content : callable
            Returns the bytes of the message.

        Raises
        ------
        EpochError
            If they differ from those that were received then.
        """
        channel = path, dest, tag
        due = self._due.get(channel)
        if due is None:
            return False
        expected = due.popleft()
        number = self._done[channel] = self._done.get(channel, 0) + 1
        if not due:
            del self._due[channel], self._done[channel]
        if expected is not None and self._crc32c(content()) != expected:
            raise EpochError(
                f"Rank {self._rank}: message {number} after the restart to rank {dest} with tag {tag} on communicator "
                f"{path} is not the one that rank {dest} had received before its cut. The program did not repeat what "
                f"it did: save all that its messages depend on (random generators, the order in which messages came), "
                f"or restart from an older epoch."
            )
        return True
