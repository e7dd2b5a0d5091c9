"""The HDF5 structure of a slot file: writing it once, and reading it back.

Raw data never pass through HDF5: datasets are created with their space and without being filled, and what is read
here is where they lie. Files that are no slots end in a `StoreError` with a sentence, whatever h5py says about them.

`opened` is the one door through which mpickpt has HDF5 open a file that it did not just make: the file is a regular
one, and its structure agrees with its preface, or it is an older version's and has none.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5, h5a, h5d, h5f, h5g, h5p, h5s, h5t

from mpickpt.errors import LayoutError, StoreError
from mpickpt.layout.arrays import (
    PAGE_BYTES,
    RECORD,
    ArraySpec,
    Layout,
    RankLayout,
    SlotOffsets,
    blocks_in,
    dtype_from_text,
    dtype_to_text,
    round_up,
)
from mpickpt.layout.parts import Box, Part
from mpickpt.retry import TRANSIENT, read_again, reason_of, system_errno
from mpickpt.store import preface
from mpickpt.store.preface import Checksum, plain

FORMAT = "mpickpt"
ARCHIVE_FORMAT = "mpickpt archive"  # the same, but the arrays are chunked and compressed: mpickpt.store.packed
FORMAT_VERSION = preface.FORMAT_VERSION
CHUNK_BYTES = 256 * 1024
GZIP_LEVEL = 4
TYPE_BYTES = 48 * 1024  # HDF5 writes no type beyond 64 KiB into an object header
OBJECTS, CHANNELS = ".objects", ".channels"  # not possible names of arrays

_PART_FIELDS = (b"global_shape", b"global_start", b"local_start", b"local_stop")


class Head(NamedTuple):
    """What the root of a slot says, with the byte offset of the first record, and the preface (empty without one)."""

    digest: bytes
    block_bytes: int
    world_size: int
    records: int
    packed: bool = False
    preface: bytes = b""


def read_head(path: Path, checksum: Checksum) -> Head:
    """Read the root of a slot; StoreError if the file is not a slot, or its structure is damaged."""

    def read() -> Head:
        with reading(path, checksum) as (file, own):
            return _head(file)._replace(preface=own)

    return read_again(path, read)


def read_structure(path: Path, checksum: Checksum) -> tuple[Layout, list[SlotOffsets]]:
    """Read a slot's layout and the byte offsets by rank.

    Raises
    ------
    StoreError
        If the file is not a readable slot, or its structure is not the one that it was created with.
    """

    def read() -> tuple[bytes, Layout, list[SlotOffsets]]:
        with reading(path, checksum) as (file, _):
            head = _head(file)
            return head.digest, *_structure(file, head)

    digest, layout, offsets = read_again(path, read)
    if layout.digest != digest:
        raise StoreError(f"The structure of {path} is not the one that it was created with: it is damaged.", path=path)
    return layout, offsets


def offset_of(dataset: h5d.DatasetID) -> int:
    """Return the byte offset of a dataset's raw data in the file; 0 if it has none or they are in chunks."""
    return (dataset.get_offset() or 0) if dataset.get_storage_size() else 0


def _structure(file: h5f.FileID, head: Head) -> tuple[Layout, list[SlotOffsets]]:
    ranks, offsets = [], []
    for rank in range(head.world_size):
        group = h5g.open(file, f"ranks/{rank:05d}".encode())
        sums = h5g.open(file, f"checksums/{rank:05d}".encode())
        names: list[bytes] = []
        group.links.iterate(names.append, idx_type=h5.INDEX_CRT_ORDER)
        objects, objects_room = _take_payload(group, names, OBJECTS)
        channels, channels_room = _take_payload(group, names, CHANNELS) if CHANNELS.encode() in names else (0, 0)
        datasets = [h5d.open(group, name) for name in names]
        specs = tuple(_read_spec(name.decode(), dataset) for name, dataset in zip(names, datasets, strict=True))
        ranks.append(RankLayout(specs, objects_room, channels_room))
        offsets.append(
            SlotOffsets(
                record=head.records + rank * PAGE_BYTES,
                arrays=tuple(offset_of(dataset) for dataset in datasets),
                checksums=tuple(offset_of(h5d.open(sums, name)) for name in names),
                objects=objects,
                objects_room=objects_room,
                channels=channels,
                channels_room=channels_room,
            )
        )
    return Layout(tuple(ranks), head.block_bytes), offsets


@contextmanager
def opened(path: Path, checksum: Checksum) -> Iterator[tuple[h5f.FileID, bytes]]:
    """Open a slot or an archive through HDF5 to read it, when its structure was found undamaged; also its preface.

    What is opened is what was checked, whatever gets its name meanwhile.

    Raises
    ------
    StoreError
        If the structure is damaged.
    ValueError, OSError
        If the file is no slot, or cannot be read.
    """
    with plain(path) as fd:
        own = preface.check(fd, path, checksum)
        with opened_unchecked(Path(f"/proc/self/fd/{fd}")) as file:
            yield file, own


@contextmanager
def opened_unchecked(path: Path, flags: int = h5f.ACC_RDONLY) -> Iterator[h5f.FileID]:
    """Open a file that this process has just made through HDF5, without HDF5's own locks."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_file_locking(False, True)
    file = h5f.open(os.fsencode(path), flags, fapl=access)
    try:
        yield file
    finally:
        file.close()


@contextmanager
def reading(path: Path, checksum: Checksum) -> Iterator[tuple[h5f.FileID, bytes]]:
    """Open a slot for reading its structure; what h5py says about files that are none becomes a `StoreError`."""
    try:
        with opened(path, checksum) as (file, own):
            yield file, own
    except (KeyError, ValueError, TypeError, RuntimeError, OSError, LayoutError) as error:
        number = system_errno(error)
        likely = "Look into the storage" if number in TRANSIENT else "It is foreign, truncated or damaged"
        message = f"{path} cannot be read as a slot: {reason_of(error)}. {likely}."
        raise StoreError(message, errno=number, path=path) from error


def _head(file: h5f.FileID) -> Head:
    attributes = h5py.File(file).attrs
    if attributes.get("format") not in (FORMAT, ARCHIVE_FORMAT):
        raise ValueError("it is an HDF5 file of another program")
    if (version := int(attributes["format_version"])) > FORMAT_VERSION:
        written_by = attributes.get("version", "of unknown number")
        raise ValueError(
            f"it has format {version}, written by the newer mpickpt {written_by}; this one reads {FORMAT_VERSION}"
        )
    records = h5d.open(file, b"records")
    world_size = int(attributes["world_size"])
    if records.shape != (world_size,) or world_size < 1 or records.get_storage_size() != world_size * PAGE_BYTES:
        raise ValueError("its records do not fit its number of ranks")
    digest = bytes.fromhex(attributes["layout_digest"])
    packed = attributes["format"] == ARCHIVE_FORMAT
    return Head(digest, int(attributes["block_bytes"]), world_size, records.get_offset(), packed)


def _take_payload(group: h5g.GroupID, names: list[bytes], name: str) -> tuple[int, int]:
    """Take a dataset that is no array out of `names`, and give its offset and room."""
    names.remove(name.encode())
    dataset = h5d.open(group, name.encode())
    return offset_of(dataset), dataset.get_storage_size()


def _read_spec(name: str, dataset: h5d.DatasetID) -> ArraySpec:
    dtype = dtype_from_text(_read_text(dataset, b"dtype"))
    transposed = _read_text(dataset, b"order") == "F"
    part = None
    if h5a.exists(dataset, _PART_FIELDS[0]):
        shape, start, lo, hi = (_read_numbers(dataset, field) for field in _PART_FIELDS)
        part = Part(shape, start, Box(lo, hi).slices)
    shape = dataset.shape[::-1] if transposed else dataset.shape
    return ArraySpec(name, shape, dtype, part, "F" if transposed else "C")


def _read_text(place: h5d.DatasetID, name: bytes) -> str:
    attribute = h5a.open(place, name)
    text = np.empty((), attribute.dtype)
    attribute.read(text)
    return bytes(text[()]).decode()


def _read_numbers(place: h5d.DatasetID, name: bytes) -> tuple[int, ...]:
    attribute = h5a.open(place, name)
    numbers = np.empty(attribute.shape, np.int64)
    attribute.read(numbers)
    return tuple(int(n) for n in numbers)


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
    """An HDF5 file in the making: where every dataset starts on a page of its own and nothing is filled.

    The arrays of a packed one are chunked and compressed, and nothing is aligned.
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
        # No list of the gaps that alignment leaves: HDF5 would search all of it for each new dataset (34 s in place of
        # 3 s for 1,000 ranks with 3 arrays).
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
    """Find a chunk that is one stretch of the array's bytes, of at most `CHUNK_BYTES` where the cells allow it."""
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
    """Find the HDF5 type of `dtype`, or an opaque one of the same size where HDF5 has none or cannot write it down."""
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
    """Write the structure of a compressed archive into the file `path`; its arrays, then its preface are still to come.

    Returns
    -------
    list of SlotOffsets
        Where all lies but the arrays, by rank.
    """
    chunks = sum(_chunk_count(spec) for rank in layout.ranks for spec in rank.arrays)
    room = preface.preface_bytes(chunks + 1 + sum(2 + 2 * len(rank.arrays) for rank in layout.ranks))
    _write_skeleton(path, layout, room, packed=True)
    with opened_unchecked(path) as file:
        return _structure(file, _head(file))[1]


def _chunk_count(spec: ArraySpec) -> int:
    if not spec.nbytes or not spec.shape:
        return 0
    chunk = _chunk(spec.stored_shape, spec.dtype.itemsize)
    return prod(-(-extent // step) for extent, step in zip(spec.stored_shape, chunk, strict=True))


def _write_skeleton(path: Path, layout: Layout, room: int, packed: bool = False) -> list[preface.Range]:
    """Write the structure behind `room` bytes of preface, close the file, and tell where raw data lie so far."""
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
        skeleton.dataset(skeleton.file, "records", h5t.py_create(RECORD), (len(layout.ranks),))
        skeleton.group("ranks")
        skeleton.group("checksums")
        for number, rank in enumerate(layout.ranks):
            _write_rank(skeleton, f"{number:05d}", rank, layout.block_bytes)
        skeleton.group("global")
        for name in layout.names:
            _write_global(skeleton.file, name, layout)
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
            for field_name, numbers in zip(_PART_FIELDS, (spec.part.shape, spec.part.start, *local), strict=True):
                _write_numbers(dataset, field_name, numbers)
        skeleton.dataset(sums, spec.name, h5t.STD_U32LE, (blocks_in(spec.nbytes, block_bytes),))
    skeleton.dataset(group, OBJECTS, h5t.STD_U8LE, (rank.objects_room,))
    if rank.channels_room:
        skeleton.dataset(group, CHANNELS, h5t.STD_U8LE, (rank.channels_room,))


def _write_global(file: h5f.FileID, name: str, layout: Layout) -> None:
    """Make /global/`name`, the virtual dataset that puts the ranks' parts together; nothing for arrays without part."""
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


def _select(space: h5s.SpaceID, box: Box) -> None:
    if box.start:
        space.select_hyperslab(box.start, (1,) * len(box.start), block=box.extent)
