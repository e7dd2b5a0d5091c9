"""What a program declares to a session: arrays and objects, saved from then on, and restored if there is something."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mpickpt.errors import LayoutError, UsageError, warn
from mpickpt.layout.arrays import ArraySpec
from mpickpt.layout.parts import Part
from mpickpt.layout.subclasses import check_plain, check_values
from mpickpt.options import OnRebind, Options, parse_on_rebind
from mpickpt.restart.sources import Remap, Source
from mpickpt.session.checkpointer import Checkpointer
from mpickpt.snapshot.guard import pinned
from mpickpt.stats import Restored
from mpickpt.texts import visible

T = TypeVar("T")
A = TypeVar("A", bound=NDArray[Any])

Fill = ArrayLike | Callable[[NDArray[Any]], object] | None


class Declarations:
    """The part of a `Session` that declares what is saved.

    Parameters
    ----------
    checkpointer : Checkpointer
        Saves it.
    options : Options
        The options in force.
    restored : Restored or None
        What the session went back to; None after a fresh start.
    source : Source or None
        Where arrays and objects come from; None for a fresh start.
    """

    def __init__(
        self, checkpointer: Checkpointer, options: Options, restored: Restored | None, source: Source | None
    ) -> None:
        self.options = options
        self.restored = restored
        self._checkpointer = checkpointer
        self._source = source
        self._closed = False
        self._claimed: set[str] = set()
        self._late: set[str] = set()  # names in what was restored that the program did not ask for

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
        self._checkpointer.regions.add(spec, out, mode, owned=True)
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
        self._checkpointer.regions.check(name, array)
        source = self._source_for(name)
        if source is not None:
            source.read_into(spec, array, remap)
            source.hand_out(name, array)
        self._checkpointer.regions.add(spec, array, mode, owned=False)
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
            Any text that is not the name of an array or of another object.
        value : object
            Used if there is nothing to restore.
        replicated : bool
            Whether it is the same on all ranks; a restart on another number of ranks then takes rank 0's.
        remap : callable, optional
            As for `array`, with the objects of the old ranks. Saved arrays in these are copies of the old ranks' parts:
            put this rank's own array in their place.
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
        self._checkpointer.regions.add_object(name, value, mode)
        return value

    def set_object(self, name: str, value: T) -> T:
        """Put another object in the place of one that `object` declared.

        Returns
        -------
        object
            `value` itself.

        Raises
        ------
        LayoutError
            If no object has this name.
        """
        self._check_open()
        self._checkpointer.regions.set_object(name, value)
        return value

    def drop(self, name: str) -> None:
        """Stop saving an array, object or file; its name may be used again, for example for an array of another size.

        Raises
        ------
        LayoutError
            If no array, object or file has this name.
        """
        self._check_open()
        self._checkpointer.regions.drop(name)
        self._claimed.discard(name)

    def writable(self, array: NDArray[Any]) -> AbstractContextManager[None]:
        """Pin an array inside a ``with`` block: it stays writable over cuts, which copy it instead of protecting it.

        Only untracked writers need this, of which ``docs/limits.md`` has a list: for example a library that makes
        system calls by itself, or another process that writes by ``process_vm_writev``.

        Parameters
        ----------
        array : ndarray
            A contiguous array or part of one.

        Raises
        ------
        LayoutError
            If it is no array, or not contiguous.
        """
        if not isinstance(array, np.ndarray):
            raise LayoutError(f"writable() needs a numpy array, not {type(array).__name__}.")
        if not array.flags.forc:
            raise LayoutError("Only contiguous memory can be kept writable; give the whole array.")
        return pinned(array)

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

    def _release_source(self) -> Source | None:
        """Restore nothing from now on: what the program has not asked for comes too late."""
        source, self._source = self._source, None
        if source is not None:
            self._late = source.names() - self._claimed
        return source

    def _tell_late(self) -> None:
        """Warn of what was not asked for: the next epochs are without."""
        if self._late:
            assert self.restored is not None
            names = visible(", ".join(sorted(self._late)))
            warn(
                f"Epoch {self.restored.epoch} of {self.options.directory} holds {names}, which "
                f"the program did not ask for before its first safe point; the next epochs will be without.",
                UserWarning,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("The session is closed: safe points and declarations belong before its end.")


def _fill(name: str, out: NDArray[Any], fill: Fill) -> None:
    if callable(fill):
        result = fill(out)
        if result is not None and result is not out:
            raise UsageError(f"Array {name!r}: the fill function must fill the array that it gets, not return another.")
    elif fill is not None:
        check_values(name, fill)
        out[...] = fill
