"""Where the arrays of a rank lie in memory, so that no byte is saved under two names.

Two arrays that overlap could not both be restored: restoring one would change the other. Views of one array do not
overlap if they have no byte in common, even if they share a page.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Any

from numpy.typing import NDArray

from mpickpt.errors import LayoutError


class Extents:
    """The memory of a rank's saved arrays, by address; no two of them overlap."""

    def __init__(self) -> None:
        self._by_start: list[tuple[int, int, str]] = []  # first address, address behind the last byte, name
        self._of: dict[str, tuple[int, int, str]] = {}

    def check(self, name: str, array: NDArray[Any]) -> None:
        """Refuse an array that has bytes in common with one that is saved under another name.

        Parameters
        ----------
        name : str
            The name of the array.
        array : ndarray
            Contiguous.

        Raises
        ------
        LayoutError
            If it has; names both, and the bytes that they have in common.
        """
        begin = _address(array)
        end = begin + array.nbytes
        after = bisect_left(self._by_start, (end,))  # those from here on begin behind it
        if begin == end or after == 0:
            return
        start, stop, other = self._by_start[after - 1]
        if stop <= begin or other == name:
            return
        first, last = max(begin, start), min(end, stop) - 1
        raise LayoutError(
            f"Array {name!r} overlaps array {other!r}: bytes {first - begin} to {last - begin} of {name!r} are bytes "
            f"{first - start} to {last - start} of {other!r}. Memory is saved under one name: protect the array that "
            f"holds all of it, once, and use views of that one, after a restart too."
        )

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Note where a saved array lies; empty arrays are ignored."""
        if array.nbytes:
            begin = _address(array)
            extent = self._of[name] = (begin, begin + array.nbytes, name)
            insort(self._by_start, extent)

    def drop(self, name: str) -> None:
        """Forget an array that is not saved any longer."""
        extent = self._of.pop(name, None)
        if extent is not None:
            del self._by_start[bisect_right(self._by_start, extent) - 1]

    def clear(self) -> None:
        """Forget all of them."""
        self._by_start.clear()
        self._of.clear()


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
