"""Compares two checkpoints piece by piece, so that little memory is needed.

An array with the same layout in both is compared rank by rank, with halo cells. A global array that is distributed
differently is compared by the cells that the ranks of the first checkpoint own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.layout.arrays import ArraySpec, blocks_in
from mpickpt.layout.parts import Box
from mpickpt.layout.slicing import pieces_of
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.reading.image import RankImage, valid

PIECE_BYTES = 16 << 20


@dataclass
class Difference:
    """How one array differs.

    Attributes
    ----------
    name : str
        The array.
    why : str
        Why it cannot be compared cell by cell; empty if it can.
    blocks, differing_blocks : int
        Blocks of the first checkpoint that were compared, and those of them with a bit that differs.
    cells : int
        Number of cells with a bit that differs.
    nans : int
        Number of cells that are NaN on one side only.
    largest : float or None
        Largest absolute difference between numbers, in the unit of the array; the modulus for complex numbers. None
        for dtypes that have none. The difference of two NaN is 0.
    rank : int or None
        Rank of the first checkpoint that holds the largest difference, or the first one if there is none.
    cell : tuple of int or None
        Index of that cell in the rank's array.
    """

    name: str
    why: str = ""
    blocks: int = 0
    differing_blocks: int = 0
    cells: int = 0
    nans: int = 0
    largest: float | None = None
    rank: int | None = None
    cell: tuple[int, ...] | None = None

    @property
    def differs(self) -> bool:
        """Whether there is any difference."""
        return bool(self.why or self.cells)


@dataclass
class Comparison:
    """How two checkpoints differ.

    Attributes
    ----------
    arrays : list of Difference
        One for each array of either checkpoint, equal ones too.
    objects, channels : list of int
        The ranks whose pickled objects, or whose messages in flight, differ in any byte.
    why_not_objects : str
        Why objects and messages cannot be compared; empty if they were.
    """

    arrays: list[Difference] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    why_not_objects: str = ""

    @property
    def differs(self) -> bool:
        """Whether there is any difference."""
        return any(a.differs for a in self.arrays) or bool(self.objects or self.channels or self.why_not_objects)


def compare(a: Checkpoint, b: Checkpoint) -> Comparison:
    """Compare two checkpoints, bit by bit.

    Arrays with a part are compared even if different numbers of ranks wrote them.

    Parameters
    ----------
    a, b : Checkpoint
        The checkpoints. Ranks and blocks in the result are those of `a`.

    Returns
    -------
    Comparison

    Raises
    ------
    CorruptionError
        If a block of either is corrupt.
    EpochError
        If a running program overwrote one of them meanwhile.
    """
    with a.unchanged(), b.unchanged():
        found = Comparison([_compare(a, b, name) for name in dict.fromkeys((*a.layout.names, *b.layout.names))])
        if a.world_size != b.world_size:
            found.why_not_objects = f"{a.world_size} ranks here, {b.world_size} there: their objects are not compared"
            return found
        for rank, (one, other) in enumerate(zip(a.images, b.images, strict=True)):
            if valid(one.read_objects()) != valid(other.read_objects()):
                found.objects.append(rank)
            if valid(one.read_channels()) != valid(other.read_channels()):
                found.channels.append(rank)
    return found


def _compare(a: Checkpoint, b: Checkpoint, name: str) -> Difference:
    here, there = _specs(a, name), _specs(b, name)
    result = Difference(name)
    if not here or not there:
        result.why = f"only in {(a if here else b).path}"
        return result
    one, other = next(iter(here.values())), next(iter(there.values()))
    alike = here.keys() == there.keys() and all(spec.saves_as(there[rank]) for rank, spec in here.items())
    if one.dtype != other.dtype:
        result.why = f"{one.dtype} here, {other.dtype} there"
    elif not alike and (one.part is None or other.part is None):
        result.why = "of other shapes, or on other ranks"
    elif not alike and one.part and other.part and one.part.shape != other.part.shape:
        result.why = f"of global shape {one.part.shape} here, {other.part.shape} there"
    elif one.part and other.part and one.part.dims and other.part.dims and one.part.dims != other.part.dims:
        result.why = f"of dimensions {one.part.dims} here, {other.part.dims} there"
    if result.why:
        return result
    for rank, spec in here.items():
        result.blocks += blocks_in(spec.nbytes, a.layout.block_bytes)
        _compare_rank(a, b, rank, spec, alike, result)
    return result


def _specs(checkpoint: Checkpoint, name: str) -> dict[int, ArraySpec]:
    return dict(checkpoint.layout.having(name))


def _compare_rank(a: Checkpoint, b: Checkpoint, rank: int, spec: ArraySpec, alike: bool, result: Difference) -> None:
    """Compare what one rank of `a` holds with the same cells of `b`."""
    blocks: set[int] = set()
    for box, mine, theirs in _pieces(a, b, rank, spec, alike):
        differing = _bits_differ(mine, theirs)
        where = np.flatnonzero(differing)
        if not where.size:
            continue
        result.cells += where.size
        local = np.unravel_index(where, box.extent) if box.extent else ()
        cells = [axis + lo for axis, lo in zip(local, box.start, strict=True)]
        blocks |= _blocks_of(cells, spec, a.layout.block_bytes)
        _take_largest(result, rank, mine.reshape(-1)[where], theirs.reshape(-1)[where], cells)
    result.differing_blocks += len(blocks)


def _pieces(
    a: Checkpoint, b: Checkpoint, rank: int, spec: ArraySpec, alike: bool
) -> Iterator[tuple[Box, NDArray[Any], NDArray[Any]]]:
    """Yield boxes of the rank's array with their cells on both sides."""
    index = a.images[rank].index(spec.name)
    assert index is not None
    inner = Box((0,) * len(spec.shape), spec.shape)
    if not alike:
        assert spec.part is not None
        inner = spec.part.local_box(spec.shape)
    for piece in pieces_of(inner.extent, max(1, PIECE_BYTES // spec.dtype.itemsize), spec.order):
        box = piece.moved(inner.start)
        mine = _read(a.images[rank], index, box, spec)
        if alike:
            yield box, mine, _read(b.images[rank], index, box, spec)
        else:
            assert spec.part is not None
            world = piece.moved(spec.part.start)
            yield box, mine, np.ascontiguousarray(b[spec.name][world.slices]).reshape(box.extent)


def _read(image: RankImage, index: int, box: Box, spec: ArraySpec) -> NDArray[Any]:
    out: NDArray[Any] = np.empty(box.extent, spec.dtype)
    image.copy_cells(index, box, out)
    return out


def _bits_differ(mine: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each cell, in C order, whether any bit of it differs."""
    shape = (mine.size, mine.dtype.itemsize)
    one, other = (np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(shape) for x in (mine, theirs))
    differing: NDArray[np.bool_] = (one != other).any(axis=1)
    return differing


def _blocks_of(cells: list[NDArray[np.intp]], spec: ArraySpec, block_bytes: int) -> set[int]:
    stored = cells[::-1] if spec.order == "F" else cells
    flat = np.ravel_multi_index(tuple(stored), spec.stored_shape) if spec.shape else np.zeros(1, np.intp)
    size = spec.dtype.itemsize
    ends = (flat * size // block_bytes, ((flat + 1) * size - 1) // block_bytes)
    return {int(block) for end in ends for block in np.unique(end)}


def _take_largest(
    result: Difference, rank: int, mine: NDArray[Any], theirs: NDArray[Any], cells: list[NDArray[np.intp]]
) -> None:
    """Keep the largest difference so far, and its place."""
    at = 0
    if mine.dtype.kind in "biufc":
        size, nans = _distance(mine, theirs)
        result.nans += int(nans.sum())
        at = int(np.argmax(size))
        largest = float(size[at])
        if result.largest is not None and result.largest >= largest:
            return
        result.largest = largest
    elif result.rank is not None:
        return
    result.rank, result.cell = rank, tuple(int(axis[at]) for axis in cells)


def _distance(mine: NDArray[Any], theirs: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return absolute differences, 0 for a NaN or the same infinity twice; and where only one is NaN."""
    if mine.dtype.kind in "biu":
        wide = [x.astype(np.uint8) if x.dtype.kind == "b" else x for x in (mine, theirs)]
        low, high = np.minimum(*wide), np.maximum(*wide)
        unsigned = np.dtype(f"u{low.dtype.itemsize}")
        return high.astype(unsigned) - low.astype(unsigned), np.zeros(mine.shape, bool)
    one, other = np.isnan(mine), np.isnan(theirs)
    with np.errstate(all="ignore"):
        size = np.abs(mine - theirs)
    size[one | other | (mine == theirs)] = 0
    return size, one != other
