"""One rank's share of a complete epoch, read from the slot file and checked while it is read.

A `RankImage` is plain data, so that rank 0 can make all of them and send each rank its own. Arrays are read as blocks
with their checksums. `gather` assembles a rank's part of a global array from the images of any number of ranks, and
reads only the blocks that hold its cells.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import CorruptionError, LayoutError, MpickptError, StoreError
from mpickpt.layout.arrays import ArraySpec, Layout, SlotOffsets, blocks_in
from mpickpt.layout.parts import Box
from mpickpt.layout.raster import Raster
from mpickpt.references import Part as SavedPart
from mpickpt.references import PickledObjects, Resolve
from mpickpt.retry import read_again, reason_of
from mpickpt.snapshot import crc32c, read_blocks
from mpickpt.store import PayloadKind, plain, spill_path

PIECE_BYTES = 32 << 20  # read at once when only some cells are wanted; the memory needed in addition to the array


@dataclass(frozen=True)
class Damage:
    """Stored data that do not match their checksum.

    Attributes
    ----------
    path : pathlib.Path
        The corrupt file.
    epoch, rank : int
        Epoch and rank of the data.
    array : str or None
        Name of the array; None for the objects and the channels.
    block : int or None
        Number of the block in the array; None for the objects and the channels, and where a file ends too early.
    what : str
        What is wrong.
    payload : str or None
        "objects" or "channels" (messages in flight); None for an array.
    bytes : tuple of int or None
        First and last byte of the block, counted from the start of the array's data in C order (of the transpose for
        arrays in Fortran order).
    cells : tuple of two tuples of int or None
        Indices in the rank's array of the first and the last cell that has a byte in the block.
    """

    path: Path
    epoch: int
    rank: int
    array: str | None
    block: int | None
    what: str
    payload: PayloadKind | None = None
    bytes: tuple[int, int] | None = None
    cells: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __str__(self) -> str:
        """Say where and what it is."""
        where = f"array {self.array!r}" if self.payload is None else f"{self.payload} in {self.path.name}"
        block = f", block {self.block}" if self.block is not None else ""
        return f"rank {self.rank}, {where}{block}: {self.what}"

    def error(self) -> CorruptionError:
        """Return the exception for it."""
        return CorruptionError(
            f"Epoch {self.epoch} in {self.path} is corrupt: {self}. Use another epoch.",
            rank=self.rank,
            array=self.array,
            block=self.block,
            epoch=self.epoch,
            path=self.path,
        )


@dataclass(frozen=True)
class RankImage:
    """Where one rank's share of an epoch lies in the slot."""

    path: Path
    epoch: int
    rank: int
    block_bytes: int
    arrays: tuple[ArraySpec, ...]
    offsets: SlotOffsets
    objects_bytes: int
    objects_crc: int
    objects_spilled: bool
    channels_bytes: int = 0
    channels_crc: int = 0
    channels_spilled: bool = False
    packed: bool = False

    def index(self, name: str) -> int | None:
        """Return the position of array `name` among the rank's arrays; None if it has no such array."""
        return self._positions.get(name)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {spec.name: i for i, spec in enumerate(self.arrays)}

    def read_array(self, index: int, out: NDArray[np.uint8], first: int = 0, direct: bool = True) -> list[Damage]:
        """Read bytes of array `index` from block `first` on into `out`, and return what is corrupt."""
        if not out.size:
            return []
        count = blocks_in(out.size, self.block_bytes)
        table = self.checksums(index, first, count)
        if len(table) < count:
            return [self.damage(index, None, "the file ends within its checksums")]
        start = self.offsets.arrays[index] + first * self.block_bytes

        def read() -> list[int]:
            if self.packed:
                return self._read_packed(index, out, first, table)
            return read_blocks(self.path, start, out, self.block_bytes, table, direct=direct)

        corrupt = read_again(self.path, read)
        return [self.damage(index, first + block, "wrong checksum") for block in corrupt]

    def checksums(self, index: int, first: int, count: int) -> NDArray[np.uint32]:
        """Return the checksums of `count` blocks of array `index` from `first` on; fewer where the file ends."""
        sums, _ = _read(self.path, self.offsets.checksums[index] + 4 * first, 4 * count)
        return np.frombuffer(sums[: len(sums) // 4 * 4], "<u4").astype(np.uint32)

    def _read_packed(self, index: int, out: NDArray[np.uint8], first: int, table: NDArray[np.uint32]) -> list[int]:
        """Read from a compressed archive; a block that cannot be decompressed is corrupt."""
        from mpickpt.store import open_packed

        corrupt = []
        with open_packed(self.path, self.rank, self.arrays[index].name, crc32c) as read:
            for block, expected in enumerate(table):
                piece = out[block * self.block_bytes : (block + 1) * self.block_bytes]
                if not read((first + block) * self.block_bytes, piece) or crc32c(piece) != expected:
                    corrupt.append(block)
        return corrupt

    def load(self, index: int, direct: bool = True) -> NDArray[Any]:
        """Return array `index`; CorruptionError if any block of it is corrupt."""
        spec = self.arrays[index]
        memory = page_aligned(spec.nbytes)
        _raise_first(self.read_array(index, memory, direct=direct))
        return np.ndarray(spec.shape, spec.dtype, memory, order=spec.order)

    def copy_cells(self, index: int, box: Box, out: NDArray[Any], direct: bool = True) -> None:
        """Copy the cells `box` of array `index` to `out`, which has the extent of the box.

        Raises
        ------
        CorruptionError
            If a block that holds one of the cells is corrupt.
        """
        spec = self.arrays[index]
        if spec.order == "F":
            box, out = box.transposed, out.T
        raster = Raster.of(spec.stored_shape, spec.dtype.itemsize)
        for piece in raster.pieces(box, max(PIECE_BYTES, 8 * self.block_bytes)):
            start, _ = raster.span(piece)
            runs = raster.blocks(piece, self.block_bytes)
            base, end = runs[0][0] * self.block_bytes, min(runs[-1][1] * self.block_bytes, spec.nbytes)
            raw = page_aligned(end - base)
            for first, last in runs:
                wanted = raw[first * self.block_bytes - base : last * self.block_bytes - base]
                _raise_first(self.read_array(index, wanted, first, direct))
            whole = bytewise(spec.dtype)
            cells: NDArray[Any] = np.ndarray(piece.extent, whole, raw, start - base, raster.steps)
            piece.relative_to(box.start).view(out).view(whole)[...] = cells

    def read_objects(self) -> tuple[bytes, list[Damage]]:
        """Return the pickled objects as stored, and what is corrupt; nothing is unpickled."""
        payload, damage, _ = self._read_objects()
        return payload, damage

    def read_channels(self) -> tuple[bytes, list[Damage]]:
        """Return the messages in flight at the cut as stored, and what is corrupt; empty if there were none."""
        place = self.offsets.channels, self.channels_bytes, self.channels_crc, self.channels_spilled
        payload, damage, _ = self._read_payload("channels", *place)
        return payload, damage

    def check_payloads(self) -> list[Damage]:
        """Read objects and channels, and return what is corrupt."""
        return self.read_objects()[1] + self.read_channels()[1]

    def objects(self) -> dict[str, Any]:
        """Unpickle the objects and read the arrays in them; only from files of the user of this process.

        Raises
        ------
        CorruptionError
            If they, or an array in them, do not match their checksums.
        StoreError
            If the file belongs to another user, or they cannot be unpickled.
        """
        objects = self.pickled_objects(self.resolver())
        with self.unpickling():
            return objects.all()

    def pickled_objects(self, resolve: Resolve) -> PickledObjects:
        """Prepare to unpickle the objects inside `unpickling`; `resolve` returns the saved arrays in them.

        Raises
        ------
        CorruptionError, StoreError
            As `objects`.
        """
        try:
            payload, damage, owner = self._read_objects()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {reason_of(error)}.", path=self.path) from error
        if owner != os.geteuid():
            raise StoreError(
                f"{self.path} belongs to another user ({owner}): its objects are not unpickled, "
                "as they might run any code.",
                path=self.path,
            )
        _raise_first(damage)
        with self.unpickling():
            return PickledObjects(payload, resolve)

    @contextmanager
    def unpickling(self) -> Iterator[None]:
        """Turn errors of unpickling in the block into a `StoreError` that names rank and epoch."""
        try:
            yield
        except MpickptError:
            raise
        except Exception as error:
            raise StoreError(
                f"{self.path}: the objects of rank {self.rank} in epoch {self.epoch} cannot be unpickled ({error!r}). "
                "Are their classes still where they were?",
                path=self.path,
            ) from error

    def resolver(self, direct: bool = True) -> Resolve:
        """Return a function that reads the arrays that objects refer to from the file, each once."""
        found: dict[str, NDArray[Any]] = {}

        def resolve(name: str, part: SavedPart | None, holder: str) -> NDArray[Any]:
            index = self.index(name)
            if index is None:
                raise LayoutError(f"Object {holder!r} of rank {self.rank} holds array {name!r}, which is not there.")
            if name not in found:
                found[name] = self.load(index, direct)
            return found[name] if part is None else part.of(found[name])

        return resolve

    def _read_objects(self) -> tuple[bytes, list[Damage], int]:
        place = self.offsets.objects, self.objects_bytes, self.objects_crc, self.objects_spilled
        return self._read_payload("objects", *place)

    def _read_payload(
        self, kind: PayloadKind, offset: int, nbytes: int, crc: int, spilled: bool
    ) -> tuple[bytes, list[Damage], int]:
        """Return the bytes, what is corrupt, and who owns the file."""
        path = spill_path(self.path, self.rank, kind) if spilled else self.path

        def damage(what: str) -> list[Damage]:
            return [Damage(path, self.epoch, self.rank, None, None, what, kind)]

        try:
            payload, owner = _read(path, 0 if spilled else offset, nbytes)
        except FileNotFoundError:
            return b"", damage("the file is missing"), os.geteuid()
        if len(payload) < nbytes:
            return payload, damage("the file ends too early"), owner
        if crc32c(payload) != crc:
            return payload, damage("wrong checksum"), owner
        return payload, [], owner

    def damage(self, index: int, block: int | None, what: str) -> Damage:
        """Return the damage of a block of array `index`; `block` is None where the file ends too early."""
        spec = self.arrays[index]
        if block is None:
            return Damage(self.path, self.epoch, self.rank, spec.name, None, what)
        first, last = block * self.block_bytes, min((block + 1) * self.block_bytes, spec.nbytes) - 1
        ends = (np.unravel_index(byte // spec.dtype.itemsize, spec.stored_shape) for byte in (first, last))
        lo, hi = (tuple(map(int, end[::-1] if spec.order == "F" else end)) for end in ends)
        return Damage(self.path, self.epoch, self.rank, spec.name, block, what, bytes=(first, last), cells=(lo, hi))


def images_of(
    path: Path, layout: Layout, offsets: Sequence[SlotOffsets], records: NDArray[np.void], packed: bool = False
) -> list[RankImage]:
    """Return the shares of all ranks of a complete epoch; `packed` if they are in a compressed archive."""
    return [
        RankImage(
            path=path,
            epoch=int(record["epoch"]),
            rank=rank,
            block_bytes=layout.block_bytes,
            arrays=own.arrays,
            offsets=offset,
            objects_bytes=int(record["objects_bytes"]),
            objects_crc=int(record["objects_crc"]),
            objects_spilled=bool(record["objects_spilled"]),
            channels_bytes=int(record["channels_bytes"]),
            channels_crc=int(record["channels_crc"]),
            channels_spilled=bool(record["channels_spilled"]),
            packed=packed,
        )
        for rank, (own, offset, record) in enumerate(zip(layout.ranks, offsets, records, strict=True))
    ]


def gather(
    layout: Layout, images: Sequence[RankImage], spec: ArraySpec, out: NDArray[Any], direct: bool = True
) -> None:
    """Fill `out`, the array `spec` of a rank of this run, from the parts of the ranks that wrote the epoch.

    All cells of the global array that `out` shows are filled, halo cells too; cells beyond it are not touched.

    Parameters
    ----------
    layout : Layout
        Layout of the epoch.
    images : sequence of RankImage
        All ranks' shares of the epoch.
    spec : ArraySpec
        The requested array, with a part of the same global array as in `layout`.
    out : numpy.ndarray
        Of the shape and dtype of `spec`; need not be contiguous.
    direct : bool
        Read past the page cache where the file system can.

    Raises
    ------
    LayoutError
        If the epoch has no such global array.
    CorruptionError
        If a block that holds one of the cells is corrupt.
    """
    old = layout.first(spec.name) if layout.having(spec.name) else None
    if old is None or old.part is None:
        raise LayoutError(f"The epoch has no global array {spec.name!r}.")
    if spec.part is None or (spec.part.shape, spec.dtype) != (old.part.shape, old.dtype):
        raise LayoutError(
            f"Array {spec.name!r} is {spec.dtype} of global shape {spec.part and spec.part.shape} here, "
            f"but the epoch holds {old.dtype} of global shape {old.part.shape}."
        )
    world, mine = spec.part.wanted(spec.shape)
    window = mine.view(out)
    for rank, common in layout.sources(spec.name, world):
        image = images[rank]
        index = image.index(spec.name)
        assert index is not None
        theirs = image.arrays[index]
        assert theirs.part is not None
        inside = common.relative_to(theirs.owned.start).moved(theirs.part.local_box(theirs.shape).start)
        image.copy_cells(index, inside, common.relative_to(world.start).view(window), direct)


def valid(read: tuple[bytes, Sequence[Damage]]) -> bytes:
    """Return a payload that was read; raises `CorruptionError` if it is corrupt."""
    payload, damage = read
    _raise_first(damage)
    return payload


def _raise_first(damage: Sequence[Damage]) -> None:
    if damage:
        raise damage[0].error()


def _read(path: Path, offset: int, nbytes: int) -> tuple[bytes, int]:
    """Read up to `nbytes` at `offset`, fewer only where the file ends; also return who owns the file."""

    def read() -> tuple[bytes, int]:
        with plain(path) as fd, open(fd, "rb", closefd=False) as file:
            file.seek(offset)
            return file.read(nbytes), os.fstat(fd).st_uid

    return read_again(path, read)


def bytewise(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a dtype that numpy copies with all of its bytes: it omits gaps between the fields of a structured one."""
    return dtype if dtype.names is None else np.dtype((np.void, dtype.itemsize))


def page_aligned(nbytes: int) -> NDArray[np.uint8]:
    """Return zeroed memory that starts on a page, so that it can be read into past the page cache."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8) if nbytes else np.empty(0, np.uint8)
