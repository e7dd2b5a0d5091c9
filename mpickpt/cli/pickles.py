"""What is in a pickle, without unpickling it: no class of it is imported and no code of it runs."""

from __future__ import annotations

import builtins
import io
import pickle
from typing import Any

# What some types are pickled as: a function of another name.
MADE_BY = {
    "numpy.random._pickle.__generator_ctor": "numpy.random.Generator",
    "numpy._core.numeric._frombuffer": "numpy.ndarray",
    "numpy.core.numeric._frombuffer": "numpy.ndarray",
}


class _Stand:
    """Stands for an object of a class that is not imported; takes whatever a pickle does to it."""

    name = ""
    first: object = None  # the first argument that it was made with

    def __new__(cls, *args: object, **_: object) -> _Stand:
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
    def find_class(self, module: str, name: str) -> type:
        full = name if module == builtins.__name__ else f"{module}.{name}"
        return type("Stand", (_Stand,), {"name": full})


def types_in(payload: bytes) -> dict[str, str]:
    """Give the names of the objects in a rank's payload, and the names of their types.

    Raises
    ------
    ValueError
        If the payload is no pickle of a dictionary.
    """
    try:
        found: Any = _Reader(io.BytesIO(payload)).load() if payload else {}
        return {str(name): _type_name(value) for name, value in found.items()}
    except Exception as error:
        raise ValueError(f"they are no pickled dictionary ({error})") from None


def _type_name(value: object) -> str:
    if isinstance(value, type) and issubclass(value, _Stand):
        return f"a reference to {value.name}"
    if not isinstance(value, _Stand):
        return type(value).__name__
    if isinstance(value.first, type) and issubclass(value.first, _Stand):  # made by a function of its class
        return value.first.name
    return MADE_BY.get(value.name, value.name)
