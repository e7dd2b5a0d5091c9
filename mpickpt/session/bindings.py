"""Whether the program still holds what it was given: its references to the memory of each array, and to each object.

A program that binds a name to another array (``u = u * 1.01``) goes on in memory that nobody saves, and a restart would
bring back old values. The saved memory does not show that. But once the program has no reference to it, nothing that
the program does can reach it: that is checked before each cut.

What counts is the owner of the memory, at the end of an array's chain of bases: a view, a container, a closure or a
library that keeps the buffer hold it as well. All owners are counted in one call, together with a sentinel that has as
many references of ours and none of the program, so that no version of Python has to be known.
"""

from __future__ import annotations

import array as plain_array
import datetime
import decimal
import enum
import fractions
import gc
import mmap
import pathlib
import sys
import types
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import UsageError, warn
from mpickpt.options import OnRebind

MOST_PARTS = 100_000  # of an object that are searched for one that the program holds

# Memory that belongs to one of these is gone when nothing refers to it. Other libraries may know of theirs otherwise.
_OWNERS = (bytearray, plain_array.array, mmap.mmap)
_IMMUTABLE = (
    *(int, float, complex, str, bytes, type(None), range, np.bool_, np.number, np.character, np.datetime64),
    *(np.timedelta64, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal),
    *(fractions.Fraction, pathlib.PurePath, uuid.UUID, enum.Enum),
)
# No part of one object alone: many refer to them, and from them everything can be reached.
_SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, np.dtype, np.ufunc)


class _Keeper:
    """The one thing of ours that refers to the owner of an array's memory; the base of our own view of that memory."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, owner: object, address: int, nbytes: int) -> None:
        self._owner = owner
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, False)}


@dataclass(eq=False)
class _Watch:
    """A name, and what is known of how the program holds what it names.

    Attributes
    ----------
    name : str
        Its name.
    kind : str
        "array" or "object".
    on_rebind : "error", "warn" or "ignore"
        What happens when it is lost.
    is_certain : bool
        Only references lead to it; otherwise a library may know its memory by another way.
    owner_id : int
        What it names belongs to the object of this `id`; 0 if its references are not counted.
    type : str
        Name of the object's type, if that cannot change.
    cuts : int
        How many were checked.
    is_set : bool
        `set_object` named it since the last cut.
    by_value : bool
        The program did not hold it even at the first cut after `set_object`: it tells of each new value.
    told : bool
        It was warned of.
    """

    name: str
    kind: str
    on_rebind: OnRebind
    is_certain: bool = True
    owner_id: int = 0
    type: str = ""
    cuts: int = 0
    is_set: bool = False
    by_value: bool = False
    told: bool = False


class Bindings:
    """The names of a session, and the owners of what they name.

    Parameters
    ----------
    rank : int
        For the messages.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._watches: dict[str, _Watch] = {}
        # One entry an owner: it has one reference from here, and one from each of its watches' keepers or objects.
        self._owners: list[object] = []
        self._members: list[list[_Watch]] = []
        self._places: dict[int, int] = {}
        self._frozen: list[_Watch] = []
        self._were_set: list[_Watch] = []  # by `set_object`, since the last cut
        self._sentinel = object()  # the second reference beside that of the list in `_counts`

    # -- what is declared ----------------------------------------------------------------------------------------

    def keep(self, name: str, array: NDArray[Any], on_rebind: OnRebind, *, is_ours: bool) -> NDArray[np.uint8]:
        """Watch over a contiguous array, and give a view of its bytes that is to be used in its place from now on.

        Parameters
        ----------
        name, on_rebind
            As declared.
        array : ndarray
            What the program has.
        is_ours : bool
            Its memory was allocated for it, so that the program knows it by this array alone.
        """
        owner, is_certain = owner_of(array)
        if owner is not None:
            self._add(_Watch(name, "array", on_rebind, is_certain or is_ours), owner)
        address, _ = array.__array_interface__["data"]
        return np.asarray(_Keeper(array if owner is None else owner, address, array.nbytes))

    def add_object(self, name: str, value: object, on_rebind: OnRebind, *, is_set: bool = False) -> None:
        """Watch over an object, which has one more reference of ours: that by which it is saved."""
        watch = _Watch(name, "object", on_rebind, is_set=is_set)
        if is_set:
            self._were_set.append(watch)
        if not _is_immutable(value):
            self._add(watch, value)
            return
        self._watches[name] = watch
        if not is_set:
            watch.type = type(value).__name__
            self._frozen.append(watch)

    def set_object(self, name: str, value: object) -> None:
        """Watch over another object in the place of one."""
        on_rebind = self._watches[name].on_rebind
        self.drop(name)
        self.add_object(name, value, on_rebind, is_set=True)

    def drop(self, name: str) -> None:
        """Watch over an array or object no longer."""
        watch = self._watches.pop(name, None)
        if watch is None:
            return
        for several in (self._frozen, self._were_set):
            if watch in several:
                several.remove(watch)
        place = self._places.get(watch.owner_id)
        if place is None:
            return
        self._members[place].remove(watch)
        if not self._members[place]:
            del self._places[watch.owner_id]
            owner, members = self._owners.pop(), self._members.pop()
            if place < len(self._owners):
                self._owners[place], self._members[place] = owner, members
                self._places[id(owner)] = place

    def close(self) -> None:
        """Let go of everything."""
        for several in (self._watches, self._owners, self._members, self._places, self._frozen, self._were_set):
            several.clear()

    def _add(self, watch: _Watch, owner: object) -> None:
        self._watches[watch.name] = watch
        watch.owner_id = id(owner)
        place = self._places.setdefault(watch.owner_id, len(self._owners))
        if place == len(self._owners):
            self._owners.append(owner)
            self._members.append([])
        self._members[place].append(watch)

    # -- at a cut ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Report what the program does not hold any more, before a cut saves it as if it did.

        Raises
        ------
        UsageError
            If any of it was declared with ``on_rebind="error"``.
        """
        if self._frozen:
            self._check_frozen()
        lost = self._lost()
        errors = [watch for watch in lost if watch.on_rebind == "error" and watch.is_certain]
        if errors:
            raise UsageError(self._lost_text(errors))
        if certain := [watch for watch in lost if watch.is_certain and not watch.told]:
            warn(self._lost_text(certain), UserWarning)
        if doubtful := [watch for watch in lost if not watch.is_certain and not watch.told]:
            warn(self._doubt_text(doubtful), UserWarning)
        for watch in lost:
            watch.told = True

    def _lost(self) -> list[_Watch]:
        """Find what nothing but mpickpt refers to any more."""
        lost = []
        *counts, ours = self._counts()
        pairs = zip(counts, self._members, strict=True)
        places = [place for place, (count, members) in enumerate(pairs) if count < ours + len(members)]
        if self._were_set:  # these too: from now on they are as any other
            places = sorted({*places, *(self._places[watch.owner_id] for watch in self._were_set if watch.owner_id)})
            self._were_set = []
        for place in places:
            members = self._members[place]
            is_held = counts[place] >= ours + len(members)
            for watch in members:
                watch.by_value = not is_held and (watch.is_set or watch.by_value)
                watch.is_set = False
                if is_held or watch.by_value or watch.on_rebind == "ignore":
                    continue
                if watch.kind == "array" or not self._is_held_in_part(self._owners[place]):
                    lost.append(watch)
        return lost

    def _counts(self) -> list[int]:
        """Count the references to each owner, and last to something that has one of ours from the list, and another."""
        self._owners.append(self._sentinel)
        try:
            return list(map(sys.getrefcount, self._owners))
        finally:
            self._owners.pop()

    def _is_held_in_part(self, root: object) -> bool:
        """Return whether the program holds something that belongs to an object, as that whose attribute it took.

        The same sum as that of Python's own collector: what has more references than its fellow parts account for is
        referred to from elsewhere.
        """
        parts, inner = self._parts_of(root)
        if len(parts) > MOST_PARTS:
            return True
        parts.append(object())
        *counts, ours = map(sys.getrefcount, parts)
        return any(count > ours + refs for count, refs in zip(counts[1:], inner[1:], strict=True))

    def _parts_of(self, root: object) -> tuple[list[object], list[int]]:
        """List what belongs to an object, itself first, and how often the others refer to each."""
        parts, inner = [root], [0]
        places = {id(root): 0}
        for part in parts:
            for child in _referents(part):
                if isinstance(child, _SHARED) or _is_immutable(child) or self._is_saved(child):
                    continue
                place = places.setdefault(id(child), len(parts))
                if place == len(parts):
                    parts.append(child)
                    inner.append(0)
                inner[place] += 1
            if len(parts) > MOST_PARTS:
                break
        return parts, inner

    def _is_saved(self, value: object) -> bool:
        """Return whether a value is a saved array: to hold that says nothing of the object around it."""
        return isinstance(value, np.ndarray) and id(owner_of(value)[0]) in self._places

    # -- what is told --------------------------------------------------------------------------------------------

    def _check_frozen(self) -> None:
        """Warn of values that cannot change, and that the program has not replaced by the second cut."""
        told = []
        for watch in self._frozen:
            watch.cuts += 1
            if watch.cuts > 1 and watch.on_rebind != "ignore":
                told.append(watch)
        self._frozen = [watch for watch in self._frozen if watch.cuts < 2]
        if told and self._rank == 0:  # all ranks declare alike
            values = ", ".join(f"{watch.name!r} ({watch.type})" for watch in told)
            one = told[0].name
            warn(
                f"The value of an object that cannot change was not replaced by the second cut: {values}. Each epoch "
                f"saves the value that it was declared with. Tell of each new one, ckpt.set_object({one!r}, value), or "
                f"keep it in something that changes in place, such as a dict. For a constant: on_rebind='ignore'.",
                UserWarning,
            )

    def _lost_text(self, lost: Sequence[_Watch]) -> str:
        return (
            f"Rank {self._rank}: the program does not hold {_names(lost)} any more, as after u = u * 2: what it "
            f"computes now is not saved, and a restart would bring back old values. Write into an array (u[:] = u * 2, "
            f"u *= 2), change an object in place or tell of another one (ckpt.set_object()), and ckpt.drop() what is "
            f"not to be saved any longer. If it is meant so, declare it with on_rebind='ignore'."
        )

    def _doubt_text(self, lost: Sequence[_Watch]) -> str:
        return (
            f"Rank {self._rank}: nothing in Python refers to {_names(lost)} any more. The memory belongs to another "
            f"library. If that still computes in it, declare it with on_rebind='ignore'; otherwise what the program "
            f"computes now is not saved."
        )


def owner_of(array: NDArray[Any]) -> tuple[object, bool]:
    """Find what the memory of an array belongs to, and whether only references lead to it.

    Returns
    -------
    owner : object
        The last array of the chain of bases, or what is behind it. None if that is not known: the memory belongs
        to a library that has no object for it, such as a module of Fortran.
    is_certain : bool
        Whether it cannot be reached without a reference to `owner`.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.base is None:
            return (owner, True) if owner.flags.owndata else (None, False)
        owner = owner.base
    return owner, isinstance(owner, _OWNERS)


def _referents(part: object) -> list[object]:
    """List what an object refers to, its dictionary too: from Python 3.13 on the collector may leave that out."""
    if not type(part).__dictoffset__:
        return gc.get_referents(part)
    attributes = object.__getattribute__(part, "__dict__")  # first: up to 3.12 it takes the values over when it is made
    found = gc.get_referents(part)
    return found if any(child is attributes for child in found) else [*found, attributes]


def _is_immutable(value: object) -> bool:
    """Return whether a value can never become another one in place."""
    if isinstance(value, tuple | frozenset):
        return all(map(_is_immutable, value))
    return isinstance(value, _IMMUTABLE)


def _names(watches: Sequence[_Watch]) -> str:
    return ", ".join(f"{watch.kind} {watch.name!r}" for watch in watches)
