"""Writes the HDF5 structure of a slot file or an archive, once, before any data.

HDF5 writes all that it calls metadata, densely, and is told nothing of where the raw data lie: their datasets have no
storage yet. `mpickpt.store.raw` then gives them their places. So raw data never pass through HDF5, and a slot of many
arrays has little structure.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5o, h5p, h5s, h5t

from mpickpt.layout.arrays import PAGE_BYTES, ArraySpec, Layout, RankLayout, SlotOffsets, round_up
from mpickpt.layout.parts import Box
from mpickpt.layout.placing import checksum_bytes, place
from mpickpt.store import preface
from mpickpt.store.dimensions import name_dimensions
from mpickpt.store.preface import Checksum
from mpickpt.store.raw import Unplaced, give_places
from mpickpt.store.structure import ARCHIVE_FORMAT, CHANNELS, FORMAT, FORMAT_VERSION, OBJECTS, TABLE
from mpickpt.store.table import table_of

CHUNK_BYTES = 256 * 1024
GZIP_LEVEL = 4
TYPE_BYTES = 48 * 1024  # HDF5 writes no type beyond 64 KiB into an object header
METADATA_BLOCK = 64 * 1024  # bytes that HDF5 sets aside at a time, so that its metadata lie together


def _version() -> str:
    try:
        return metadata.version("mpickpt")
    except metadata.PackageNotFoundError:
        return "not installed"


class _Skeleton:
    """An HDF5 file that is being created, of which no dataset has storage.

    In a packed file, arrays are chunked and compressed, and get their storage from HDF5 when they are written.
    """

    def __init__(self, path: Path, room: int, progress: Callable[[], object], packed: bool) -> None:
        self.packed = packed
        self._progress = progress
        self.unplaced: list[Unplaced] = []  # in the order in which they are created
        access = h5p.create(h5p.FILE_ACCESS)
        # What HDF5 1.10 reads, and headers without checksums, which `mpickpt.store.raw` completes.
        access.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_V110)
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        access.set_file_locking(False, True)
        access.set_meta_block_size(METADATA_BLOCK)
        creation = h5p.create(h5p.FILE_CREATE)
        creation.set_userblock(room)
        self.file = h5f.create(os.fsencode(path), h5f.ACC_TRUNC, fcpl=creation, fapl=access)
        self.raw = h5p.create(h5p.DATASET_CREATE)
        self.raw.set_layout(h5d.CONTIGUOUS)
        self.raw.set_alloc_time(h5d.ALLOC_TIME_LATE)
        self.raw.set_fill_time(h5d.FILL_TIME_NEVER)
        self.raw.set_obj_track_times(False)
        self._kinds: dict[np.dtype[Any], h5t.TypeID] = {}
        self._spaces: dict[tuple[int, ...], h5s.SpaceID] = {}

    def dataset(self, group: h5g.GroupID, name: str, kind: h5t.TypeID, shape: tuple[int, ...]) -> None:
        made = h5d.create(group, name.encode(), kind, self._space(shape), dcpl=self.raw)
        if nbytes := prod(shape) * kind.get_size():
            self.unplaced.append(Unplaced(h5o.get_info(made).addr, nbytes))

    def array(self, group: h5g.GroupID, spec: ArraySpec) -> None:
        self._progress()
        shape, kind = spec.stored_shape, self._kind(spec.dtype)
        if not self.packed:
            self.dataset(group, spec.name, kind, shape)
            return
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_obj_track_times(False)
        if spec.nbytes and shape:
            creation.set_chunk(_chunk(shape, spec.dtype.itemsize))
            creation.set_shuffle()
            creation.set_deflate(GZIP_LEVEL)
        h5d.create(group, spec.name.encode(), kind, self._space(shape), dcpl=creation)

    def _kind(self, dtype: np.dtype[Any]) -> h5t.TypeID:
        if dtype not in self._kinds:
            self._kinds[dtype] = _hdf5_type(dtype)
        return self._kinds[dtype]

    def _space(self, shape: tuple[int, ...]) -> h5s.SpaceID:
        if shape not in self._spaces:
            self._spaces[shape] = _space(shape)
        return self._spaces[shape]


def _chunk(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return a chunk that is a contiguous range of the array's bytes, at most `CHUNK_BYTES` unless a cell is larger."""
    row = itemsize
    chunk: tuple[int, ...] = ()
    for extent in reversed(shape):
        count = min(extent, max(1, CHUNK_BYTES // row))
        chunk = (count, *chunk)
        row *= extent
    return chunk


def _space(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)


def _hdf5_type(dtype: np.dtype[Any]) -> h5t.TypeID:
    """Return the HDF5 type of `dtype`, or an opaque one of the same size if HDF5 has none or cannot store it."""
    try:
        kind = h5t.py_create(dtype, logical=True)
        if kind.get_size() == dtype.itemsize and len(kind.encode()) <= TYPE_BYTES:
            return kind
    except (TypeError, ValueError):
        pass
    kind = h5t.create(h5t.OPAQUE, dtype.itemsize)
    kind.set_tag(b"NUMPY:" + (dtype.str if dtype.names is None else f"V{dtype.itemsize}").encode())
    return kind


def write_skeleton(
    path: Path, layout: Layout, checksum: Checksum, progress: Callable[[], object] = lambda: None
) -> tuple[list[SlotOffsets], bytes]:
    """Write the structure of a slot for `layout` into the file `path`; return the offsets by rank, and its preface.

    `progress` is called for each array of each rank.
    """
    room = preface.preface_bytes(1)
    places, end = _write_skeleton(path, layout, room, progress)
    return places, preface.write_preface(path, room, [(places[0].record, end)], checksum)


def write_packed_skeleton(path: Path, layout: Layout) -> list[SlotOffsets]:
    """Write the structure of a compressed archive into the file `path`; its arrays and then its preface follow.

    Returns
    -------
    list of SlotOffsets
        Offsets of all but the arrays, by rank.
    """
    chunks = sum(_chunk_count(spec) for rank in layout.ranks for spec in rank.arrays)
    places, _ = _write_skeleton(path, layout, preface.preface_bytes(chunks + 1), lambda: None, packed=True)
    return places


def _chunk_count(spec: ArraySpec) -> int:
    if not spec.nbytes or not spec.shape:
        return 1
    chunk = _chunk(spec.stored_shape, spec.dtype.itemsize)
    return prod(-(-extent // step) for extent, step in zip(spec.stored_shape, chunk, strict=True))


def _write_skeleton(
    path: Path, layout: Layout, room: int, progress: Callable[[], object], packed: bool = False
) -> tuple[list[SlotOffsets], int]:
    """Write the structure behind `room` bytes of preface; return where raw data lie, and where they end."""
    skeleton = _Skeleton(path, room, progress, packed)
    try:
        _write_root(skeleton, layout, packed)
        # Plain bytes: other readers trip over a compound, or end the process.
        skeleton.dataset(skeleton.file, "records", h5t.STD_U8LE, (len(layout.ranks), PAGE_BYTES))
        ranks, sums = (h5g.create(skeleton.file, name) for name in (b"ranks", b"checksums"))
        for number, rank in enumerate(layout.ranks):
            _write_rank(skeleton, ranks, sums, f"{number:05d}", rank, layout.block_bytes)
        h5g.create(skeleton.file, b"global")
        for name in layout.names:
            _write_global(skeleton.file, name, layout)
        _name_dimensions(skeleton.file, layout)
    finally:
        skeleton.file.close()
    places, end = place(layout, round_up(path.stat().st_size), arrays=not packed)
    give_places(path, room, zip(skeleton.unplaced, _starts(places), strict=True), end)
    return places, end


def _write_root(skeleton: _Skeleton, layout: Layout, packed: bool) -> None:
    """Write what the slot says of all ranks: attributes of the root, and the table."""
    h5py.File(skeleton.file).attrs.update(
        {
            "format": ARCHIVE_FORMAT if packed else FORMAT,
            "format_version": FORMAT_VERSION,
            "version": _version(),
            "world_size": len(layout.ranks),
            "block_bytes": layout.block_bytes,
            "layout_digest": layout.digest.hex(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
    )
    somewhere, _ = place(layout, PAGE_BYTES, arrays=not packed)  # the table does not say where the records begin
    table = np.frombuffer(table_of(layout, somewhere), np.uint8)
    h5d.create(skeleton.file, TABLE, h5t.STD_U8LE, _space(table.shape)).write(h5s.ALL, h5s.ALL, table)


def _write_rank(
    skeleton: _Skeleton, ranks: h5g.GroupID, sums: h5g.GroupID, number: str, rank: RankLayout, block_bytes: int
) -> None:
    """Create the datasets of a rank, in the order of `_starts`."""
    group = h5g.create(ranks, number.encode())
    for spec in rank.arrays:
        skeleton.array(group, spec)
    skeleton.dataset(sums, number, h5t.STD_U32LE, (checksum_bytes(rank.arrays, block_bytes) // 4,))
    skeleton.dataset(group, OBJECTS, h5t.STD_U8LE, (rank.objects_room,))
    if rank.channels_room:
        skeleton.dataset(group, CHANNELS, h5t.STD_U8LE, (rank.channels_room,))


def _starts(places: Sequence[SlotOffsets]) -> Iterator[int]:
    """Yield where the datasets begin that have bytes, in the order in which they were created."""
    yield places[0].record
    for one in places:
        yield from filter(None, (*one.arrays, one.first_checksum, one.objects, one.channels))


def _write_global(file: h5f.FileID, name: str, layout: Layout) -> None:
    """Create /global/`name`, the virtual dataset that joins the ranks' parts; nothing for arrays without parts."""
    specs = [(rank, spec) for rank, spec in layout.having(name) if spec.part]
    if not specs:
        return
    _, first = specs[0]
    assert first.part is not None
    transposed = first.order == "F"
    space = _space(first.part.shape[::-1] if transposed else first.part.shape)
    virtual = h5p.create(h5p.DATASET_CREATE)
    for rank, spec in specs:
        assert spec.part is not None
        here, there = spec.part.local_box(spec.shape), spec.owned
        if here.size:
            source = _space(spec.stored_shape)
            _select(source, here.transposed if transposed else here)
            _select(space, there.transposed if transposed else there)
            virtual.set_virtual(space, b".", f"/ranks/{rank:05d}/{name}".encode(), source)
    space.select_all()
    dataset = h5d.create(file, f"global/{name}".encode(), _hdf5_type(first.dtype), space, dcpl=virtual)
    order = np.array(first.order.encode())
    h5a.create(dataset, b"order", h5t.py_create(order.dtype), h5s.create(h5s.SCALAR)).write(order)


def _name_dimensions(file: h5f.FileID, layout: Layout) -> None:
    specs = [layout.first(name) for name in layout.names]
    dims = {spec.name: spec.part.dims for spec in specs if spec.part and spec.part.dims}
    reverse = frozenset(spec.name for spec in specs if spec.order == "F")
    name_dimensions(h5py.Group(h5g.open(file, b"global")), dims, reverse)


def _select(space: h5s.SpaceID, box: Box) -> None:
    if box.start:
        space.select_hyperslab(box.start, (1,) * len(box.start), block=box.extent)
