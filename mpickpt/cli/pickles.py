"""Lists what a pickle contains without unpickling it: none of its classes is imported, and none of its code runs."""

from __future__ import annotations

import builtins
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpickpt.references import Apart, saved_array

REFERENCE = saved_array.__module__, saved_array.__name__
APART = f"{Apart.__module__}.{Apart.__name__}"

# Functions that some types are pickled as, with the names of the types.
MADE_BY = {
    "numpy.random._pickle.__generator_ctor": "numpy.random.Generator",
    "numpy._core.numeric._frombuffer": "numpy.ndarray",
    "numpy.core.numeric._frombuffer": "numpy.ndarray",
}


@dataclass
class _Reference:
    """Placeholder for a saved array, or for a part of one."""

    text: str


class _StandIn:
    """Placeholder for an object of a class that is not imported; accepts all that a pickle does to it."""

    name = ""
    first: object = None  # the first argument that it was made with

    def __new__(cls, *args: object, **_: object) -> _StandIn:
        made = super().__new__(cls)
        made.first = args[0] if args else None
        return made

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, *_: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass

    def add(self, _: object) -> None:
        pass


class _Reader(pickle.Unpickler):
    def __init__(self, payload: bytes) -> None:
        super().__init__(io.BytesIO(payload))
        self.arrays: list[str] = []

    def find_class(self, module: str, name: str) -> Callable[..., object]:
        if (module, name) == REFERENCE:
            return self._refer
        full = name if module == builtins.__name__ else f"{module}.{name}"
        return type("Named", (_StandIn,), {"name": full})

    def _refer(self, name: object, *part: object) -> _Reference:
        """Return the placeholder for a saved array."""
        if str(name) not in self.arrays:
            self.arrays.append(str(name))
        return _Reference(f"{'part of ' if part else ''}array {name}")


def types_in(payload: bytes) -> dict[str, str]:
    """Return the names of the objects in a rank's payload, with their types and the saved arrays in them.

    Raises
    ------
    ValueError
        If the payload is not a pickled dictionary.
    """
    try:
        reader = _Reader(payload)
        found: Any = reader.load() if payload else {}
        if isinstance(found, _StandIn) and found.name == APART:
            names = [str(name) for name in found.first]  # type: ignore[attr-defined]
            return {name: _described(reader) for name in names}
        return {str(name): _type_name(value) for name, value in found.items()}
    except Exception as error:
        raise ValueError(f"they are no pickled dictionary ({error})") from None


def _described(reader: _Reader) -> str:
    """Name the type of the next object, and the saved arrays that it is the first to refer to."""
    reader.arrays = []
    value = reader.load()
    if isinstance(value, _Reference) or not reader.arrays:
        return _type_name(value)
    several = "s" if len(reader.arrays) > 1 else ""
    return f"{_type_name(value)} with array{several} {', '.join(reader.arrays)}"


def _type_name(value: object) -> str:
    if isinstance(value, _Reference):
        return value.text
    if isinstance(value, type) and issubclass(value, _StandIn):
        return f"a reference to {value.name}"
    if not isinstance(value, _StandIn):
        return type(value).__name__
    if isinstance(value.first, type) and issubclass(value.first, _StandIn):  # made by a function of its class
        return value.first.name
    return MADE_BY.get(value.name, value.name)
