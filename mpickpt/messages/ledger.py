"""What is in flight between the ranks at a cut: one rank's account of messages and of collective calls.

A *channel* is all messages that one rank sends to another with one tag on one communicator; MPI keeps their order. Each
rank counts what it has sent and received since its last cut. At a cut it tells the receivers how many messages it sent,
and each receiver balances its channels. A message that was sent before the sender's cut but not received before the
receiver's is *late*: it is copied into the checkpoint when it comes. A message that was received before the receiver's
cut but sent after the sender's is *early*: the checkpoint holds the number of those, and their checksums. After a
restart the late ones are replayed, and the early ones, which the sender repeats, are suppressed.

The senders' numbers are known a little after the cut. Until then every message that is received may be late, so all are
logged, and the log is truncated later. A balance that is not zero is carried over to the next epoch; channels with
nothing outstanding are dropped. A rank is cut again only after the last balance, for which all ranks must have been
cut: so what is early at a cut was received since the one before.

This module uses neither MPI nor time: `mpickpt.mpi.tracked.traffic` drives it, and simulated ranks do so in the tests.
A receive has a *stamp*, taken when it is posted: MPI fills the receives that match a channel in the order in which they
were posted, whatever the order in which the program finds them complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mpickpt.messages.inflight import Early, InFlight, Late
from mpickpt.messages.replay import Replay

Channel = tuple[str, int, int]  # communicator, the other rank, tag
Data = bytes | bytearray | memoryview

_SHORT = 64  # bytes; a message up to this size is kept itself, which is cheaper than a checksum
REMEMBERED = 1024  # checksums kept of a channel; further early messages are counted only


@dataclass(slots=True)
class _Received:
    """The messages on a channel since the last cut: their number, and stamps and checksums of the last of them.

    A short message is kept in place of its checksum, which is rarely needed.
    """

    count: int = 0
    last: list[tuple[int, int | bytes | None]] = field(default_factory=list)

    def forget_old(self) -> None:
        self.last.sort(key=_stamp)
        del self.last[:-REMEMBERED]

    def checksums(self, count: int, crc32c: Callable[[Data], int]) -> tuple[int | None, ...]:
        """Return the checksums of the last `count` messages, or of as many of them as are remembered."""
        self.forget_old()
        last = self.last[-count:]
        return tuple(crc32c(checksum) if isinstance(checksum, bytes) else checksum for _, checksum in last)


@dataclass(frozen=True, slots=True)
class Outstanding:
    """A channel whose late messages are not all received yet."""

    channel: Channel
    late: int
    here: int


class Ledger:
    """One rank's account of its messages.

    Parameters
    ----------
    rank : int
        This rank, among those that are saved together.
    crc32c : callable
        Returns the CRC-32C of bytes.

    Attributes
    ----------
    replay : Replay
        What is still to be replayed and suppressed of the restored epoch.
    """

    def __init__(self, rank: int, crc32c: Callable[[Data], int]) -> None:
        self._crc32c = crc32c
        self.replay = Replay(rank, crc32c)
        self._sent: dict[Channel, int] = {}
        self._received: dict[Channel, _Received] = {}
        self._balance: dict[Channel, int] = {}  # sent minus received, up to the last cut; without zeros
        self._before: dict[Channel, _Received] = {}  # what was received between the last two cuts
        self._told: dict[Channel, int] = {}
        self._open = False  # the balance of the last cut is not known yet
        self._log: dict[Channel, list[tuple[int, bytes | None]]] = {}
        self._late: dict[Channel, int] = {}  # of channels with messages that are not here yet
        self._complete: list[tuple[int, Late]] = []  # with stamps; of the other channels
        self._early: list[Early] = []
        self._replay_at_cut = InFlight()
        self._stamp = 0
        self._late_count = 0

    # -- what the program does -----------------------------------------------------------------------------------

    def stamp(self) -> int:
        """Return the next stamp, for a receive that is posted now."""
        self._stamp += 1
        return self._stamp

    def sent(self, channel: Channel) -> None:
        """Count a message to another rank."""
        self._sent[channel] = self._sent.get(channel, 0) + 1

    def received(self, channel: Channel, data: Data | None, stamp: int) -> None:
        """Count a message from another rank; `data` is None if its content cannot be known."""
        entry = self._received.get(channel)
        if entry is None:
            entry = self._received[channel] = _Received()
        entry.count += 1
        if data is None:
            entry.last.append((stamp, None))
        else:
            entry.last.append((stamp, bytes(data) if len(data) <= _SHORT else self._crc32c(data)))
        if len(entry.last) >= 2 * REMEMBERED:
            entry.forget_old()
        if self._open or channel in self._late:
            log = self._log.setdefault(channel, [])
            late = self._late.get(channel)
            if late is None or len(log) < late or stamp < log[-1][0]:
                log.append((stamp, None if data is None else bytes(data)))
                if late is not None:
                    _cut_to_size(log, late)

    # -- a cut ---------------------------------------------------------------------------------------------------

    def cut(self) -> dict[int, list[tuple[str, int, int]]]:
        """Fix the counters.

        Returns
        -------
        dict
            For each rank that was sent something since the last cut, what to tell it: communicator, tag and number of
            messages.
        """
        assert not self._open, "the balance of the last cut was not struck"
        tell: dict[int, list[tuple[str, int, int]]] = {}
        for (path, rank, tag), count in self._sent.items():
            tell.setdefault(rank, []).append((path, tag, count))
        self._before, self._received, self._sent = self._received, {}, {}
        self._log.clear()
        self._late.clear()
        self._complete, self._early, self._late_count = [], [], 0
        self._replay_at_cut = self.replay.left()
        self._open = True
        return tell

    def told(self, rank: int, path: str, tag: int, count: int) -> None:
        """Note how many messages another rank sent between its last two cuts."""
        self._told[path, rank, tag] = count

    def settle(self) -> None:
        """Balance the channels, when all senders have told their numbers."""
        assert self._open, "there was no cut"
        self._open = False
        balance = {}
        for channel in self._balance.keys() | self._told.keys() | self._before.keys():
            before = self._before.get(channel)
            received = 0 if before is None else before.count
            due = self._balance.get(channel, 0) + self._told.get(channel, 0) - received
            if due:
                balance[channel] = due
            if due > 0:
                self._late[channel] = due
            elif due < 0:
                checksums = () if before is None else before.checksums(-due, self._crc32c)
                self._early.append(Early(*channel, -due, checksums))
        self._balance = balance
        self._told.clear()
        self._late_count = sum(self._late.values())
        self._log = {channel: log for channel, log in self._log.items() if channel in self._late}
        for channel, log in self._log.items():
            _cut_to_size(log, self._late[channel])
        self._before = {}

    # -- what the checkpoint needs -------------------------------------------------------------------------------

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of late and early messages of the last cut; restored ones not yet replayed count as late."""
        return self._late_count + len(self._replay_at_cut.late), sum(early.count for early in self._early)

    def outstanding(self, oldest_posted: Callable[[Channel], int | None]) -> list[Outstanding]:
        """Return which late messages are missing.

        Parameters
        ----------
        oldest_posted : callable
            Returns the stamp of the oldest pending receive that can match a channel: its message is older than those of
            later receives.

        Returns
        -------
        list of Outstanding
            Empty if all late messages are here; no more are logged then.
        """
        for channel, late in list(self._late.items()):
            log = self._log.get(channel, [])
            if len(log) < late:
                continue
            oldest = oldest_posted(channel)
            if oldest is None or oldest > log[-1][0]:
                known = [(stamp, Late(*channel, data)) for stamp, data in log if data is not None]
                if len(known) == late:
                    self._complete += known
                    del self._late[channel], self._log[channel]
        return [Outstanding(c, n, min(n - 1, len(self._log.get(c, ())))) for c, n in self._late.items()]

    def unknown(self) -> list[Channel]:
        """Return the channels on which a late message came whose content is not known."""
        if self._open:
            return []
        return [channel for channel, log in self._log.items() if any(data is None for _, data in log)]

    def in_flight(self) -> InFlight:
        """Return what was in flight at the last cut, in the order in which it came."""
        came = [late for _, late in sorted(self._complete, key=_stamp)]
        old = self._replay_at_cut
        return InFlight((*old.late, *came), tuple(self._early), old.suppressed)


@dataclass(slots=True)
class _Calls:
    count: int
    last: str
    left: int  # the neighbours in the ring of the communicator's ranks
    right: int


class Calls:
    """One rank's account of collective calls: each rank tells its right neighbour how many it made.

    After a restart, a collective that only some ranks had called when they were cut would be called by the others
    alone. All ranks of a communicator have equal counts if each has that of its left neighbour: one message per rank
    and communicator is enough.

    Parameters
    ----------
    rank : int
        This rank.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._calls: dict[str, _Calls] = {}
        self._before: dict[str, _Calls] = {}
        self._told: dict[str, tuple[int, int, str]] = {}
        self._ahead: dict[str, tuple[int, int]] = {}  # left neighbour, and how many calls it is ahead; without zeros

    def called(self, path: str, name: str, neighbours: tuple[int, int]) -> None:
        """Count a call on a communicator of two or more ranks, in whose ring the `neighbours` are left and right."""
        calls = self._calls.get(path)
        if calls is None:
            calls = self._calls[path] = _Calls(0, name, *neighbours)
        calls.count += 1
        calls.last = name

    def cut(self) -> dict[int, list[tuple[str, int, str]]]:
        """Fix the counters, and return what to tell each right neighbour: communicator, count, last call."""
        self._before, self._calls = self._calls, {}
        tell: dict[int, list[tuple[str, int, str]]] = {}
        for path, calls in self._before.items():
            tell.setdefault(calls.right, []).append((path, calls.count, calls.last))
        return tell

    def told(self, rank: int, path: str, count: int, last: str) -> None:
        """Note how many calls the left neighbour made between its last two cuts, and which was the last."""
        self._told[path] = rank, count, last

    def settle(self) -> str | None:
        """Compare when all have told; return a sentence on the first collective that straddles the cut, or None."""
        faults, ahead = [], {}
        for path in sorted(self._ahead.keys() | self._told.keys() | self._before.keys()):
            mine = self._before.get(path)
            left, lead = self._ahead.get(path, (-1 if mine is None else mine.left, 0))
            left, told, last = self._told.get(path, (left, 0, "of an earlier epoch"))
            lead += told - (0 if mine is None else mine.count)
            if lead:
                ahead[path] = left, lead
                first, second = (left, self._rank) if lead > 0 else (self._rank, left)
                name, number = (last, told) if lead > 0 else (mine.last, mine.count) if mine else (last, 0)
                faults.append(
                    f"the collective {name} (number {number} since the last cut) on communicator {path} straddles "
                    f"the cut: rank {first} had called it, rank {second} not yet"
                )
        self._before, self._ahead = {}, ahead
        self._told.clear()
        return faults[0] if faults else None


def _stamp(entry: tuple[int, object]) -> int:
    return entry[0]


def _cut_to_size(log: list[tuple[int, bytes | None]], late: int) -> None:
    """Keep those that MPI received first."""
    log.sort(key=_stamp)
    del log[late:]


def describe(channels: Iterable[Channel], limit: int = 3) -> str:
    """Return a text that names up to `limit` channels of received messages."""
    names = [f"from rank {rank} with tag {tag} on communicator {path}" for path, rank, tag in channels]
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
