"""What is saved of this rank: the arrays, objects and files that the program declared, by name."""

from __future__ import annotations

import weakref
from typing import Any

from numpy.typing import NDArray

from mpickpt.errors import LayoutError, warn
from mpickpt.layout.arrays import ArraySpec
from mpickpt.layout.extents import Extents
from mpickpt.options import OnRebind
from mpickpt.references import Pickled, Places, Saved, dump, out_of_order
from mpickpt.session.appended import AppendedFiles
from mpickpt.session.bindings import Bindings
from mpickpt.session.mappings import Region


class Regions:
    """The declared arrays, whose memory is saved as it is, and objects, which are pickled at each cut.

    Parameters
    ----------
    rank : int
        This rank, for messages.

    Attributes
    ----------
    files : AppendedFiles
        Files that the program appends to, whose lengths are saved as objects.
    """

    def __init__(self, rank: int) -> None:
        self.files = AppendedFiles(rank)
        self._bindings = Bindings(rank)
        self._extents = Extents()
        self._arrays: dict[str, Region] = {}
        self._objects: dict[str, Any] = {}
        self._declared: dict[str, int] = {}  # the order in which names were first declared
        self._places: Places | None = None  # where the arrays lie, once it was asked
        self._holds_arrays = False  # some object does
        self._told: set[tuple[str, str]] = set()

    def check(self, name: str, array: NDArray[Any]) -> None:
        """Refuse an array that has memory in common with another; raises `LayoutError`."""
        self._extents.check(name, array)

    def add(self, spec: ArraySpec, array: NDArray[Any], on_rebind: OnRebind, *, owned: bool) -> None:
        """Save one more array from the next cut on; `owned`, its memory is the session's."""
        memory = self._bindings.keep(spec.name, array, on_rebind, is_ours=owned)
        self._declared.setdefault(spec.name, len(self._declared))
        self._arrays[spec.name] = Region(spec, memory, owned, type(array), weakref.ref(array))
        self._extents.add(spec.name, memory)
        self._places = None

    def add_object(self, name: str, value: object, on_rebind: OnRebind) -> None:
        """Save one more object from the next cut on."""
        self._bindings.add_object(name, value, on_rebind)
        self._declared.setdefault(name, len(self._declared))
        self._objects[name] = value

    def set_object(self, name: str, value: object) -> None:
        """Save another object in the place of one that was added; raises `LayoutError` if there is none."""
        if name not in self._objects:
            raise LayoutError(f"There is no object {name!r}: declare it first by object().")
        self._bindings.set_object(name, value)
        self._objects[name] = value

    def drop(self, name: str) -> None:
        """Save an array, object or file no longer; raises `LayoutError` if there is none."""
        self._bindings.drop(name)
        if name in self._objects:
            del self._objects[name]
        elif name in self._arrays:
            del self._arrays[name]
            self._extents.drop(name)
            self._places = None
        elif name in self.files:
            self.files.drop(name)
        else:
            raise LayoutError(f"There is no array, object or file {name!r} to drop.")

    def check_bindings(self) -> None:
        """Find out whether the program still holds all of it; raises `UsageError` where it does not."""
        self._bindings.check()

    @property
    def arrays(self) -> list[Region]:
        """The arrays, in the order in which they were added."""
        return list(self._arrays.values())

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(region.spec.nbytes for region in self._arrays.values())

    def pickled(self) -> bytes:
        """Pickle the objects, with the saved arrays in them by name; raises `LayoutError` if that cannot be done."""
        saved = {**self.files.saved(), **self._objects}  # files first: no array is needed to read them
        if self._places is None:
            self._places = Places(
                Saved(region.spec, region.memory.ctypes.data, region.kind, region.identity)
                for region in (self._arrays.values() if saved else ())
            )
        try:
            payload, found = dump(saved, self._places, apart=self._holds_arrays)
        except Exception as error:
            for name, value in self._objects.items():
                try:
                    dump({name: value}, self._places, apart=False)
                except Exception as wrong:
                    raise LayoutError(f"Object {name!r} cannot be pickled: {wrong}") from wrong
            raise LayoutError(f"The objects cannot be pickled together: {error}") from error
        self._holds_arrays = found.is_any
        if found.is_any:
            self._tell_of_arrays(found)
        return payload

    def _tell_of_arrays(self, found: Pickled) -> None:
        """Warn once of arrays in objects that would not be the same ones after a restart."""
        for holder, name in sorted(found.copies - self._told):
            warn(
                f"Object {holder!r} holds memory of array {name!r} in a way that cannot be named (another class of "
                f"array, or one that goes beyond it): it is copied at each cut, and after a restart it is an array of "
                f"its own. Let the object hold the array or a view of it.",
                UserWarning,
            )
        late = out_of_order(found, self._declared)
        for holder, name in sorted(late - self._told):
            warn(
                f"Object {holder!r} holds array {name!r}, which was declared after it. A restart in this order fails: "
                f"declare the array before the object.",
                UserWarning,
            )
        self._told |= found.copies | late

    def close(self) -> None:
        """Let go of all of it."""
        self._bindings.close()
        self.files.close()
        self._arrays.clear()
        self._extents.clear()
