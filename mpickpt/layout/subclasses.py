"""Arrays with more state than their buffer, which raw bytes would lose: they are refused when they are declared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import LayoutError

# Classes of numpy whose attributes only describe the origin of their buffer.
_VIEWS: tuple[type[Any], ...] = (np.ndarray, np.matrix, np.memmap)
_STATE = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")  # methods of a class that has more to save


def is_plain(array: NDArray[Any]) -> bool:
    """Return whether an array has no state but its buffer, so that saving its bytes is enough."""
    kind = type(array)
    if kind in _VIEWS:
        return True
    own = any(getattr(kind, name, None) is not getattr(np.ndarray, name, None) for name in _STATE)
    return not own and not _attributes(array)


def check_plain(name: str, array: NDArray[Any]) -> None:
    """Refuse to save the buffer of an array that has more state than that.

    Raises
    ------
    LayoutError
        If the array has a mask, a unit or other attributes, which a restart would not bring back.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise LayoutError(
            f"Array {name!r} is a masked array, and its mask would not be saved. Save data and mask as two arrays and "
            f"join them: np.ma.MaskedArray(data, mask=mask, copy=False); or give all of it to object(), if it is small."
        )
    if not is_plain(array):
        extra = ", ".join(_attributes(array)) or "a state of its own"
        raise LayoutError(
            f"Array {name!r} is a {type(array).__name__}, which is more than its buffer ({extra}); only the buffer "
            f"would be saved. Save the plain array and the rest apart (np.asarray(array), object()), or give all of it "
            f"to object(), if it is small."
        )


def check_values(name: str, values: object) -> None:
    """Refuse to fill an array with values some of which are masked: numpy would use those under the mask.

    Raises
    ------
    LayoutError
        If any value is masked.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise LayoutError(
            f"Array {name!r} is to hold the values of a masked array, and its mask would be lost. Fill it with "
            f"values.filled(...), and save the mask as an array of its own."
        )


def _attributes(array: NDArray[Any]) -> list[str]:
    """Name the attributes that an array carries beside its buffer, in its dictionary or in slots."""
    found = list(getattr(array, "__dict__", {}))
    for kind in type(array).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if not slot.startswith("__") and hasattr(array, slot):
                found.append(slot)
    return found
