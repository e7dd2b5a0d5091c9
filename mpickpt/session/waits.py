"""Waiting: at a safe point, at the end, and in the name of the program in ``ckpt.save()`` and ``ckpt.wait()``.

A rank that waits goes on doing what it does at its safe points: it drains, answers the other ranks, and on
``ckpt.comm`` it receives what comes for the program, which gets it later. So no other rank waits for this one for ever.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Literal

from mpickpt.errors import Stopped
from mpickpt.mpi import Coordinator, abort
from mpickpt.protocol import STOP_PATIENCES, Blocked, Drained, Event, GaveUp, Protocol
from mpickpt.session.epochs import INTERRUPT_SECONDS, Epochs
from mpickpt.session.performer import Performer
from mpickpt.waiting import Stopwatch


class Waits:
    """One rank's waits.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    protocol : Protocol
        Is asked whether this rank is blocked, and how far the epoch is.
    epochs : Epochs
        Sees to the drain and to messages in flight.
    performer : Performer
        Knows whether the program is to stop, and whether it is being closed.
    next_event : callable
        Gives what happened next, if anything did by the time that it gets.
    handle : callable
        Takes an event, and does what follows from it.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        protocol: Protocol,
        epochs: Epochs,
        performer: Performer,
        next_event: Callable[[float], Event | None],
        handle: Callable[[Event], None],
    ) -> None:
        self._coordinator = coordinator
        self._protocol = protocol
        self._epochs = epochs
        self._performer = performer
        self._next_event = next_event
        self._handle = handle

    # -- in the name of the program ------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """Wait until the save at `step` is over, or the program is to stop."""
        watch = Stopwatch()
        while self._protocol.blocked is not Blocked.NO and self._performer.stopped is None:
            epoch = self._protocol.epoch
            what = "" if epoch is None else f" and finish epoch {epoch.number}"
            self._bring_on(f"all ranks to call save() at step {step}{what}", watch)
        self._coordinator.end_watch(watch)

    def decide(self, step: int) -> None:
        """Wait inside `step` until the epoch in progress is decided, or the program is to stop."""
        epoch, watch = self._protocol.epoch, Stopwatch()
        while epoch is not None and self._protocol.epoch == epoch and self._performer.stopped is None:
            what = f"all ranks to finish epoch {epoch.number} (cut at step {epoch.step}), being in step {step}"
            self._bring_on(what, watch)
        self._coordinator.end_watch(watch)

    def _bring_on(self, what: str, watch: Stopwatch) -> None:
        """Take in the next thing that happens; if only this rank's own drain is waited for, return at times."""
        if self._epochs.drains:
            self._epochs.boost()
        by_itself = self._epochs.drains and not self._epochs.channels.are_awaited
        what = self._epochs.storage() or what
        event = self._coordinator.wait(self._poll, what, INTERRUPT_SECONDS if by_itself else None, watch)
        if event is not None and event != "received":
            self._handle(event)

    def _poll(self) -> Event | Literal["received"] | None:
        awaited = self._epochs.channels.are_awaited
        self._epochs.channels.receive_ahead()
        self._epochs.give_up_if_hung(ending=False)
        event = self._next_event(time.perf_counter())
        if event is None and awaited and not self._epochs.channels.are_awaited:
            return "received"
        return event

    # -- as the protocol says ------------------------------------------------------------------------------------

    def while_blocked(self, step: int, show: Callable[[float], None]) -> None:
        """Stay at the safe point of `step`, or at the end, taking in what comes, as long as the protocol wants it.

        Parameters
        ----------
        step : int
            Where the program is, for messages.
        show : callable
            Called with the time, of `time.perf_counter`, to show how far it is.
        """

        def poll() -> Event | None:
            now = time.perf_counter()
            show(now)
            self._epochs.give_up_if_hung(ending=self._performer.closing)
            return self._next_event(now)

        watch = Stopwatch()
        try:
            self._while_blocked(step, poll, watch)
        finally:
            self._coordinator.end_watch(watch)

    def _while_blocked(self, step: int, poll: Callable[[], Event | None], watch: Stopwatch) -> None:
        since = Stopwatch()
        while (blocked := self._protocol.blocked) is not Blocked.NO:
            if self._performer.stopped is not None and not self._performer.closing:
                return
            drains = self._epochs.drains
            if drains:
                self._epochs.boost()
                self._epochs.channels.give_up_late(since.seconds())
            seconds = self._patience(blocked, drains=drains, since=since)
            event = self._coordinator.wait(poll, self._what(step), seconds, watch)
            if event is None and drains:
                continue
            if event is None and self._performer.stopped is not None:
                self._end_the_hard_way(self._performer.stopped)
            if event is None or isinstance(event, Drained):
                since.restart()
            self._handle(GaveUp() if event is None else event)

    def _patience(self, blocked: Blocked, *, drains: bool, since: Stopwatch) -> float | None:
        """Return for how many seconds to wait for the next event; None without a limit."""
        if drains:
            return INTERRUPT_SECONDS
        if blocked is Blocked.LIMITED and not self._epochs.meets_at_next_cut:
            return max(0.0, self._protocol.patience - since.seconds())
        return None if self._performer.stopped is None else STOP_PATIENCES * self._protocol.patience

    def _what(self, step: int) -> str:
        """Say what this rank waits for."""
        epoch = self._protocol.epoch
        storage = self._epochs.storage()
        if storage is not None:
            what = storage
        elif epoch is not None:
            what = f"all ranks to finish epoch {epoch.number} (cut at step {epoch.step})"
        elif self._performer.closing:
            what = "all ranks to close the session"
        else:
            what = "all ranks to say at which step to cut next"
        return f"{what}, being at step {step} itself"

    def _end_the_hard_way(self, stopped: Stopped) -> None:
        print(f"mpickpt: rank {self._coordinator.rank} ends all ranks: some do not come to their end", file=sys.stderr)
        abort(stopped.exit_code)
