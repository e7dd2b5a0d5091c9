"""Waiting for an epoch in the name of the program: ``ckpt.save()`` and ``ckpt.wait()``.

A rank that waits here goes on doing what it does at its safe points: it drains, answers the other ranks, and on
``ckpt.comm`` it receives what comes for the program, which gets it later. So no other rank waits for this one for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from mpickpt.mpi import Coordinator
from mpickpt.protocol import Blocked, Event, Protocol
from mpickpt.session.epoch import INTERRUPT_SECONDS, Epochs
from mpickpt.waiting import Stopwatch


class Saver:
    """One rank's waits for an epoch.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    protocol : Protocol
        Is asked how far the epoch is.
    epochs : Epochs
        Sees to the drain and to messages in flight.
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
        next_event: Callable[[float], Event | None],
        handle: Callable[[Event], None],
    ) -> None:
        self._coordinator = coordinator
        self._protocol = protocol
        self._epochs = epochs
        self._next_event = next_event
        self._handle = handle

    def save(self, step: int, is_stopped: Callable[[], bool]) -> None:
        """Wait until the save at `step` is over, or the program is to stop."""
        watch = Stopwatch()
        while self._protocol.blocked is not Blocked.NO and not is_stopped():
            epoch = self._protocol.epoch
            what = "" if epoch is None else f" and finish epoch {epoch.number}"
            self._bring_on(f"all ranks to call save() at step {step}{what}", watch)
        self._coordinator.end_watch(watch)

    def wait(self, step: int, is_stopped: Callable[[], bool]) -> None:
        """Wait inside `step` until the epoch in progress is decided, or the program is to stop."""
        epoch, watch = self._protocol.epoch, Stopwatch()
        while epoch is not None and self._protocol.epoch is epoch and not is_stopped():
            what = f"all ranks to finish epoch {epoch.number} (cut at step {epoch.step}), being in step {step}"
            self._bring_on(what, watch)
        self._coordinator.end_watch(watch)

    def _bring_on(self, what: str, watch: Stopwatch) -> None:
        """Take in the next thing that happens; if this rank's own drain is all that is waited for, look up at times."""
        if self._epochs.drains:
            self._epochs.boost()
        by_itself = self._epochs.drains and not self._epochs.awaits_messages
        what = self._epochs.storage() or what
        event = self._coordinator.wait(self._look, what, INTERRUPT_SECONDS if by_itself else None, watch)
        if event is not None and event != "received":
            self._handle(event)

    def _look(self) -> Event | Literal["received"] | None:
        awaited = self._epochs.awaits_messages
        self._epochs.receive_ahead()
        self._epochs.give_up_if_hung(ending=False)
        event = self._next_event(time.perf_counter())
        if event is None and awaited and not self._epochs.awaits_messages:
            return "received"
        return event
