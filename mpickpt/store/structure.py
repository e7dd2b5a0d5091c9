"""Reads the HDF5 structure of a slot file; `mpickpt.store.skeleton` writes it.

Raw data never pass through HDF5: only their offsets are read here. A file that is not a slot raises a `StoreError`,
whatever h5py says about it.

HDF5 opens a file that mpickpt did not just create only through `opened`, which checks that it is a regular file, and
that its structure matches its preface. A slot of an older version has no preface.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5, h5a, h5d, h5f, h5g, h5p

from mpickpt.errors import LayoutError, StoreError
from mpickpt.layout.arrays import (
    PAGE_BYTES,
    ArraySpec,
    Layout,
    RankLayout,
    SlotOffsets,
    dtype_from_text,
)
from mpickpt.layout.parts import Box, Part
from mpickpt.retry import TRANSIENT, read_again, reason_of, system_errno
from mpickpt.store import preface
from mpickpt.store.dimensions import read_dimensions
from mpickpt.store.preface import Checksum, plain

FORMAT = "mpickpt"
ARCHIVE_FORMAT = "mpickpt archive"  # the same, but the arrays are chunked and compressed: mpickpt.store.packed
FORMAT_VERSION = preface.FORMAT_VERSION
OBJECTS, CHANNELS = ".objects", ".channels"  # not possible names of arrays

PART_FIELDS = (b"global_shape", b"global_start", b"local_start", b"local_stop")


class Head(NamedTuple):
    """What the root of a slot says, with the byte offset of the first record, and the preface (empty without one)."""

    digest: bytes
    block_bytes: int
    world_size: int
    records: int
    packed: bool = False
    preface: bytes = b""


def read_head(path: Path, checksum: Checksum) -> Head:
    """Read the root of a slot; StoreError if the file is not a slot, or its structure is corrupt."""

    def read() -> Head:
        with reading(path, checksum) as (file, own):
            return head_of(file)._replace(preface=own)

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
            head = head_of(file)
            return head.digest, *structure_of(file, head)

    digest, layout, offsets = read_again(path, read)
    if layout.digest != digest:
        raise StoreError(f"The structure of {path} is not the one that it was created with: it is corrupt.", path=path)
    return layout, offsets


def offset_of(dataset: h5d.DatasetID) -> int:
    """Return the byte offset of a dataset's raw data in the file; 0 if it has none or they are in chunks."""
    return (dataset.get_offset() or 0) if dataset.get_storage_size() else 0


def structure_of(file: h5f.FileID, head: Head) -> tuple[Layout, list[SlotOffsets]]:
    """Read what is saved, and where it lies, from an open file."""
    ranks, offsets = [], []
    dims = read_dimensions(h5g.open(file, b"global"))
    for rank in range(head.world_size):
        group = h5g.open(file, f"ranks/{rank:05d}".encode())
        sums = h5g.open(file, f"checksums/{rank:05d}".encode())
        names: list[bytes] = []
        group.links.iterate(names.append, idx_type=h5.INDEX_CRT_ORDER)
        objects, objects_room = _take_payload(group, names, OBJECTS)
        channels, channels_room = _take_payload(group, names, CHANNELS) if CHANNELS.encode() in names else (0, 0)
        datasets = [h5d.open(group, name) for name in names]
        specs = tuple(_read_spec(name.decode(), dataset, dims) for name, dataset in zip(names, datasets, strict=True))
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
    """Check the structure of a slot or an archive, then open it for reading through HDF5; also yield its preface.

    The file that is opened is the one that was checked, even if another gets its name meanwhile.

    Raises
    ------
    StoreError
        If the structure is corrupt.
    ValueError, OSError
        If the file is not a slot, or cannot be read.
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
    """Open a slot for reading its structure; errors of h5py become a `StoreError`."""
    try:
        with opened(path, checksum) as (file, own):
            yield file, own
    except (KeyError, ValueError, TypeError, RuntimeError, OSError, LayoutError) as error:
        number = system_errno(error)
        likely = "Look into the storage" if number in TRANSIENT else "It is foreign, truncated or corrupt"
        message = f"{path} cannot be read as a slot: {reason_of(error)}. {likely}."
        raise StoreError(message, errno=number, path=path) from error


def head_of(file: h5f.FileID) -> Head:
    """Read the root of an open file."""
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
    shapes = (world_size, PAGE_BYTES), (world_size,)  # bytes; older versions stored a compound of that size
    if records.shape not in shapes or world_size < 1 or records.get_storage_size() != world_size * PAGE_BYTES:
        raise ValueError("its records do not fit its number of ranks")
    digest = bytes.fromhex(attributes["layout_digest"])
    packed = attributes["format"] == ARCHIVE_FORMAT
    return Head(digest, int(attributes["block_bytes"]), world_size, records.get_offset(), packed)


def _take_payload(group: h5g.GroupID, names: list[bytes], name: str) -> tuple[int, int]:
    """Take a dataset that is no array out of `names`, and return its offset and room."""
    names.remove(name.encode())
    dataset = h5d.open(group, name.encode())
    return offset_of(dataset), dataset.get_storage_size()


def _read_spec(name: str, dataset: h5d.DatasetID, dims: Mapping[str, tuple[str, ...]]) -> ArraySpec:
    dtype = dtype_from_text(_read_text(dataset, b"dtype"))
    transposed = _read_text(dataset, b"order") == "F"
    part = None
    if h5a.exists(dataset, PART_FIELDS[0]):
        shape, start, lo, hi = (_read_numbers(dataset, field) for field in PART_FIELDS)
        part = Part(shape, start, Box(lo, hi).slices, dims.get(name))
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
