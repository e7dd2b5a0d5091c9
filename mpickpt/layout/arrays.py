"""What is saved: names, shapes, dtypes and parts of all ranks, and where they lie in a slot file.

Nothing here does I/O. A `Layout` describes the arrays of all ranks; its digest shows whether a slot fits it.
`RECORD` is the record that commits an epoch; native code writes the same 4,096 bytes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache, cached_property
from math import prod
from typing import Any, Literal

import numpy as np

from mpickpt.errors import LayoutError
from mpickpt.layout.names import check_dimensions, check_name
from mpickpt.layout.parts import Box, Part, as_shape, check_tiling

PAGE_BYTES = 4096
BLOCK_BYTES = 256 * 1024
MAX_BLOCKS = 16_384
MIN_OBJECTS_ROOM = 64 * 1024
RECORD_MAGIC = b"MPKREC01"

Order = Literal["C", "F"]


class RecordState(IntEnum):
    """State of one rank's share of an epoch."""

    EMPTY = 0
    WRITING = 1
    COMPLETE = 2
    FAILED = 3


RECORD_FIELDS: tuple[tuple[str, str, int], ...] = (
    ("magic", "S8", 0),
    ("state", "<u4", 8),
    ("rank", "<u4", 12),
    ("epoch", "<u8", 16),
    ("step", "<u8", 24),
    ("run", "<u8", 32),
    ("digest", "V32", 40),
    ("objects_bytes", "<u8", 72),
    ("objects_crc", "<u4", 80),
    ("objects_spilled", "<u4", 84),
    ("cut_time_ns", "<u8", 88),
    ("blocked_ns", "<u8", 96),
    ("drain_ns", "<u8", 104),
    ("bytes_written", "<u8", 112),
    ("blocks_copied", "<u8", 120),
    ("stall_ns", "<u8", 128),
    ("errno", "<i4", 136),
    ("bytes_waiting", "<u8", 144),
    ("channels_bytes", "<u8", 152),
    ("channels_crc", "<u4", 160),
    ("channels_spilled", "<u4", 164),
    ("crc", "<u4", 4092),
)
#: One rank's record. The CRC-32C in the last four bytes covers all bytes before it, reserved ones too.
RECORD: np.dtype[np.void] = np.dtype(
    {
        "names": [name for name, _, _ in RECORD_FIELDS],
        "formats": [kind for _, kind, _ in RECORD_FIELDS],
        "offsets": [offset for _, _, offset in RECORD_FIELDS],
        "itemsize": PAGE_BYTES,
    }
)


@cache
def dtype_to_text(dtype: np.dtype[Any]) -> str:
    """Describe `dtype` as text that `dtype_from_text` turns back into an equal dtype."""
    if dtype.hasobject or not dtype.itemsize:
        raise LayoutError(f"Arrays of dtype {dtype} cannot be saved as raw bytes; save such values by object().")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata, which say nothing about the bytes
            text = repr(np.lib.format.dtype_to_descr(dtype))
        if dtype_from_text(text) == dtype:
            return text
    except (TypeError, ValueError):
        pass
    raise LayoutError(f"The dtype {dtype} has no lossless description; protect its bytes by array.view('uint8').")


@cache
def dtype_from_text(text: str) -> np.dtype[Any]:
    """Turn what `dtype_to_text` wrote back into a dtype; ValueError for other text."""
    try:
        return np.lib.format.descr_to_dtype(ast.literal_eval(text))
    except (TypeError, ValueError, SyntaxError, IndexError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} does not describe a numpy dtype") from None


@dataclass(frozen=True)
class ArraySpec:
    """Name, shape, dtype and part of one rank's array; `order` is "F" for column-major order."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: Part | None = None
    order: Order = "C"

    def __post_init__(self) -> None:
        """Check the fields and bring them to their plain form."""
        check_name(self.name)
        try:
            object.__setattr__(self, "shape", as_shape(self.shape, "The shape"))
            object.__setattr__(self, "dtype", np.dtype(self.dtype))
            dtype_to_text(self.dtype)
            if self.order not in ("C", "F"):
                raise LayoutError(f"The order must be 'C' or 'F', not {self.order!r}.")
            if len(self.shape) < 2:
                object.__setattr__(self, "order", "C")
            if self.part is not None:
                if not isinstance(self.part, Part):
                    raise LayoutError(f"part= takes an mpickpt.Part(shape, start), not {self.part!r}.")
                self.part.box(self.shape)
        except LayoutError as error:
            raise LayoutError(f"Array {self.name!r}: {error}") from None

    @cached_property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_in_both_orders(self) -> bool:
        """Whether its bytes are the same in C and in Fortran order, so that `order` says nothing about them."""
        return 0 in self.shape or sum(extent > 1 for extent in self.shape) < 2

    def saves_as(self, other: ArraySpec) -> bool:
        """Return whether two specs save the same bytes for the same cells; the axes may have other names."""
        one = replace(self, order=other.order) if self.is_in_both_orders else self
        return one._places() == other._places()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the C-ordered dataset that has the same bytes: axes reversed for order "F"."""
        return self.shape[::-1] if self.order == "F" else self.shape

    @property
    def owned(self) -> Box:
        """The cells of the global array that are this rank's; only for arrays with a part."""
        if self.part is None:
            raise LayoutError(f"Array {self.name!r} has no part, so that it is not a share of a global array.")
        return self.part.box(self.shape)

    def canonical(self) -> list[object]:
        """Return plain values that are equal if and only if two specs are described in the same way in a slot."""
        dims = self.part.dims if self.part is not None else None
        return [*self._places(), *([dims] if dims else [])]

    def _places(self) -> list[object]:
        part = None
        if self.part is not None:
            part = [self.part.shape, self.part.start, *self.part.local_box(self.shape)]
        return [self.name, self.shape, dtype_to_text(self.dtype), self.order, part]


@dataclass(frozen=True)
class RankLayout:
    """What one rank saves: arrays, objects, and messages in flight if there is room for any."""

    arrays: tuple[ArraySpec, ...]
    objects_room: int = MIN_OBJECTS_ROOM
    channels_room: int = 0

    def __post_init__(self) -> None:
        """Refuse two arrays of one name."""
        object.__setattr__(self, "arrays", tuple(self.arrays))
        counts = Counter(spec.name for spec in self.arrays)
        if twice := sorted(name for name, count in counts.items() if count > 1):
            raise LayoutError(f"The name {twice[0]!r} is used for more than one array.")

    def __reduce__(self) -> tuple[Callable[..., RankLayout], tuple[object, ...]]:
        """Return the arrays by column, which is much faster to pickle: rank 0 gets very many of them."""
        columns = tuple([getattr(spec, field) for spec in self.arrays] for field in _FIELDS)
        return _rank_layout, (columns, self.objects_room, self.channels_room)


_FIELDS = ("name", "shape", "dtype", "part", "order")


def _rank_layout(columns: Sequence[list[object]], objects_room: int, channels_room: int) -> RankLayout:
    """Undo `RankLayout.__reduce__`; what was valid is not checked again."""
    arrays = []
    for values in zip(*columns, strict=True):
        spec = object.__new__(ArraySpec)
        spec.__dict__.update(zip(_FIELDS, values, strict=True))
        arrays.append(spec)
    return RankLayout(tuple(arrays), objects_room, channels_room)


@dataclass(frozen=True)
class Layout:
    """What all ranks save.

    Raises
    ------
    LayoutError
        If the parts of an array do not tile their global array.
    """

    ranks: tuple[RankLayout, ...]
    block_bytes: int = BLOCK_BYTES

    def __post_init__(self) -> None:
        """Bring the parts of an array to one order, and check that they tile their global array."""
        object.__setattr__(self, "ranks", _in_one_order(tuple(self.ranks)))
        if self.block_bytes <= 0 or self.block_bytes % PAGE_BYTES:
            raise LayoutError(f"A block must be a multiple of {PAGE_BYTES} bytes, not {self.block_bytes}.")
        for name, have in self._having.items():
            _check_parts(name, have, len(self.ranks))
        firsts = [(name, self.first(name).part) for name in self.names]
        check_dimensions([(name, part.shape, part.dims) for name, part in firsts if part is not None])

    def __getstate__(self) -> dict[str, object]:
        """Return the fields alone, without what was found out from them; unpickling checks nothing again."""
        return {"ranks": self.ranks, "block_bytes": self.block_bytes}

    @classmethod
    def of(cls, ranks: Iterable[RankLayout]) -> Layout:
        """Make the layout of `ranks` with blocks of the size that `block_bytes_for` finds."""
        ranks = tuple(ranks)
        return cls(ranks, block_bytes_for([[spec.nbytes for spec in rank.arrays] for rank in ranks]))

    @cached_property
    def _having(self) -> dict[str, list[tuple[int, ArraySpec]]]:
        having: dict[str, list[tuple[int, ArraySpec]]] = {}
        for number, rank in enumerate(self.ranks):
            for spec in rank.arrays:
                having.setdefault(spec.name, []).append((number, spec))
        return having

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays of all ranks, in the order of their first appearance."""
        return tuple(self._having)

    def having(self, name: str) -> Sequence[tuple[int, ArraySpec]]:
        """Return the ranks that have an array called `name`, in ascending order, each with its own."""
        return self._having.get(name, ())

    def first(self, name: str) -> ArraySpec:
        """Return the array called `name` of the lowest rank that has it; of a global one, all have the same shape."""
        return self._having[name][0][1]

    def sources(self, name: str, box: Box) -> list[tuple[int, Box]]:
        """Return the ranks that own cells of `box` in the global array `name`, each with its cells."""
        found = [(rank, spec.owned.intersection(box)) for rank, spec in self.having(name)]
        return [(r, common) for r, common in found if common.size]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all that a slot's structure depends on.

        The room for objects and messages in flight is not included, because payloads that outgrow it spill; but slots
        with room for messages differ from slots without.
        """
        ranks = [[spec.canonical() for spec in rank.arrays] for rank in self.ranks]
        structure: list[object] = ["mpickpt layout 1", self.block_bytes, ranks]
        if any(rank.channels_room for rank in self.ranks):
            structure.append([rank.channels_room > 0 for rank in self.ranks])
        return hashlib.sha256(json.dumps(structure).encode()).digest()


@dataclass(frozen=True)
class SlotOffsets:
    """Byte offsets in a slot file for one rank, arrays in the order of its `RankLayout`; 0 for empty arrays."""

    record: int
    arrays: tuple[int, ...]
    checksums: tuple[int, ...]
    objects: int
    objects_room: int
    channels: int = 0
    channels_room: int = 0

    @property
    def first_checksum(self) -> int:
        """Where the rank's checksums begin, of which each array has its part; 0 if there are none."""
        return next((at for at in self.checksums if at), 0)


def blocks_in(nbytes: int, block_bytes: int) -> int:
    """Count the blocks of an array of `nbytes` bytes; the last one may be shorter."""
    return -(-nbytes // block_bytes)


def round_up(nbytes: int, unit: int = PAGE_BYTES) -> int:
    """Round `nbytes` up to a multiple of `unit`."""
    return -(-nbytes // unit) * unit


def objects_room_for(need: int) -> int:
    """Return the room in bytes for pickled objects that take `need` bytes now: twice that, at least 64 KiB."""
    return max(MIN_OBJECTS_ROOM, round_up(2 * need))


def block_bytes_for(nbytes_per_rank_arrays: Iterable[Iterable[int]]) -> int:
    """Return the size of a block in bytes: 256 KiB, doubled until no rank has more than `MAX_BLOCKS` blocks.

    Parameters
    ----------
    nbytes_per_rank_arrays : iterable of iterables of int
        For each rank the sizes of its arrays in bytes.
    """
    block_bytes = BLOCK_BYTES
    for rank, sizes in enumerate(nbytes_per_rank_arrays):
        sizes = [n for n in sizes if n]
        if len(sizes) > MAX_BLOCKS:
            raise LayoutError(
                f"Rank {rank} has {len(sizes)} arrays; at most {MAX_BLOCKS} are possible. Join some of them."
            )
        while sum(blocks_in(n, block_bytes) for n in sizes) > MAX_BLOCKS:
            block_bytes *= 2
    return block_bytes


def _in_one_order(ranks: tuple[RankLayout, ...]) -> tuple[RankLayout, ...]:
    """Set the order of parts that are in both orders, such as a single row, to that of the other parts."""
    orders: dict[str, Order] = {}
    for spec in (spec for rank in ranks for spec in rank.arrays if spec.part is not None):
        if spec.name not in orders or not spec.is_in_both_orders:
            orders[spec.name] = spec.order

    def ordered(spec: ArraySpec) -> ArraySpec:
        order = orders.get(spec.name, spec.order)
        return replace(spec, order=order) if spec.order != order and spec.is_in_both_orders else spec

    if "F" not in orders.values():
        return ranks
    return tuple(replace(rank, arrays=tuple(map(ordered, rank.arrays))) for rank in ranks)


def _check_parts(name: str, have: Sequence[tuple[int, ArraySpec]], size: int) -> None:
    """Check that those of `size` ranks that have array `name` agree on it, and that their parts tile all of it."""
    parts = [(rank, spec.part) for rank, spec in have if spec.part is not None]
    if not parts:
        return
    first_rank, first_part = parts[0]
    first = dict(have)[first_rank]
    for rank, spec in have:
        if spec.part is None:
            raise LayoutError(f"Array {name!r}: rank {first_rank} gives a part, but rank {rank} gives none.")
        for what, a, b in (
            ("global shape", first_part.shape, spec.part.shape),
            ("dtype", first.dtype, spec.dtype),
            ("order", first.order, spec.order),
            ("dims of its part", first_part.dims, spec.part.dims),
        ):
            if a != b:
                raise LayoutError(
                    f"Array {name!r}: the {what} must be the same on all ranks, "
                    f"but is {a} on rank {first_rank} and {b} on rank {rank}."
                )
    check_tiling(name, first_part.shape, [(rank, spec.owned) for rank, spec in have], size)
