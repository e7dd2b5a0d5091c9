"""Reads the HDF5 structure of a slot file; `mpickpt.store.skeleton` writes it.

Raw data never pass through HDF5: only their offsets are read here. A file that is not a slot raises a `StoreError`,
whatever h5py says about it.

HDF5 opens a file that mpickpt did not just create only through `opened`, which checks that it is a regular file, and
that its structure matches its preface. A slot of an older version has no preface.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s

from mpickpt.errors import LayoutError, StoreError
from mpickpt.layout.arrays import PAGE_BYTES, Layout, SlotOffsets
from mpickpt.retry import TRANSIENT, read_again, reason_of, system_errno
from mpickpt.store import preface
from mpickpt.store.preface import Checksum, plain
from mpickpt.store.table import read_table

FORMAT = "mpickpt"
ARCHIVE_FORMAT = "mpickpt archive"  # the same, but the arrays are chunked and compressed: mpickpt.store.packed
FORMAT_VERSION = preface.FORMAT_VERSION
OBJECTS, CHANNELS = ".objects", ".channels"  # not possible names of arrays
TABLE = b"layout"


class Head(NamedTuple):
    """What the root of a slot says.

    `records` is the byte offset of the first record, `version` that of the format; `preface` is empty without one.
    """

    digest: bytes
    block_bytes: int
    world_size: int
    records: int
    version: int
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


def structure_of(file: h5f.FileID, head: Head) -> tuple[Layout, list[SlotOffsets]]:
    """Read what is saved, and where it lies, from an open file."""
    if head.version == 1:
        from mpickpt.store.older import structure_of_version_1

        return structure_of_version_1(file, head.records, head.world_size, head.block_bytes)
    dataset = h5d.open(file, TABLE)
    data = np.empty(dataset.shape, np.uint8)
    dataset.read(h5s.ALL, h5s.ALL, data)
    return read_table(data.tobytes(), head.records, head.block_bytes)


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
    except (LookupError, ValueError, TypeError, RuntimeError, OSError, LayoutError) as error:
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
    return Head(digest, int(attributes["block_bytes"]), world_size, records.get_offset(), version, packed)
