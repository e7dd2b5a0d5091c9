"""The session: what a program calls at its safe points and at its end.

A session is driven by the program alone: there is no thread of its own. At a safe point it compares the number of the
step with that of the next thing to do, and mostly that is all. Everything else is in `Session._act`: asking whether the
last drain has ended, agreeing on it with the other ranks, and cutting.
"""

from __future__ import annotations

import atexit
import builtins
import math
import os
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mpickpt.errors import Stopped, UsageError
from mpickpt.mpi import Coordinator, find_loss
from mpickpt.options import Options
from mpickpt.protocol.policy import NEVER
from mpickpt.restart import choose
from mpickpt.restart.sources import OtherRanks
from mpickpt.session.archiver import open_archiver
from mpickpt.session.beside import Beside
from mpickpt.session.checkpointer import Checkpointer
from mpickpt.session.ending import Ending
from mpickpt.session.outcome import Outcome
from mpickpt.session.setup import drive
from mpickpt.session.steps import Steps
from mpickpt.slurm import find
from mpickpt.snapshot import crc32c
from mpickpt.snapshot.guard import close_guard, open_guard, refresh_guard, tell_unguarded
from mpickpt.stats import Stats

if TYPE_CHECKING:
    from mpickpt.mpi import Communicator


class Session(Beside):
    """A program's connection to its checkpoints; `mpickpt.open` makes it.

    Every rank calls the same methods in the same order, and takes the same steps. Use it as a context manager: at the
    end of the block the last drain is waited for. If the block is left by an exception, only this rank's own drain is,
    and no other rank.

    At a safe point no other thread may be writing to the arrays: what such a thread is in the middle of would be saved
    half done. Between safe points any thread may write to them at any time. A child process made by fork may use the
    arrays, but its session does nothing.

    Saved memory is write-protected for a while after each cut. The program does not notice: its own writes, messages
    that it receives and files that it reads go where they should. For writers that nobody announces see `writable`.

    Attributes
    ----------
    restored : Restored or None
        What the session went back to; None after a fresh start.
    options : Options
        The options in force.
    """

    def __init__(self, coordinator: Coordinator, options: Options) -> None:
        self._coordinator = coordinator
        self._inherited = False  # this is a child process of the one that opened it
        environment = find(os.environ)
        checkpointer = Checkpointer(coordinator, options, environment.job, environment.memory)
        began = time.perf_counter()
        with ExitStack() as undo:
            undo.callback(checkpointer.close)
            open_guard()
            undo.callback(close_guard)
            tell_unguarded()
            start = choose.begin(coordinator, checkpointer.store, checkpointer.snapshotter, options)
            archiver = open_archiver(coordinator, options, undo)
            checkpointer.begin()
            self._driver = drive(coordinator, checkpointer, environment, start, archiver, options, undo)
            self._traffic = coordinator.track(self._idle, crc32c)
            undo.pop_all()
        super().__init__(checkpointer, options, start.restored, start.source)
        self._start_from = start
        self._ending = Ending(coordinator, checkpointer, self._driver, self._traffic, start.loading, archiver)
        self._restart_seconds = time.perf_counter() - began
        self._started = False
        self._steps = Steps(start.restored.step if start.restored else 0)
        self._next_step, self._next_poll = -1, 0.0
        atexit.register(self._leave)
        _sessions.add(self)

    @property
    def comm(self) -> Communicator:
        """A communicator of the session's ranks whose messages may cross safe points.

        It is an `mpi4py.MPI.Intracomm` like any other. Messages that are in flight on it at a cut are saved with the
        epoch. After a restart late messages are replayed, and sends of those that were received already are suppressed
        (docs/messages.md). All ranks take it before the first safe point.

        Raises
        ------
        UsageError
            After the first safe point, if it was not taken before.
        """
        self._check_open()
        if self._started and self._checkpointer.traffic is None:
            raise UsageError("Take ckpt.comm before the first safe point, on all ranks: messages count from there on.")
        self._traffic.taken = True
        return self._traffic.comm

    # -- safe points ---------------------------------------------------------------------------------------------

    def range(self, *args: int) -> Iterator[int]:
        """Count like the builtin `range`, with a safe point at the head of each step; go on where the epoch was cut.

        Several loops may follow each other if they go on counting: ``range(100)``, then ``range(100, 200)``.

        Parameters
        ----------
        *args : int
            ``stop``, or ``start, stop`` and perhaps a positive ``step``.

        Raises
        ------
        UsageError
            If it would count downwards, below 0, or over steps that were done already, as in a loop inside a loop.
        """
        self._check_open()
        return self._walk(self._steps.left_of(builtins.range(*args)))

    def _walk(self, loop: builtins.range) -> Iterator[int]:
        clock, steps = time.perf_counter, self._steps
        if loop:
            steps.begin(loop)
        try:
            for step in loop:
                if step <= steps.current:
                    raise steps.backwards(step)
                steps.current = step
                if refresh_guard():
                    tell_unguarded()
                if step >= self._next_step or clock() >= self._next_poll:
                    self._act(step)
                yield step
        except GeneratorExit:
            steps.leave()
            raise
        if loop:
            steps.end()

    def step(self) -> int:
        """Make a safe point here, for programs without a ``for`` loop.

        Returns
        -------
        int
            The number of the step that begins.
        """
        step = self._steps.next()
        if refresh_guard():
            tell_unguarded()
        if step >= self._next_step or time.perf_counter() >= self._next_poll:
            self._act(step)
        return step

    def save(self, *, next_step: bool | None = None) -> Outcome:
        """Make a checkpoint here and now, and wait until it is complete, or failed, on all ranks.

        This is a safe point, and collective as a barrier is: no rank goes on before all have called it. The cuts of
        `range` and `step` need no waiting. Call this where a program has to know that its state is on disk before it
        goes on, or where a program may be cut at some places only.

        Parameters
        ----------
        next_step : bool, optional
            The step with which a restart from this checkpoint begins. Inside a step, False (the default) means the
            current step, of which nothing may have been changed yet; True means the next step, as all of the current
            one is done. Between two loops there is nothing to choose. A program that never calls `range` or `step`
            counts its steps by ``save(next_step=True)`` at the end of each.

        Returns
        -------
        Outcome
            The number of the epoch, and whether it is complete; it is false if the epoch failed, and says why. The
            older epoch stays then.

        Raises
        ------
        UsageError
            If a loop was left by ``break`` and `next_step` is not given, or ranks call it at different steps.
        WaitTimeout
            If not all ranks call it; names those that are late.
        """
        self._check_open()
        if self._inherited:
            raise UsageError("This process was made by fork(): its session belongs to the parent, which can save.")
        step = self._steps.to_record(next_step)
        if refresh_guard():
            tell_unguarded()
        if not self._started:
            self._start(step)
        try:
            return self._driver.save(step)
        finally:
            self._next_step, self._next_poll = self._driver.next_step, self._driver.next_poll

    def wait(self) -> Outcome | None:
        """Wait until the epoch in progress is complete, or failed, on all ranks.

        Each rank may call it or not. It is no safe point, and makes no checkpoint.

        Returns
        -------
        Outcome or None
            What became of that epoch, or of the last one if none is in progress; None if this session had none.

        Raises
        ------
        WaitTimeout
            If not all ranks come to the step at which the epoch was cut.
        """
        self._check_open()
        if self._inherited or not self._started:
            return None
        try:
            return self._driver.wait(self._steps.current)
        finally:
            self._next_step, self._next_poll = self._driver.next_step, self._driver.next_poll

    def request(self, *, stop: bool = False) -> None:
        """Ask for a cut at one of the next safe points of all ranks; a call on one rank is enough.

        Parameters
        ----------
        stop : bool
            End the program when it is complete: all ranks then get `Stopped`, a SystemExit with code 75.
        """
        self._check_open()
        if not self._inherited:
            self._driver.request(stop=stop)
            self._next_poll = 0.0

    def _act(self, step: int) -> None:
        """Do what there is to do at the safe point of `step`, and find out when to come here again."""
        driver = self._driver
        if driver.fast_path(step):
            self._next_step, self._next_poll = driver.next_step, driver.next_poll
            return
        self._check_open()
        if not self._started:
            self._start(step)
        try:
            driver.safe_point(step)
        finally:
            self._next_step, self._next_poll = driver.next_step, driver.next_poll

    def _idle(self) -> None:
        """Take in what has come while a call of ``ckpt.comm`` waits, inside a step."""
        try:
            self._driver.idle(self._steps.current if self._started else -1)
        finally:
            if self._started and not self._closed:
                self._next_step = self._driver.next_step  # a cut may have been agreed on meanwhile

    def _start(self, step: int) -> None:
        """Fix the layout at the first safe point, and let go of what was read but not asked for."""
        source, start = self._release_source(), self._start_from
        if choose.messages(self._coordinator, self._traffic, source, self.options.directory):
            self._checkpointer.traffic = self._traffic
        if source is not None:
            source.close()
        self._checkpointer.fix_layout(step, watch=start.loading is None)
        if isinstance(source, OtherRanks):  # not every one of these ranks has a share of each array
            self._late -= self._checkpointer.names
        self._checkpointer.slots.provide_all(step, start.epochs, start.protected)
        restored = self.restored.epoch if self.restored is not None else None
        if restored is not None and start.protected is not None:
            self._checkpointer.resume(start.protected, restored)
        self._driver.start(restored, self._restart_seconds)
        self._started = True
        self._driver.tell_taken_signals()
        self._tell_late()

    # -- the end -------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return what checkpointing has cost so far on this rank.

        Returns
        -------
        Stats
            Counts, seconds and bytes, with those of the drain in progress.
        """
        return self._driver.current_stats()

    def close(self) -> None:
        """Wait until the last epoch is saved on all ranks, and end the session; the arrays stay usable.

        Collective. Closing twice does no harm. If the last epoch failed, rank 0 says so on standard error, and which
        one is the newest that is complete; a program that has to know calls `save` before.
        """
        if self._closed or self._inherited:
            return
        try:
            self._driver.close()
        except BaseException:
            self._leave()
            raise
        self._end()
        self._ending.together()

    def _leave(self) -> None:
        """End the session on this rank alone: save what is being saved, wait for nobody."""
        if self._closed or self._inherited:
            return
        if find_loss(sys.exc_info()[1]):  # before this rank waits for its drain, so that the others do not wait for it
            self._driver.defer()
        self._end()
        self._ending.alone(started=self._started)

    def _end(self) -> None:
        self._closed = True
        self._next_step = -1
        source, self._source = self._source, None
        if source is not None:
            source.close()
        self._driver.end()
        atexit.unregister(self._leave)

    def __enter__(self) -> Self:
        """Return the session."""
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session; on an exception without waiting for the other ranks, unless all of them are to stop."""
        if kind is None or isinstance(error, Stopped):
            self.close()
        else:
            self._leave()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def leave_all() -> None:
    """Leave the sessions that are still open, each when its drain has ended."""
    for session in list(_sessions):
        session._leave()


def _disown() -> None:
    """Have the sessions that a child process made by fork has inherited do nothing."""
    for session in _sessions:
        session._inherited = True
        session._next_step, session._next_poll = NEVER, math.inf
        session._driver.disown()


os.register_at_fork(after_in_child=_disown)
