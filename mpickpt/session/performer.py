"""Hands events to the protocol, and carries out its instructions on this rank."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path

from mpickpt.errors import EpochError, Stopped, warn
from mpickpt.mpi import Coordinator
from mpickpt.protocol import (
    Abandon,
    Announce,
    AnnounceEnd,
    Boost,
    Cut,
    Drained,
    EndSave,
    Epoch,
    Event,
    Forward,
    ForwardDeparture,
    Instruction,
    Marked,
    Miss,
    Post,
    Propose,
    Protocol,
    SayBelowClosed,
    Skip,
    Stop,
)
from mpickpt.protocol.policy import Clock
from mpickpt.session.epochs import Epochs
from mpickpt.session.outcome import Outcome, told_stopped
from mpickpt.session.triggers import Triggers
from mpickpt.signals.takeover import Handlers


class Performer:
    """Does what the protocol says.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    protocol : Protocol
        Decides.
    epochs : Epochs
        Cuts.
    triggers : Triggers
        Are told when no second SIGTERM may end the program.
    clock : Clock
        Is told of each cut.
    directory : Path
        The checkpoint directory, for messages.

    Attributes
    ----------
    saved : Outcome or None
        What became of the checkpoint that the program waits for, once that is known.
    stopped : Stopped or None
        What ends the program, once it is to stop.
    closing : bool
        The program has come to its end by itself.
    is_busy : bool
        An event is being handled: nothing else may be.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        protocol: Protocol,
        epochs: Epochs,
        triggers: Triggers,
        clock: Clock,
        directory: Path,
    ) -> None:
        self.saved: Outcome | None = None
        self.stopped: Stopped | None = None
        self.closing = False
        self.is_busy = False
        self._coordinator = coordinator
        self._rounds = coordinator.rounds
        self._protocol = protocol
        self._epochs = epochs
        self._triggers = triggers
        self._handlers = Handlers(triggers.signals, coordinator.rank)
        self._clock = clock
        self._directory = directory
        self._todo: deque[Instruction] = deque()
        self._saves_last = False  # the epoch in progress is the one before the end

    def handle(self, event: Event) -> None:
        """Hand an event to the protocol and do as it says."""
        self._todo.extendleft(reversed(self._protocol.handle(event)))
        self.is_busy = True
        self._tell_of_last_epoch()
        try:
            while self._todo:
                outcome = self._carry_out(self._todo.popleft())
                if outcome is not None:
                    self._todo.extendleft(reversed(self._protocol.handle(outcome)))
        finally:
            self.is_busy = False
            self._tell_of_last_epoch()

    def leave(self) -> None:
        """Tell the other ranks that this one leaves the session; what is still to be done is not."""
        self._todo.clear()
        if not self._protocol.over:
            for instruction in self._protocol.leave():
                self._carry_out(instruction)

    def _tell_of_last_epoch(self) -> None:
        """Have no second SIGTERM end the program while the epoch before its end is cut and drained."""
        if self._protocol.is_last is not self._saves_last:
            self._saves_last = self._protocol.is_last
            self._triggers.saves_last(self._saves_last)

    def _carry_out(self, instruction: Instruction) -> Event | None:
        match instruction:
            case Forward(rounds, stop):
                self._rounds.forward(rounds, stop=stop)
            case Announce(stop):
                self._rounds.announce(stop=stop)
                return Marked(stop, time.perf_counter())
            case Propose(step):
                self._rounds.propose(step)
            case Cut(epoch):
                return self._cut(epoch)
            case Miss(epoch):
                self.tell_taken_signals()
                return self._epochs.miss(epoch)
            case Skip(epoch):
                self._clock.start(time.perf_counter())
                return self._epochs.skip(epoch)
            case Post():
                self._epochs.post(instruction)
            case Boost():
                self._epochs.boost()
            case EndSave():
                self.saved = self._epochs.last
            case Stop(complete):
                self.stopped = self._stopped(complete)
            case Abandon(departed):
                self._todo.clear()
                raise self._abandoned(departed)
            case SayBelowClosed():
                self._rounds.say_closed()
            case ForwardDeparture(rank):
                self._rounds.forward_departure(rank)
            case AnnounceEnd(departed):
                self._rounds.announce_end(departed)
        return None

    def _cut(self, epoch: Epoch) -> Event | None:
        """Make a cut; if the program made that impossible, the others are told before it is raised here."""
        current = self._epochs.begin(epoch)
        self._epochs.restoring.finish()
        current.began = time.perf_counter()
        self._clock.start(current.began)
        taken = self._handlers.taken()
        refused = self._epochs.prepare()
        try:
            for text in taken:
                warn(text)
            if refused is not None:
                return refused
            outcome = self._epochs.cut()
            self._handlers.cut()
            return outcome
        except BaseException:
            if not self._epochs.is_cut(epoch):
                self._todo.extendleft(reversed(self._protocol.handle(Drained(False))))
                self._carry_out(self._todo.popleft())
            raise

    def tell_taken_signals(self) -> None:
        """Warn once of signals whose handlers are not the session's any more."""
        for text in self._handlers.taken():
            warn(text)

    def _stopped(self, complete: bool) -> Stopped:
        number = self._protocol.newest_complete
        if self._coordinator.rank == 0 and not self.closing:  # otherwise it has come to its end by itself
            text = told_stopped(complete, self._epochs.newest, number, self._directory)
            print(text, file=sys.stderr, flush=True)
        return Stopped(number)

    def _abandoned(self, departed: int) -> EpochError:
        error = EpochError(
            f"Rank {self._coordinator.rank}: no epoch can become complete any more, because rank {departed} left the "
            f"session by an exception. See what that rank says."
        )
        error.elsewhere = True
        return error
