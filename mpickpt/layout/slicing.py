"""What numpy's basic indexing means for an array of a given shape, in plain numbers. Nothing here does I/O."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from types import EllipsisType
from typing import Any

from mpickpt.layout.parts import Box


@dataclass(frozen=True)
class Selection:
    """Cells that an index selects.

    Attributes
    ----------
    ranges : tuple of range
        The selected indices of each axis of the array, in ascending order.
    flipped : tuple of slice
        Puts the cells that `ranges` select into the requested order.
    shape : tuple of int
        Shape of the result, without the axes that are indexed by a number.
    scalar : bool
        Whether the result is a cell instead of an array.
    """

    ranges: tuple[range, ...]
    flipped: tuple[slice, ...]
    shape: tuple[int, ...]
    scalar: bool

    @classmethod
    def of(cls, index: Any, shape: Sequence[int]) -> Selection:  # noqa: ANN401  (an index may be anything)
        """Parse `index`: integers, slices with any step, and ``...``; IndexError for anything else."""
        items = index if isinstance(index, tuple) else (index,)
        gaps = [at for at, item in enumerate(items) if isinstance(item, EllipsisType)]
        missing = len(shape) - (len(items) - len(gaps))
        if missing < 0 or len(gaps) > 1:
            raise IndexError(f"{len(items)} indices are too many for an array of shape {tuple(shape)}")
        at = gaps[0] if gaps else len(items)
        items = (*items[:at], *(slice(None),) * missing, *items[at + len(gaps) :])
        ranges, kept = [], []
        for axis, (item, extent) in enumerate(zip(items, shape, strict=True)):
            if isinstance(item, slice):
                ranges.append(range(*item.indices(extent)))
                kept.append(len(ranges[-1]))
            else:
                number = _number(item, axis, extent)
                ranges.append(range(number, number + 1))
        flipped = tuple(slice(None, None, -1 if r.step < 0 else 1) for r in ranges)
        upwards = tuple(r[::-1] if r.step < 0 else r for r in ranges)
        return cls(upwards, flipped, tuple(kept), scalar=not kept and not gaps)

    @property
    def extent(self) -> tuple[int, ...]:
        """Number of cells along each axis of the array."""
        return tuple(map(len, self.ranges))

    def boxes(self, limit: int) -> Iterator[tuple[Box, tuple[slice, ...], tuple[slice, ...]]]:
        """Yield boxes to read, each with the place of its selected cells in it, and in the result.

        A box with unselected cells has at most `limit` cells, so that only small gaps between selected cells are read.
        """
        pieces = [tuple((0, len(r)) for r in self.ranges)] if prod(self.extent) else []
        while pieces:
            piece = pieces.pop()
            chosen = [r[lo:hi] for r, (lo, hi) in zip(self.ranges, piece, strict=True)]
            box = Box(tuple(r[0] for r in chosen), tuple(r[-1] + 1 for r in chosen))
            wanted = prod(map(len, chosen))
            axis = next((k for k, r in enumerate(chosen) if len(r) > 1), None)
            if box.size == wanted or box.size <= limit or axis is None:
                inside = tuple(slice(None, None, r.step) for r in chosen)
                yield box, inside, tuple(slice(lo, hi) for lo, hi in piece)
                continue
            lo, hi = piece[axis]
            middle = (lo + hi) // 2
            pieces += [(*piece[:axis], span, *piece[axis + 1 :]) for span in ((middle, hi), (lo, middle))]


def pieces_of(shape: Sequence[int], limit: int, order: str = "C") -> Iterator[Box]:
    """Split an array into boxes of at most `limit` cells, each of them contiguous in C or Fortran order."""
    if order == "F":
        yield from (box.transposed for box in pieces_of(shape[::-1], limit))
        return
    axis, row = 0, prod(shape[1:])
    while axis < len(shape) - 1 and row > limit:
        axis += 1
        row = prod(shape[axis + 1 :])
    if not prod(shape):
        return
    if not shape:
        yield Box((), ())
        return
    count = max(1, limit // row)
    for index in product(*map(range, shape[:axis])):
        for lo in range(0, shape[axis], count):
            hi = min(lo + count, shape[axis])
            rest = shape[axis + 1 :]
            yield Box((*index, lo, *(0 for _ in rest)), (*(k + 1 for k in index), hi, *rest))


def _number(item: object, axis: int, extent: int) -> int:
    try:
        number = operator.index(item) if not isinstance(item, bool) else None  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise IndexError(
            f"{item!r} will not do as an index: integers, slices and ... do; take x[...] for anything else"
        )
    if not -extent <= number < extent:
        raise IndexError(f"index {number} is out of bounds for axis {axis} of {extent} cells")
    return number % extent
