"""Writes the HDF5 structure of a slot file or an archive, once, before any data.

The datasets of a slot are allocated but not filled: raw data never pass through HDF5.
"""

from __future__ import annotations

import datetime
import os
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5g, h5p, h5s, h5t

from mpickpt.layout.arrays import (
    PAGE_BYTES,
    ArraySpec,
    Layout,
    RankLayout,
    SlotOffsets,
    blocks_in,
    dtype_to_text,
    round_up,
)
from mpickpt.layout.parts import Box
from mpickpt.store import preface
from mpickpt.store.dimensions import name_dimensions
from mpickpt.store.preface import Checksum
from mpickpt.store.structure import (
    ARCHIVE_FORMAT,
    CHANNELS,
    FORMAT,
    FORMAT_VERSION,
    OBJECTS,
    PART_FIELDS,
    head_of,
    offset_of,
    opened_unchecked,
    structure_of,
)

CHUNK_BYTES = 256 * 1024
GZIP_LEVEL = 4
TYPE_BYTES = 48 * 1024  # HDF5 writes no type beyond 64 KiB into an object header


def _write_text(place: h5d.DatasetID, name: bytes, text: str) -> None:
    value = np.array(text.encode())
    h5a.create(place, name, h5t.py_create(value.dtype), h5s.create(h5s.SCALAR)).write(value)


def _write_numbers(place: h5d.DatasetID, name: bytes, numbers: tuple[int, ...]) -> None:
    value = np.array(numbers, dtype=np.int64)
    h5a.create(place, name, h5t.STD_I64LE, h5s.create_simple(value.shape)).write(value)


def _version() -> str:
    try:
        return metadata.version("mpickpt")
    except metadata.PackageNotFoundError:
        return "not installed"


class _Skeleton:
    """An HDF5 file that is being created: every dataset starts on a page of its own, and none is filled.

    In a packed file, arrays are chunked and compressed, and nothing is aligned.
    """

    def __init__(self, path: Path, room: int, packed: bool = False) -> None:
        self.packed = packed
        self.raw_ranges: list[preface.Range] = []
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_libver_bounds(h5f.LIBVER_V18, h5f.LIBVER_V110)  # what HDF5 1.10 reads
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        access.set_file_locking(False, True)
        # Threshold 0: tiny datasets and HDF5's own metadata are aligned too, so that nothing shares a page with a
        # dataset that is written by O_DIRECT.
        if not packed:
            access.set_alignment(0, PAGE_BYTES)
        # No list of the gaps that alignment leaves: HDF5 would search all of it for each new dataset.
        creation = h5p.create(h5p.FILE_CREATE)
        creation.set_file_space_strategy(h5f.FSPACE_STRATEGY_AGGR, False, 1)
        creation.set_userblock(room)
        self.file = h5f.create(os.fsencode(path), h5f.ACC_TRUNC, fcpl=creation, fapl=access)
        self.raw = h5p.create(h5p.DATASET_CREATE)
        self.raw.set_layout(h5d.CONTIGUOUS)
        self.raw.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        self.raw.set_fill_time(h5d.FILL_TIME_NEVER)
        self.raw.set_obj_track_times(False)
        self.ordered = h5p.create(h5p.GROUP_CREATE)
        self.ordered.set_link_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)

    def group(self, name: str) -> h5g.GroupID:
        return h5g.create(self.file, name.encode(), gcpl=self.ordered)

    def dataset(self, group: h5g.GroupID, name: str, kind: h5t.TypeID, shape: tuple[int, ...]) -> h5d.DatasetID:
        made = h5d.create(group, name.encode(), kind, _space(shape), dcpl=self.raw)
        start, nbytes = offset_of(made), made.get_storage_size()
        self.raw_ranges.append((start, start + (nbytes if self.packed else round_up(nbytes))))
        return made

    def array(self, group: h5g.GroupID, spec: ArraySpec) -> h5d.DatasetID:
        shape, kind = spec.stored_shape, _hdf5_type(spec.dtype)
        if not self.packed or not spec.nbytes or not shape:
            return self.dataset(group, spec.name, kind, shape)
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_chunk(_chunk(shape, spec.dtype.itemsize))
        creation.set_shuffle()
        creation.set_deflate(GZIP_LEVEL)
        creation.set_obj_track_times(False)
        return h5d.create(group, spec.name.encode(), kind, _space(shape), dcpl=creation)


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


def write_skeleton(path: Path, layout: Layout, checksum: Checksum) -> None:
    """Write the structure of a slot for `layout` into the file `path`, and its preface."""
    room = preface.preface_bytes(1 + sum(2 + 2 * len(rank.arrays) for rank in layout.ranks))
    preface.write_preface(path, room, _write_skeleton(path, layout, room), checksum)


def write_packed_skeleton(path: Path, layout: Layout) -> list[SlotOffsets]:
    """Write the structure of a compressed archive into the file `path`; its arrays and then its preface follow.

    Returns
    -------
    list of SlotOffsets
        Offsets of all but the arrays, by rank.
    """
    chunks = sum(_chunk_count(spec) for rank in layout.ranks for spec in rank.arrays)
    room = preface.preface_bytes(chunks + 1 + sum(2 + 2 * len(rank.arrays) for rank in layout.ranks))
    _write_skeleton(path, layout, room, packed=True)
    with opened_unchecked(path) as file:
        return structure_of(file, head_of(file))[1]


def _chunk_count(spec: ArraySpec) -> int:
    if not spec.nbytes or not spec.shape:
        return 0
    chunk = _chunk(spec.stored_shape, spec.dtype.itemsize)
    return prod(-(-extent // step) for extent, step in zip(spec.stored_shape, chunk, strict=True))


def _write_skeleton(path: Path, layout: Layout, room: int, packed: bool = False) -> list[preface.Range]:
    """Write the structure behind `room` bytes of preface, close the file, and return where raw data lie so far."""
    skeleton = _Skeleton(path, room, packed)
    try:
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
        # Plain bytes: other readers trip over a compound, or end the process.
        skeleton.dataset(skeleton.file, "records", h5t.STD_U8LE, (len(layout.ranks), PAGE_BYTES))
        skeleton.group("ranks")
        skeleton.group("checksums")
        for number, rank in enumerate(layout.ranks):
            _write_rank(skeleton, f"{number:05d}", rank, layout.block_bytes)
        skeleton.group("global")
        for name in layout.names:
            _write_global(skeleton.file, name, layout)
        _name_dimensions(skeleton.file, layout)
    finally:
        skeleton.file.close()
    return skeleton.raw_ranges


def _write_rank(skeleton: _Skeleton, number: str, rank: RankLayout, block_bytes: int) -> None:
    group = skeleton.group(f"ranks/{number}")
    sums = skeleton.group(f"checksums/{number}")
    for spec in rank.arrays:
        dataset = skeleton.array(group, spec)
        _write_text(dataset, b"dtype", dtype_to_text(spec.dtype))
        _write_text(dataset, b"order", spec.order)
        if spec.part is not None:
            local = spec.part.local_box(spec.shape)
            for field_name, numbers in zip(PART_FIELDS, (spec.part.shape, spec.part.start, *local), strict=True):
                _write_numbers(dataset, field_name, numbers)
        skeleton.dataset(sums, spec.name, h5t.STD_U32LE, (blocks_in(spec.nbytes, block_bytes),))
    skeleton.dataset(group, OBJECTS, h5t.STD_U8LE, (rank.objects_room,))
    if rank.channels_room:
        skeleton.dataset(group, CHANNELS, h5t.STD_U8LE, (rank.channels_room,))


def _write_global(file: h5f.FileID, name: str, layout: Layout) -> None:
    """Create /global/`name`, the virtual dataset that joins the ranks' parts; nothing for arrays without parts."""
    specs = [(r, spec) for r, rank in enumerate(layout.ranks) if (spec := rank.spec(name)) and spec.part]
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
    _write_text(dataset, b"order", first.order)


def _name_dimensions(file: h5f.FileID, layout: Layout) -> None:
    specs = {spec.name: spec for rank in layout.ranks for spec in rank.arrays if spec.part and spec.part.dims}
    dims = {name: spec.part.dims for name, spec in specs.items() if spec.part and spec.part.dims}
    reverse = frozenset(name for name, spec in specs.items() if spec.order == "F")
    name_dimensions(h5py.Group(h5g.open(file, b"global")), dims, reverse)


def _select(space: h5s.SpaceID, box: Box) -> None:
    if box.start:
        space.select_hyperslab(box.start, (1,) * len(box.start), block=box.extent)
