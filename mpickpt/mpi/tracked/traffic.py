"""The traffic of a session: what its tracked communicators have in common, and what becomes of it at a cut.

`mpickpt.messages.ledger` does the accounting; here it meets MPI. The tracked communicators (`comm`) and their requests
(`requests`) report what they send and receive; at a cut the ranks tell each other their counts (`exchange`) while the
program goes on.

Nothing blocks inside MPI while it waits for another rank: a tracked call that waits polls, sleeps and lets the session
do its work, because another rank may be waiting for that before it sends. The one exception is the transfer of a
message that has been matched.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from mpi4py import MPI

from mpickpt.errors import WaitTimeout
from mpickpt.messages.ledger import Calls, Channel, Data, Ledger, describe
from mpickpt.mpi.leftovers import Account
from mpickpt.mpi.tracked.ahead import receive_ahead
from mpickpt.mpi.tracked.buffers import Loopback
from mpickpt.mpi.tracked.comm import TrackedComm
from mpickpt.mpi.tracked.exchange import Exchange
from mpickpt.mpi.tracked.outstanding import Outstanding
from mpickpt.mpi.tracked.restoring import share
from mpickpt.mpi.tracked.tracked import Tracked
from mpickpt.options import wait_limit
from mpickpt.waiting import SAY_AFTER, Stopwatch

T = TypeVar("T")

# A wait polls so long without sleeping: for longer than a pause really takes, which the timer slack of Linux prolongs.
# Otherwise two ranks that answer each other, once one of them has slept, find each other asleep for ever.
SPIN_SECONDS = 200e-6
PAUSE_SECONDS = 50e-6  # then it sleeps so long between two polls,
IDLE_SECONDS = 0.002  # and lets the session do its work so often
_PATH = "0"  # of the tracked communicator itself


class Traffic:
    """What goes over the tracked communicators of a session; creating it is collective.

    MPI calls on tracked communicators and their requests come from one thread of a rank at a time.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        The ranks that are saved together.
    idle : callable
        Called every 2 ms while a tracked call waits. It makes no tracked calls; it may call `advance`.
    crc32c : callable
        Gives the CRC-32C of bytes.

    Attributes
    ----------
    comm : mpi4py.MPI.Intracomm
        The tracked communicator.
    taken : bool
        Whether the program has it.
    fault : str or None
        What breaks the epoch, as a sentence.
    """

    def __init__(self, comm: MPI.Intracomm, idle: Callable[[], None], crc32c: Callable[[Data], int]) -> None:
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.taken = False
        self.fault: str | None = None
        self.ledger = Ledger(self.rank, crc32c)
        self.replay = self.ledger.replay
        self.loopback = Loopback()
        self._idle = idle
        self._calls = Calls(self.rank)
        plain = MPI.Intracomm(comm)
        self._exchanges = plain.Dup(), plain.Dup()
        self._exchange: Exchange | None = None
        self._cuts = 0
        self._messages = 0  # sent, less received
        self._collectives = 0
        self._epoch = 0
        self._outstanding = Outstanding()
        self.begin, self.end = self._outstanding.begin, self._outstanding.end
        self._lost: str | None = None  # a message that can never be counted: no later epoch is good
        self._communicators: WeakValueDictionary[str, Tracked] = WeakValueDictionary()
        self.group = comm.Get_group()
        self.comm: MPI.Intracomm = TrackedComm.of(plain.Dup(), self, _PATH)

    # -- for the tracked calls -----------------------------------------------------------------------------------

    def until(self, ready: Callable[[], T | None]) -> T:
        """Wait until `ready` gives something true, and give that."""
        end = time.perf_counter() + SPIN_SECONDS
        while not (found := ready()):
            if time.perf_counter() > end:
                return self._sleep_until(ready)
            os.sched_yield()
        return found

    def _sleep_until(self, ready: Callable[[], T | None]) -> T:
        idle_at = 0.0
        while not (found := ready()):
            if time.perf_counter() >= idle_at:
                self.progress()
                self._idle()
                idle_at = time.perf_counter() + IDLE_SECONDS
            time.sleep(PAUSE_SECONDS)
        return found

    def progress(self) -> None:
        """Bring the exchange of counts further, if one is under way."""
        if self._exchange is None or not self._exchange.advance():
            return
        self._exchange = None
        self.ledger.settle()
        straddling = self._calls.settle()
        if straddling is not None and self.fault is None:
            self.fault = f"Epoch {self._epoch} failed: {straddling}."

    def sent(self, channel: Channel) -> None:
        """Count a message that was sent."""
        self._messages += 1
        self.ledger.sent(channel)
        if self._exchange is not None:
            self.progress()

    def received(self, channel: Channel, data: Data | None, stamp: int) -> None:
        """Count a message that was received; `data` is None if its content cannot be known."""
        self._messages -= 1
        self.ledger.received(channel, data, stamp)
        if self._exchange is not None:
            self.progress()

    def called(self, path: str, name: str, neighbours: tuple[int, int]) -> None:
        """Count a collective call."""
        if path == _PATH:
            self._collectives += 1
        self._calls.called(path, name, neighbours)

    def track(self, comm: Tracked) -> None:
        """Note that there is one more tracked communicator."""
        self._communicators[comm.path] = comm

    def receive_ahead(self) -> None:
        """Receive what has come for the program, which waits for a checkpoint, and keep it for its next receives."""
        receive_ahead([comm for comm in self._communicators.values() if comm])

    def lose(self, what: str) -> None:
        """Note that a message can never be counted."""
        if self._lost is None:
            self._lost = (
                f"Rank {self.rank} cannot count its messages any more since {what}: no further epoch can be taken in "
                f"this run."
            )

    # -- a cut ---------------------------------------------------------------------------------------------------

    def cut(self, epoch: int) -> None:
        """Cut this rank: fix the counters and begin to exchange them.

        Waits only if the exchange of the last cut is not over: if another rank is still to be cut for that.
        """
        self._end_exchange()
        self._epoch = epoch
        self.fault = None
        self._outstanding.check()
        held = self._outstanding.at_cut()
        tell: dict[int, dict[str, Any]] = {}
        for rank, counts in self.ledger.cut().items():
            tell.setdefault(rank, {})["sent"] = counts
        for rank, calls in self._calls.cut().items():
            tell.setdefault(rank, {})["calls"] = calls
        messages = {rank: json.dumps(items, separators=(",", ":")).encode() for rank, items in tell.items()}
        if self.rank in messages:
            self._take(self.rank, messages.pop(self.rank))
        if self._lost is not None:
            self.fault = self._lost
        elif held:
            more = f" (and {len(held) - 1} more)" if len(held) > 1 else ""
            self.fault = (
                f"Epoch {epoch} failed: rank {self.rank} has a pending {held[0].describe()}{more} at the cut. Wait for "
                f"it before the safe point."
            )
        self._exchange = self._next_exchange(messages)
        self.progress()

    def _next_exchange(self, messages: Mapping[int, bytes]) -> Exchange:
        self._cuts += 1
        return Exchange(self._exchanges[self._cuts % 2], messages, self._take)

    def _take(self, rank: int, data: bytes) -> None:
        told = json.loads(data)
        for path, tag, count in told.get("sent", ()):
            self.ledger.told(rank, path, tag, count)
        for path, count, name in told.get("calls", ()):
            self._calls.told(rank, path, count, name)

    def advance(self) -> bool:
        """Do what can be done without waiting; True when all is known that the epoch needs, or `fault` is set.

        A late message is known when the program has received it.
        """
        self.progress()
        if self.fault is not None:
            return True
        if self._exchange is not None:
            return False
        if not self.ledger.outstanding(self._outstanding.oldest_posted):
            return True
        self._outstanding.check()
        lost = self.ledger.unknown()
        if self._lost is not None:
            self.fault = self._lost
        elif lost:
            self.fault = (
                f"Epoch {self._epoch} failed: rank {self.rank} received messages that were in flight at the cut "
                f"({describe(lost)}), but their content could not be copied: they came by a non-blocking receive into "
                f"a buffer with gaps, were truncated, or were waited for by MPI.Request.Waitall and the like. Use "
                f"type(request).Waitall."
            )
        return self.fault is not None or not self.ledger.outstanding(self._outstanding.oldest_posted)

    @property
    def exchanging(self) -> bool:
        """Whether the counts of other ranks are still to come."""
        return self._exchange is not None

    def missing(self) -> str:
        """Tell what `advance` waits for."""
        if self._exchange is not None:
            return f"Rank {self.rank} waits for the counts of other ranks: not all were cut for epoch {self._epoch}."
        late = self.ledger.outstanding(self._outstanding.oldest_posted)
        parts = [f"{o.here} of {o.late} {describe([o.channel])}" for o in late[:3]]
        if not parts:
            return f"Rank {self.rank} waits for no message of epoch {self._epoch}."
        return (
            f"Rank {self.rank} waits for messages that were in flight at the cut of epoch {self._epoch}, and were not "
            f"received by the program since; there came {', '.join(parts)}."
        )

    def in_flight(self) -> bytes:
        """Give the messages in flight, once `advance` is True and there is no fault; no bytes if there are none."""
        return self.ledger.in_flight().to_bytes()

    def counts(self) -> tuple[int, int]:
        """Give the numbers recently and early messages of the last epoch on this rank."""
        return self.ledger.counts

    # -- restart and end -----------------------------------------------------------------------------------------

    def restore(
        self,
        data: bytes,
        gather: Callable[[object, str], list[Any] | None],
        scatter: Callable[[list[Any] | None, str], Any],
    ) -> tuple[int, int]:
        """Go back to the messages in flight of an epoch; collective, before the first tracked call.

        Parameters
        ----------
        data : bytes
            What `in_flight` gave on this rank.
        gather, scatter : callable
            Those of the `Coordinator`.

        Returns
        -------
        late, early : int
            How many messages of all ranks are replayed, and how many sends are suppressed.

        Raises
        ------
        EpochError
            On all ranks, if one cannot read its data.
        """
        replayed = share(data, self.rank, gather, scatter)
        self.replay.load(replayed.found.late, (*replayed.found.suppressed, *replayed.suppressed))
        return replayed.late, replayed.early

    def close(self) -> None:
        """Give the communicators back; collective."""
        self._end_exchange()
        for comm in self._exchanges:
            comm.Free()
        if self.comm:
            MPI.Intracomm.Free(self.comm)
        self.group.Free()
        self.loopback.close()

    def leave(self) -> None:
        """Let go of the session, which this rank leaves by an exception; nothing of it is done in a wait any more."""
        self._idle = _do_nothing

    def account(self) -> tuple[int, int, int, bool]:
        """Give exchanges, messages, collectives and whether something is pending, as in `Account`."""
        self._outstanding.check()
        return self._cuts, self._messages, self._collectives, bool(self._outstanding.at_cut())

    def finish(self, accounts: Sequence[Account], wait: Callable[[Callable[[], bool]], object]) -> None:
        """Give the communicators back when all ranks have called `leave`, and did what `accounts` tell; collective.

        ``ckpt.comm`` stays if something is left on it: another communicator might get what nobody received.
        """
        exchanges = max(one.exchanges for one in accounts)
        while self._exchange is not None or self._cuts < exchanges:
            if self._exchange is None:
                self._exchange = self._next_exchange({})
            wait(self._exchange.advance)
            self._exchange = None
        for comm in self._exchanges:
            comm.Free()
        unreceived = sum(one.messages for one in accounts)
        in_step = len({one.collectives for one in accounts}) == 1
        if self.comm and unreceived == 0 and in_step and not any(one.pending for one in accounts):
            MPI.Intracomm.Free(self.comm)
        self.group.Free()
        self.loopback.close()

    def _end_exchange(self) -> None:
        limit, watch = wait_limit(), Stopwatch()

        def ready() -> bool:
            self.progress()
            waited = 0.0 if self._exchange is None else watch.seconds()
            if waited > SAY_AFTER and not watch.said:
                watch.said = True
                print(f"mpickpt: {self.missing()} It has waited {SAY_AFTER:g} s.", file=sys.stderr, flush=True)
            if waited > limit:
                raise WaitTimeout(f"{self.missing()} It waited {limit:g} s; MPICKPT_WAIT_LIMIT sets the limit.")
            return self._exchange is None

        self.until(ready)


def _do_nothing() -> None:
    pass
