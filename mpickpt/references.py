"""Saved arrays inside pickled objects: they are pickled by name, so that they are the same array after a restart.

The pickle of an object that holds a saved array (``sim.u``) would contain a copy of the array at each cut, and after a
restart the object would hold another array than the saved one. So a saved array, or a view of one, is pickled as a call
of `saved_array` with its name and, for a view, the part of its bytes that it shows. The unpickler resolves the name: a
restart to the array that the program has declared, `mpickpt.Checkpoint` to the one in the file.

Objects without such arrays are one pickle of a dictionary. Objects with such arrays are pickled one after another with
one memo, so that they still share what they shared. An object can then be unpickled when its own arrays are there, even
if those of other objects are not.
"""

from __future__ import annotations

import io
import pickle
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import LayoutError
from mpickpt.layout.arrays import ArraySpec
from mpickpt.layout.subclasses import is_plain

PROTOCOL = 5
NO_OBJECTS = pickle.dumps({}, PROTOCOL)

Resolve = Callable[[str, "Part | None", str], Any]  # an array's name, a part of it, the object that holds it


class Part(NamedTuple):
    """The part of a saved array's bytes that a view shows.

    Attributes
    ----------
    dtype, shape, strides
        Those of the view.
    offset : int
        Offset of its first cell, in bytes from the beginning of the array's memory.
    writeable : bool
        Whether it may be written to.
    kind : type or None
        Its class, if it is not `numpy.ndarray`.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    writeable: bool
    kind: type[Any] | None

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the view of `array`, which is contiguous."""
        plain = np.asarray(array)
        straight = plain if plain.flags.c_contiguous else plain.T
        memory = straight.reshape(-1).view(np.uint8)
        view: NDArray[Any] = np.ndarray(self.shape, self.dtype, memory, self.offset, self.strides)
        view.flags.writeable = self.writeable and view.flags.writeable
        return view if self.kind is None else view.view(self.kind)


def saved_array(name: str, *part: object) -> NoReturn:
    """Represent a saved array, or a view of one, in a pickle; the fields of `Part` follow its name.

    Only `mpickpt.Session.object` and `mpickpt.Checkpoint.objects`, which know the arrays, can unpickle it.
    """
    raise LayoutError(f"A pickle refers to the saved array {name!r}: use mpickpt.Checkpoint(...).objects(rank).")


def masked_array(data: NDArray[Any], mask: Any, fill_value: Any, is_hard: bool) -> NDArray[Any]:  # noqa: ANN401
    """Join data and mask, at least one of which is a saved array."""
    joined: NDArray[Any] = np.ma.MaskedArray(data, mask=mask, copy=False, fill_value=fill_value, hard_mask=is_hard)
    return joined


@dataclass(frozen=True)
class Apart:
    """The head of objects that are pickled one after another: their names."""

    names: tuple[str, ...]

    def __reduce__(self) -> tuple[type[Apart], tuple[tuple[str, ...]]]:
        """Return the class and the names."""
        return Apart, (self.names,)


@dataclass(frozen=True)
class Saved:
    """A saved array that objects may hold.

    Attributes
    ----------
    spec : ArraySpec
        Its description.
    address : int
        Address of its first byte.
    kind : type
        Its class.
    identity : callable
        Returns the array of the program, or None if it is gone; identifies an array without bytes.
    """

    spec: ArraySpec
    address: int
    kind: type[Any]
    identity: Callable[[], object | None]


class Places:
    """Finds the saved array that memory belongs to."""

    def __init__(self, saved: Iterable[Saved]) -> None:
        saved = list(saved)
        self._full = sorted((one for one in saved if one.spec.nbytes), key=lambda one: one.address)
        self._starts = [one.address for one in self._full]
        self._empty = [one for one in saved if not one.spec.nbytes]

    def find(self, array: NDArray[Any]) -> tuple[Saved, int] | Saved | None:
        """Return the saved array that holds all of `array`, and the offset in bytes of the first cell of `array` in it.

        Without the offset if it holds only some of the memory; None if there is no such array.
        """
        if not array.size or not array.itemsize:
            same = (one for one in self._empty if one.identity() is array)
            return next(((one, 0) for one in same), None)
        if not self._full:
            return None
        first = low = array.__array_interface__["data"][0]
        high = first + array.itemsize
        for count, step in zip(array.shape, array.strides, strict=True):
            low, high = (low, high + (count - 1) * step) if step > 0 else (low + (count - 1) * step, high)
        place = bisect_right(self._starts, low) - 1
        before = self._full[place] if place >= 0 else None
        if before is not None and low < before.address + before.spec.nbytes:
            return (before, first - before.address) if high <= before.address + before.spec.nbytes else before
        following = self._full[place + 1] if place + 1 < len(self._full) else None
        return following if following is not None and following.address < high else None


@dataclass
class Pickled:
    """The saved arrays found in objects that were pickled, as pairs of the names of an object and an array.

    Attributes
    ----------
    references : set
        Objects, with the saved arrays that they are the first to refer to.
    copies : set
        Objects whose pickle contains a copy of a saved array's memory: they hold it as another class of array, or as
        one that extends beyond the saved memory.
    """

    references: set[tuple[str, str]] = field(default_factory=set)
    copies: set[tuple[str, str]] = field(default_factory=set)

    @property
    def is_any(self) -> bool:
        """Whether any object holds memory of a saved array."""
        return bool(self.references or self.copies)


def out_of_order(found: Pickled, declared: Mapping[str, int]) -> set[tuple[str, str]]:
    """Return the objects with arrays that were declared after them: a restart in the same order would refuse them."""
    return {(holder, name) for holder, name in found.references if declared[name] > declared[holder]}


class _Pickler(pickle.Pickler):
    """Pickles saved arrays as references."""

    def __init__(self, file: io.BytesIO, places: Places) -> None:
        super().__init__(file, PROTOCOL)
        self._places = places
        self.references: set[str] = set()
        self.copies: set[str] = set()

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401  (pickle's own)
        """Return how to rebuild a value that is a saved array or a part of one."""
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        if type(obj) is np.ma.MaskedArray:
            return self._masked(obj)
        found = self._places.find(obj)
        if found is None:
            return NotImplemented
        if isinstance(found, Saved) or not is_plain(obj):
            self.copies.add((found if isinstance(found, Saved) else found[0]).spec.name)
            return NotImplemented
        saved, offset = found
        self.references.add(saved.spec.name)
        kind = None if type(obj) is np.ndarray else type(obj)
        part = Part(obj.dtype, obj.shape, obj.strides, offset, obj.flags.writeable, kind)
        return saved_array, (saved.spec.name, *(() if _is_all(part, obj, saved) else part))

    def _masked(self, value: np.ma.MaskedArray[Any, Any]) -> Any:  # noqa: ANN401  (pickle's own)
        mask: Any = value.mask  # a view of the array's own, or nomask
        if self._places.find(value.data) is None and (mask is np.ma.nomask or self._places.find(mask) is None):
            return NotImplemented
        return masked_array, (value.data, mask, value.fill_value, value.hardmask)


def _is_all(part: Part, value: NDArray[Any], saved: Saved) -> bool:
    """Whether a view shows a saved array as it was declared, so that it can be the array itself."""
    spec = saved.spec
    straight = value.flags.c_contiguous if spec.order == "C" else value.flags.f_contiguous
    same = (part.dtype, part.shape) == (spec.dtype, spec.shape) and type(value) is saved.kind
    return same and straight and part.writeable


def dump(objects: Mapping[str, object], places: Places, *, apart: bool) -> tuple[bytes, Pickled]:
    """Pickle objects, with references in the place of saved arrays.

    Parameters
    ----------
    objects : mapping
        By name.
    places : Places
        Of the saved arrays.
    apart : bool
        Pickle them one after another without a first try as one dictionary, because the last cut found references.
    """
    if not objects:
        return NO_OBJECTS, Pickled()
    if not apart:
        file = io.BytesIO()
        pickler = _Pickler(file, places)
        pickler.dump(dict(objects))
        if not pickler.references and not pickler.copies:
            return file.getvalue(), Pickled()
    file, found = io.BytesIO(), Pickled()
    pickler = _Pickler(file, places)
    pickler.dump(Apart(tuple(objects)))
    for name, value in objects.items():
        pickler.references, pickler.copies = set(), set()
        pickler.dump(value)
        found.references |= {(name, array) for array in pickler.references}
        found.copies |= {(name, array) for array in pickler.copies}
    return file.getvalue(), found


class _Unpickler(pickle.Unpickler):
    """Unpickles references by `resolve`."""

    def __init__(self, file: io.BytesIO, resolve: Resolve) -> None:
        super().__init__(file)
        self._resolve = resolve

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  (pickle's own)
        """Return the object that a global name in the pickle means."""
        if (module, name) == (__name__, saved_array.__name__):
            return self._resolve
        return super().find_class(module, name)


class PickledObjects:
    """The objects of one rank; if any of them holds a saved array, they are unpickled on demand.

    Parameters
    ----------
    payload : bytes
        What `dump` returned; empty if there are none.
    resolve : callable
        Takes the name of an array, a `Part` for a view (None otherwise), and the name of the object that holds it;
        returns the array.
    """

    def __init__(self, payload: bytes, resolve: Resolve) -> None:
        self._resolve = resolve
        self._holder = ""
        self._unpickler: _Unpickler | None = _Unpickler(io.BytesIO(payload), self._resolved)
        head: Any = self._unpickler.load() if payload else {}
        self._loaded: dict[str, Any] = {} if isinstance(head, Apart) else head
        self.names: tuple[str, ...] = head.names if isinstance(head, Apart) else tuple(head)
        self._error: BaseException | None = None

    def _resolved(self, name: str, *part: Any) -> Any:  # noqa: ANN401  (arrays of any class)
        return self._resolve(name, Part(*part) if part else None, self._holder)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  (objects may be anything)
        """Return an object, which is one of `names`."""
        while name not in self._loaded:
            if self._error is not None:
                raise self._error
            assert self._unpickler is not None
            self._holder = self.names[len(self._loaded)]
            try:
                self._loaded[self._holder] = self._unpickler.load()
            except BaseException as error:
                self._error = error
                raise
        return self._loaded[name]

    def close(self) -> None:
        """Release the objects, and the arrays in them."""
        self._unpickler = None
        self._loaded = {}

    def all(self) -> dict[str, Any]:
        """Return all objects, and close."""
        found = {name: self[name] for name in self.names}
        self.close()
        return found
