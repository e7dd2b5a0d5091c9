"""Names of arrays, and of the dimensions of global arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mpickpt.errors import LayoutError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


def check_name(name: object) -> None:
    """Refuse names that would not make a plain dataset name.

    Raises
    ------
    LayoutError
        Unless `name` consists of letters, digits, ``_``, ``.`` and ``-`` and starts with a letter, digit or ``_``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise LayoutError(
            f"The name {name!r} will not do: letters, digits, '_', '.', '-' are allowed, the first not '.' or '-'."
        )


def as_dims(value: str | Iterable[str] | None, shape: tuple[int, ...]) -> tuple[str, ...] | None:
    """Return names of the axes of a global array of a shape as a tuple; None, and that of no axes, is None.

    Raises
    ------
    LayoutError
        If a name will not do, two are the same, or there is not one for each axis.
    """
    try:
        dims = (value,) if isinstance(value, str) else tuple(value or ())
    except TypeError:
        raise LayoutError(f"The dims of a part must be a tuple of names, not {value!r}.") from None
    for name in dims:
        check_name(name)
    if value is not None and len(dims) != len(shape):
        raise LayoutError(
            f"The dims {dims} of a part name {len(dims)} axes, but its global shape {shape} has {len(shape)}."
        )
    if len(set(dims)) < len(dims):
        raise LayoutError(f"The dims {dims} of a part must be different names.")
    return dims or None


def check_dimensions(arrays: Iterable[tuple[str, tuple[int, ...], tuple[str, ...] | None]]) -> None:
    """Check that a name of a dimension means the same in all global arrays.

    Parameters
    ----------
    arrays : iterable of (str, tuple of int, tuple of str or None)
        Name, global shape and names of the axes of each array; an array may be there several times.

    Raises
    ------
    LayoutError
        If two arrays have another length along one dimension, or an array has the name of a dimension and is not its
        coordinate.
    """
    found = {name: (shape, dims) for name, shape, dims in arrays}
    lengths: dict[str, tuple[int, str]] = {}
    for array, (shape, dims) in found.items():
        for name, length in zip(dims or (), shape if dims else (), strict=True):
            first, other = lengths.setdefault(name, (length, array))
            if first != length:
                raise LayoutError(
                    f"The dimension {name!r} has {first} cells in array {other!r}, but {length} in array {array!r}. "
                    "Give the dimensions of one of them other names."
                )
    for name, (_, array) in lengths.items():
        if name in found and found[name][1] != (name,):
            raise LayoutError(
                f"The dimension {name!r} of array {array!r} has the name of an array that is not its coordinate. "
                f"Rename one of them, or give array {name!r} one axis and dims=({name!r},)."
            )
