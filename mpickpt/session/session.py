"""The session: what a program declares, and what happens at its safe points.

A session is driven by the program alone: there is no thread of its own. At a safe point it compares the number of the
step with that of the next thing to do, and mostly that is all. The rest is in `Session._act`: looking whether the last
drain has ended, agreeing on it with the other ranks, and cutting. `mpickpt.session.regions` does the work of a cut.
"""

from __future__ import annotations

import atexit
import builtins
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mpickpt.errors import LayoutError, MpickptError, Stopped, UsageError, warn
from mpickpt.layout.arrays import ArraySpec
from mpickpt.layout.parts import Part
from mpickpt.layout.subclasses import check_plain, check_values
from mpickpt.mpi import Coordinator
from mpickpt.options import OnRebind, Options, parse_on_rebind
from mpickpt.protocol import Protocol, idle_poll_seconds
from mpickpt.protocol.policy import NEVER, Clock
from mpickpt.report.recorder import Recorder
from mpickpt.restart import choose
from mpickpt.restart.choose import Start
from mpickpt.restart.lazy import Loading
from mpickpt.restart.sources import OtherRanks, Remap, Source
from mpickpt.session.driver import Driver
from mpickpt.session.hang import Hang
from mpickpt.session.outcome import Outcome
from mpickpt.session.regions import Checkpointer
from mpickpt.session.steps import Steps
from mpickpt.session.triggers import Triggers
from mpickpt.slurm import find
from mpickpt.snapshot import crc32c
from mpickpt.snapshot.guard import close_guard, open_guard, pinned, refresh_guard, tell_unguarded
from mpickpt.stats import Restored, Stats
from mpickpt.terminal import RunLine
from mpickpt.texts import visible

if TYPE_CHECKING:
    from mpickpt.mpi import Communicator

T = TypeVar("T")
A = TypeVar("A", bound=NDArray[Any])

Fill = ArrayLike | Callable[[NDArray[Any]], object] | None


class Session:
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
        self.options = options
        self._coordinator = coordinator
        self._closed = False
        self._inherited = False  # this is a child process of the one that opened it
        self._environment = find(os.environ)
        self._checkpointer = Checkpointer(coordinator, options, self._environment.job, self._environment.memory)
        began = time.perf_counter()
        with ExitStack() as undo:
            undo.callback(self._checkpointer.close)
            open_guard()
            undo.callback(close_guard)
            tell_unguarded()
            start = choose.begin(coordinator, self._checkpointer.store, self._checkpointer.snapshotter, options)
            self._checkpointer.begin()
            undo.pop_all()
        self.restored: Restored | None = start.restored
        self._source = start.source
        self._epochs, self._protected, self._loading = start.epochs, start.protected, start.loading
        self._claimed: set[str] = set()
        self._late: set[str] = set()
        self._driver = self._drive(start)
        self._traffic = coordinator.track(self._idle, crc32c)
        self._restart_seconds = time.perf_counter() - began
        self._started = False
        self._steps = Steps(start.restored.step if start.restored else 0)
        self._next_step = -1
        self._next_poll = 0.0
        atexit.register(self._leave)
        _sessions.add(self)

    def _drive(self, start: Start) -> Driver:
        """Put together what decides on cuts; collective."""
        options, coordinator = self.options, self._coordinator
        chosen = math.inf if options.interval is None else options.interval
        protocol = Protocol(
            coordinator.rank,
            coordinator.size,
            keep=options.keep,
            every=options.every,
            slots=start.epochs,
            protected=start.protected,
            next_epoch=start.next_epoch,
            rest=idle_poll_seconds(math.inf if chosen == "auto" else chosen),
        )
        clock = Clock(None if chosen == "auto" else chosen, options.mtbf)
        first = coordinator.rank == 0
        triggers = Triggers(
            options.directory if first else None,
            clock if first else None,
            self._environment if first else None,
            margin=options.margin,
            signals=options.signals,
            term_limit=options.term_limit,
        )
        self._triggers = triggers
        run, started_ns = self._checkpointer.run, self._checkpointer.started_ns
        self._recorder = recorder = Recorder(options, coordinator.rank, coordinator.size, run, started_ns)
        line = RunLine() if first and options.progress else None
        hang = Hang(self._checkpointer.snapshotter, options.stall_limit, coordinator.rank, options.directory)
        return Driver(coordinator, self._checkpointer, protocol, triggers, clock, recorder, hang, start.loading, line)

    # -- what is saved -------------------------------------------------------------------------------------------

    def array(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = np.float64,
        *,
        fill: Fill = None,
        part: Part | None = None,
        remap: Remap | None = None,
        on_rebind: OnRebind | None = None,
    ) -> NDArray[Any]:
        """Make an array that is saved at each cut, and restore it if there is something to restore.

        Its memory begins on a page and is advised to use huge pages, which makes cuts fast.

        Parameters
        ----------
        name : str
            Letters, digits, ``_``, ``.``, ``-``.
        shape : int or tuple of int
            Shape of this rank's array.
        dtype : dtype
            Any without Python objects.
        fill : array_like or callable, optional
            What a fresh array holds: values that are broadcast, or a function that gets the array and fills it in
            place. Zeros by default. If another number of ranks is restored, it is filled first, so that cells beyond
            the global array have values too.
        part : Part, optional
            Which part of a global array it is. Arrays with a part can be restored on any number of ranks.
        remap : callable, optional
            For a restart on another number of ranks: a function of a sequence of the old ranks' arrays, this rank and
            the number of ranks, that returns what the array is to hold.
        on_rebind : "error", "warn" or "ignore", optional
            What a cut does when the program has no reference to the array or a view of it any more, so that what it
            computes is not saved; as the session's by default.

        Returns
        -------
        ndarray
            The array, C-ordered.

        Raises
        ------
        LayoutError
            If name, shape and part do not fit together, or do not fit what is restored.
        """
        mode = self._on_rebind(name, on_rebind)
        spec = ArraySpec(name, shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype), part)
        source = self._source_for(name)
        memory = source.memory(spec) if source else None
        if memory is not None:
            out: NDArray[Any] = np.ndarray(spec.shape, spec.dtype, memory)
        else:
            memory = self._checkpointer.allocate(spec.nbytes)
            out = np.ndarray(spec.shape, spec.dtype, memory)
            if source is None or part is not None:
                _fill(name, out, fill)
            if source is not None:
                source.read_into(spec, out, remap)
        if source is not None:
            source.hand_out(name, out)
        memory = self._checkpointer.bindings.keep(name, out, mode, is_ours=True)
        self._checkpointer.add(spec, memory, out, owned=True)
        return out

    def protect(
        self,
        name: str,
        array: A,
        part: Part | None = None,
        *,
        remap: Remap | None = None,
        on_rebind: OnRebind | None = None,
    ) -> A:
        """Have an existing array saved at each cut, and restore it in place if there is something to restore.

        Parameters
        ----------
        name, part, remap, on_rebind
            As for `array`. What counts is the memory: a program that holds another view of it holds the array.
        array : ndarray
            Writable and contiguous, in C or in Fortran order; its address may be anything. It must not be moved or
            resized while the session is open. Neighbouring data on its first and last page may be written at any time.
            Of a subclass only the buffer is saved: one with more to it, such as a masked array, is refused.

        Returns
        -------
        ndarray
            `array` itself.

        Raises
        ------
        LayoutError
            If it cannot be saved as it is, has memory in common with another saved array, or does not fit what is
            restored.
        """
        mode = self._on_rebind(name, on_rebind)
        if not isinstance(array, np.ndarray):
            raise LayoutError(f"Array {name!r}: protect() needs a numpy array, not {type(array).__name__}.")
        check_plain(name, array)
        order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"
        if not array.flags.forc or not array.flags.writeable:
            flaw = "contiguous" if array.flags.writeable else "writable"
            raise LayoutError(f"Array {name!r} is not {flaw}; protect a copy, or let array() make it.")
        spec = ArraySpec(name, array.shape, array.dtype, part, order)
        self._checkpointer.extents.check(name, array)
        source = self._source_for(name)
        if source is not None:
            source.read_into(spec, array, remap)
        if source is not None:
            source.hand_out(name, array)
        memory = self._checkpointer.bindings.keep(name, array, mode, is_ours=False)
        self._checkpointer.add(spec, memory, array, owned=False)
        return array

    def object(
        self,
        name: str,
        value: T,
        *,
        replicated: bool = False,
        remap: Remap | None = None,
        on_rebind: OnRebind | None = None,
    ) -> T:
        """Have an object pickled at each cut, and restore it if there is something to restore.

        It is pickled as it is then, so change it in place, or tell of a new one by `set_object`. Meant for what is
        small: generators of random numbers, counters, histories. Saved arrays, and views of them, that it holds are not
        copied: they are written by name, and are the same arrays after a restart. Declare them before the object.

        Parameters
        ----------
        name : str
            Any text.
        value : object
            Used if there is nothing to restore.
        replicated : bool
            Whether it is the same on all ranks; a restart on another number of ranks then takes rank 0's.
        remap : callable, optional
            As for `array`, with the objects of the old ranks.
        on_rebind : "error", "warn" or "ignore", optional
            As for `array`, with references to the object or something in it. A value that cannot change (a number, a
            text) and was not replaced by `set_object` at the second cut is a warning, unless it is ``"ignore"``.

        Returns
        -------
        object
            The restored object or `value`: the one that is saved from now on.

        Raises
        ------
        LayoutError
            If `name` is taken, or what is restored has no such object, or one with an array that is not declared yet.
        """
        mode = self._on_rebind(name, on_rebind)
        source = self._source_for(name)
        if source is not None:
            value = source.object(name, replicated, remap)
        self._checkpointer.bindings.add_object(name, value, mode)
        self._checkpointer.add_object(name, value)
        return value

    def set_object(self, name: str, value: T) -> T:
        """Put another object in the place of one that `object` declared; returns it."""
        if name not in self._checkpointer.objects:
            raise LayoutError(f"There is no object {name!r}: declare it first by object().")
        self._checkpointer.bindings.set_object(name, value)
        self._checkpointer.add_object(name, value)
        return value

    def drop(self, name: str) -> None:
        """Stop saving an array or object; its name may be used again, for example for an array of another size."""
        self._check_open()
        self._checkpointer.drop(name)
        self._claimed.discard(name)

    @property
    def comm(self) -> Communicator:
        """A communicator of the session's ranks whose messages may cross safe points.

        It is an `mpi4py.MPI.Intracomm` like any other. What is in flight on it at a cut is saved with the epoch; after
        a restart late messages are served again, and those that were received already are not sent twice
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
            If it would count downwards, below 0, or over steps that were done already.
        """
        return self._walk(self._steps.left_of(builtins.range(*args)))

    def _walk(self, loop: builtins.range) -> Iterator[int]:
        clock, steps = time.perf_counter, self._steps
        if loop:
            steps.begin(loop)
        try:
            for step in loop:
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
        """Make a safe point here, for programs without a ``for`` loop; gives the number of the step that begins."""
        step = self._steps.next()
        if refresh_guard():
            tell_unguarded()
        if step >= self._next_step or time.perf_counter() >= self._next_poll:
            self._act(step)
        return step

    def save(self, *, next_step: bool | None = None) -> Outcome:
        """Make a checkpoint here and now, and wait until it is complete, or failed, on all ranks.

        Collective, as a barrier is: no rank goes on before all have called it. It is a safe point. The cuts of `range`
        and `step` need no waiting; this is for programs that have to know that their state is on disk before they do
        something else, and for those that are to be cut at some places alone.

        Parameters
        ----------
        next_step : bool, optional
            With which step a restart from this checkpoint begins. Inside a step False, the default, stands for the one
            that is under way: nothing of it may have been changed yet. True stands for the next one: all of this one is
            done. After a loop that came to its end, and before the first one, there is nothing to choose. A program
            that never calls `range` or `step` counts its steps by ``save(next_step=True)`` at the end of each.

        Returns
        -------
        Outcome
            The number of the epoch, and whether it is complete; false if it failed, and then says why. After a failure
            the older epoch stays.

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
            self._triggers.request(stop=stop)
            self._next_poll = 0.0

    def _act(self, step: int) -> None:
        """Do what there is to do at the safe point of `step`, and find out when to come here again."""
        driver = self._driver
        if driver.glance(step):
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
        source, self._source = self._source, None
        if source is not None:
            self._late = source.names() - self._claimed
        if choose.messages(self._coordinator, self._traffic, source, self.options.directory):
            self._checkpointer.traffic = self._traffic
        if source is not None:
            source.close()
        self._checkpointer.fix_layout(step, watch=self._loading is None)
        if isinstance(source, OtherRanks):  # not every one of these ranks has a share of each array
            self._late -= self._checkpointer.names
        self._checkpointer.provide_all(step, self._epochs, self._protected)
        if self.restored is not None and self._protected is not None:
            self._checkpointer.resume(self._protected, self.restored.epoch)
        restored = self.restored.epoch if self.restored is not None else None
        self._recorder.begin(restored, self._restart_seconds, *self._checkpointer.sizes)
        self._driver.start(self._restart_seconds)
        self._started = True
        self._driver.tell_taken_signals()
        if self._late:
            assert self.restored is not None
            names = visible(", ".join(sorted(self._late)))
            warn(
                f"Epoch {self.restored.epoch} of {self.options.directory} holds {names}, which "
                f"the program did not ask for before its first safe point; the next epochs will be without.",
                UserWarning,
            )

    def writable(self, array: NDArray[Any]) -> AbstractContextManager[None]:
        """Keep an array writable for others inside a ``with`` block, over cuts too; it is copied at them instead.

        Needed only for writers that the memory guard cannot see, of which ``docs/limits.md`` has a list: for example
        a library that makes system calls by itself, or another process that writes by ``process_vm_writev``.

        Parameters
        ----------
        array : ndarray
            A contiguous array or part of one.

        Raises
        ------
        LayoutError
            If it is not contiguous.
        """
        if not array.flags.forc:
            raise LayoutError("Only contiguous memory can be kept writable; give the whole array.")
        return pinned(array)

    # -- the rest ------------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Tell what checkpointing cost so far on this rank."""
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
        try:
            if self._loading is not None:
                self._loading.close()
            self._let_go()
            self._traffic.close()
            self._coordinator.close()
        finally:
            close_guard()

    def _leave(self) -> None:
        """End the session on this rank alone: save what is being saved, wait for nobody."""
        if self._closed or self._inherited:
            return
        self._end()
        try:
            if self._started:
                with suppress(MpickptError):
                    self._driver.leave()
        finally:
            try:
                if self._loading is not None:
                    self._leave_loading(self._loading)
                self._let_go()
                self._coordinator.leave()
            finally:
                close_guard()

    def _let_go(self) -> None:
        """Let go of arrays and directory, as far as the storage allows."""
        if not self._checkpointer.close(keep_lock=self._driver.storage_hung):
            self._driver.hang.left()

    @staticmethod
    def _leave_loading(loading: Loading) -> None:
        """Bring all into memory of its own, sound or not: the arrays stay usable, whoever writes to the slot then."""
        try:
            with suppress(MpickptError):
                loading.finish()
        finally:
            loading.close()

    def _end(self) -> None:
        self._closed = True
        self._next_step = -1
        if self._source is not None:
            self._source.close()
        self._source = None
        self._triggers.close()
        atexit.unregister(self._leave)

    def __enter__(self) -> Self:
        """Give the session."""
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

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("The session is closed: safe points and declarations belong before its end.")

    def _on_rebind(self, name: str, given: OnRebind | None) -> OnRebind:
        """Choose what a cut does when the program does not hold `name` any more."""
        if given is None:
            return self.options.on_rebind
        try:
            return parse_on_rebind(given)
        except UsageError as error:
            raise UsageError(f"Argument on_rebind= of {name!r}: {error}") from None

    def _source_for(self, name: str) -> Source | None:
        """Claim `name`; what it is to be restored from, if anything."""
        self._check_open()
        if name in self._claimed:
            raise LayoutError(f"The name {name!r} is taken already: each array and object needs one of its own.")
        if name in self._late:
            assert self.restored is not None
            raise LayoutError(
                f"{name!r} is in epoch {self.restored.epoch}, which was restored, but was not asked for before the "
                f"first safe point. Declare it earlier."
            )
        self._claimed.add(name)
        return self._source


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _disown() -> None:
    """Have the sessions that a child process made by fork has inherited do nothing."""
    for session in _sessions:
        session._inherited = True
        session._next_step, session._next_poll = NEVER, math.inf
        session._triggers.disown()


os.register_at_fork(after_in_child=_disown)


def _fill(name: str, out: NDArray[Any], fill: Fill) -> None:
    if callable(fill):
        result = fill(out)
        if result is not None and result is not out:
            raise UsageError(f"Array {name!r}: the fill function must fill the array that it gets, not return another.")
    elif fill is not None:
        check_values(name, fill)
        out[...] = fill
