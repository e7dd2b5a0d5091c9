"""The arithmetic of global arrays that are distributed over ranks: boxes of cells, and which rank owns which.

Nothing here does I/O or knows about files.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from types import EllipsisType
from typing import Any, NamedTuple, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import LayoutError
from mpickpt.layout.names import as_dims
from mpickpt.texts import told_ranks

Index = slice | EllipsisType | tuple[slice | EllipsisType, ...]


class Box(NamedTuple):
    """An axis-aligned box of cells.

    Attributes
    ----------
    start : tuple of int
        Index of its first cell, one number for each axis.
    stop : tuple of int
        Index behind its last cell: along each axis the first number that is not in the box.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Number of cells along each axis."""
        return tuple(hi - lo for lo, hi in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of cells."""
        return prod(self.extent)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(slice(lo, hi) for lo, hi in zip(self.start, self.stop, strict=True))

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the cells of `array` that are in the box.

        Returns
        -------
        ndarray
            A view of shape `extent`, also of an array without axes.
        """
        index: tuple[Any, ...] = (*self.slices, ...)
        view: NDArray[Any] = array[index]
        return view

    @property
    def transposed(self) -> Box:
        """The box with its axes in reverse order."""
        return Box(self.start[::-1], self.stop[::-1])

    def moved(self, by: Sequence[int]) -> Box:
        """Return the box moved by `by` cells along each axis."""
        return Box(
            tuple(lo + d for lo, d in zip(self.start, by, strict=True)),
            tuple(hi + d for hi, d in zip(self.stop, by, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        """Return the box in indices that count from `origin`."""
        return self.moved([-n for n in origin])

    def intersection(self, other: Box) -> Box:
        """Return the cells in both boxes; `size` is 0 if there is none."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, tuple(max(lo, hi) for lo, hi in zip(start, stop, strict=True)))

    def without(self, other: Box) -> list[Box]:
        """Return the cells of this box that are not in `other`, as boxes that do not overlap."""
        common = self.intersection(other)
        if not common.size:
            return [self] if self.size else []
        rest: list[Box] = []
        start, stop = list(self.start), list(self.stop)
        for axis, (lo, hi) in enumerate(zip(common.start, common.stop, strict=True)):
            if start[axis] < lo:
                rest.append(Box(tuple(start), (*stop[:axis], lo, *stop[axis + 1 :])))
            if hi < stop[axis]:
                rest.append(Box((*start[:axis], hi, *start[axis + 1 :]), tuple(stop)))
            start[axis], stop[axis] = lo, hi
        return rest


def boxes_of_run(shape: Sequence[int], first: int, end: int) -> Iterator[Box]:
    """Yield the cells `first` to `end` (exclusive) of an array, counted in C order, as boxes in this order."""
    if first >= end:
        return
    if not shape:
        yield Box((), ())
        return
    row = prod(shape[1:])
    while first < end:
        index, inside = divmod(first, row)
        rows = (end - first) // row if not inside else 0
        if rows:
            yield Box((index, *(0 for _ in shape[1:])), (index + rows, *shape[1:]))
            first += rows * row
        else:
            stop = min(row, inside + end - first)
            for box in boxes_of_run(shape[1:], inside, stop):
                yield Box((index, *box.start), (index + 1, *box.stop))
            first += stop - inside


def as_shape(value: SupportsIndex | Iterable[SupportsIndex], what: str) -> tuple[int, ...]:
    """Return `value` as a tuple of integers; `what` names it in the error."""
    if type(value) is tuple and all(type(n) is int and n >= 0 for n in value):
        return value  # nearly always, and the check against a protocol below takes its time
    try:
        items = (value,) if isinstance(value, SupportsIndex) else tuple(value)
        shape = tuple(operator.index(n) for n in items)
    except TypeError:
        raise LayoutError(f"{what} must be an integer or a tuple of integers, not {value!r}.") from None
    if any(n < 0 for n in shape):
        raise LayoutError(f"{what} must not be negative, but is {shape}.")
    return shape


def _as_slices(index: object, ndim: int) -> tuple[slice, ...]:
    """Return `index` as one slice per axis, by numpy's rules for missing axes and ``...``."""
    items = index if isinstance(index, tuple) else (index,)
    for item in items:
        if not isinstance(item, slice | EllipsisType):
            raise LayoutError(
                f"The local index of a part must be made of slices, not {item!r} "
                f"(write {item!r}:{item!r}+1 in place of a single number, to keep the axis)."
            )
        if isinstance(item, slice) and item.step is not None and operator.index(item.step) != 1:
            raise LayoutError(f"The local index of a part must have step 1, but has {item!r}.")
    gaps = [axis for axis, item in enumerate(items) if isinstance(item, EllipsisType)]
    if len(gaps) > 1:
        raise LayoutError("The local index of a part must have at most one '...'.")
    given = len(items) - len(gaps)
    if given > ndim:
        raise LayoutError(f"The local index of a part has {given} axes, but its global array has {ndim}.")
    fill = (slice(None),) * (ndim - given)
    at = gaps[0] if gaps else len(items)
    slices = (*items[:at], *fill, *items[at + len(gaps) :])
    return tuple(item for item in slices if isinstance(item, slice))


@dataclass(frozen=True)
class Part:
    """Which part of a global array a rank's local array holds.

    ``array[local]`` is the global array's ``[start : start + extent]``, where the extent is the shape of
    ``array[local]``. What lies outside ``local`` is halo. The parts of all ranks must tile the global array: each cell
    belongs to exactly one rank.

    Parameters
    ----------
    shape : tuple of int
        Shape of the global array.
    start : tuple of int
        Global index of the first cell of ``array[local]``.
    local : slice or tuple of slices, optional
        Place of the part in the rank's own array; by default the whole array. Steps other than 1 and single numbers are
        refused. Use ``numpy.s_``: ``np.s_[1:-1, :]``.
    dims : tuple of str, optional
        Names of the axes of the global array, the same on all ranks: ``dims=("y", "x")``. Files that netCDF4 and xarray
        read name the axes so. A dimension has the same length in all arrays. An array with the name of a dimension,
        such as ``x`` with ``dims=("x",)``, holds its coordinates.

    Raises
    ------
    LayoutError
        If the arguments do not fit each other.

    Examples
    --------
    Rows ``lo`` to ``hi`` of a field, with one halo row on either side:

    >>> part = Part((1000, 80), start=(250, 0), local=np.s_[1:-1, :])
    >>> part.box((252, 80))
    Box(start=(250, 0), stop=(500, 80))
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    local: Index = field(default=..., hash=False)
    dims: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the fields and bring them to their plain form."""
        shape = as_shape(self.shape, "The global shape of a part")
        start = as_shape(self.start, "The start of a part")
        if len(shape) != len(start):
            raise LayoutError(
                f"The start {start} of a part has {len(start)} axes, but its global shape {shape} has {len(shape)}."
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "local", _as_slices(self.local, len(shape)))
        object.__setattr__(self, "dims", as_dims(self.dims, shape))

    def local_box(self, local_shape: Sequence[int]) -> Box:
        """Return the place of the part in a rank's own array.

        Parameters
        ----------
        local_shape : sequence of int
            Shape of the rank's own array, halo cells included.

        Returns
        -------
        Box
            In indices of that array.

        Raises
        ------
        LayoutError
            If it has another number of axes than the global array.
        """
        if len(local_shape) != len(self.shape):
            raise LayoutError(
                f"A part of a global array of shape {self.shape} needs a local array of {len(self.shape)} axes, "
                f"not one of shape {tuple(local_shape)}."
            )
        slices = cast("tuple[slice, ...]", self.local)  # since they were checked
        ends = [s.indices(n)[:2] for s, n in zip(slices, local_shape, strict=True)]
        return Box(tuple(lo for lo, _ in ends), tuple(max(lo, hi) for lo, hi in ends))

    def box(self, local_shape: Sequence[int]) -> Box:
        """Return the cells of the global array that a rank's own array owns.

        Parameters
        ----------
        local_shape : sequence of int
            Shape of the rank's own array, halo cells included.

        Returns
        -------
        Box
            In indices of the global array.

        Raises
        ------
        LayoutError
            If the part reaches beyond the global array.
        """
        extent = self.local_box(local_shape).extent
        box = Box(self.start, tuple(lo + n for lo, n in zip(self.start, extent, strict=True)))
        if not box.size:
            return box  # of a rank that has no cell; where it would begin does not matter
        for axis, (hi, n) in enumerate(zip(box.stop, self.shape, strict=True)):
            if hi > n:
                raise LayoutError(
                    f"A part with start {self.start} and extent {extent} reaches to {hi} along axis {axis}, "
                    f"but its global array has the shape {self.shape}."
                )
        return box

    def wanted(self, local_shape: Sequence[int]) -> tuple[Box, Box]:
        """Return all cells of the global array that a rank's own array shows, with halo cells.

        Parameters
        ----------
        local_shape : sequence of int
            Shape of the rank's own array, halo cells included.

        Returns
        -------
        world : Box
            In global indices; halo cells beyond the global array are cut off.
        mine : Box
            The same cells in indices of the rank's own array.
        """
        owned = self.local_box(local_shape)
        origin = tuple(a - b for a, b in zip(self.start, owned.start, strict=True))
        everything = Box((0,) * len(self.shape), tuple(local_shape)).moved(origin)
        world = everything.intersection(Box((0,) * len(self.shape), self.shape))
        return world, world.relative_to(origin)


def check_tiling(name: str, shape: tuple[int, ...], boxes: Iterable[tuple[int, Box]], size: int) -> None:
    """Check that the boxes of all ranks cover a global array, each cell once.

    Parameters
    ----------
    name : str
        Name of the array, for the message.
    shape : tuple of int
        Shape of the global array.
    boxes : iterable of (int, Box)
        Ranks and the cells that they own.
    size : int
        Number of all ranks.

    Raises
    ------
    LayoutError
        If they do not; names the ranks that overlap, or the cells that no rank has.
    """
    everybody = list(boxes)
    owned = sorted((box, rank) for rank, box in everybody if box.size)
    _check_overlaps(name, owned)
    whole = Box((0,) * len(shape), shape)
    if sum(box.size for box, _ in owned) < whole.size:
        missing = [whole]
        for box, _ in owned:
            missing = [piece for rest in missing for piece in rest.without(box)]
        lacking = sorted(set(range(size)) - {rank for rank, _ in everybody})
        without = f"{told_ranks(lacking).capitalize()} declared no array {name!r}." if lacking else ""
        raise LayoutError(
            f"Array {name!r}: no rank's part holds the cells from {missing[0].start} to (not including) "
            f"{missing[0].stop} of the global array of shape {shape}. {without}".rstrip()
        )


def _check_overlaps(name: str, owned: list[tuple[Box, int]]) -> None:
    """Compare each box with those that start before it ends on the first axis; `owned` is sorted."""
    if len(owned) < 2:
        return
    starts = np.array([box.start for box, _ in owned], dtype=np.int64)
    stops = np.array([box.stop for box, _ in owned], dtype=np.int64)
    if not starts.shape[1]:
        raise LayoutError(
            f"Array {name!r}: ranks {owned[0][1]} and {owned[1][1]} both have the only cell of the global array."
        )
    ends = np.searchsorted(starts[:, 0], stops[:, 0], side="left")
    for i in np.flatnonzero(ends > np.arange(1, len(owned) + 1)).tolist():
        others = slice(i + 1, int(ends[i]))
        clash = np.all((starts[others] < stops[i]) & (starts[i] < stops[others]), axis=1)
        if clash.any():
            box, rank = owned[i + 1 + int(np.argmax(clash))]
            common = box.intersection(owned[i][0])
            ranks = sorted((owned[i][1], rank))
            raise LayoutError(
                f"Array {name!r}: the parts of ranks {ranks[0]} and {ranks[1]} overlap in the cells from "
                f"{common.start} to (not including) {common.stop} of the global array. "
                "Leave halo cells out of the part by its local index."
            )
