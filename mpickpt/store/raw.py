"""Raw data: where they lie, and how they get pages of their own behind all that HDF5 has written into a file.

HDF5 can align datasets, but then it aligns its own headers as well, and a slot of many arrays becomes many times as
large and as slow to make. So its datasets are created without storage, which their headers say by an undefined address
in the data layout message (HDF5 File Format Specification 3.0, IV.A.2.i). Here the address is filled in, and the end of
the file in the superblock (II.A). Headers of version 1 and superblocks of version 0 have no checksums.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
from h5py import h5d

from mpickpt.errors import StoreError

_UNDEFINED = 2**64 - 1
_END_OF_FILE = 40  # where it stands in a superblock of version 0
_PREFIX = struct.Struct("<BxHIIxxxx")  # of a header: version, messages, references, bytes of the first chunk
_MESSAGE = struct.Struct("<HHBxxx")  # before each message: type, bytes, flags
_CONTINUATION, _LAYOUT = 0x10, 0x08
_CHUNK = struct.Struct("<QQ")  # where a header goes on, and for how many bytes
_CONTIGUOUS = struct.Struct("<BBQQ")  # version 3, class 1, address, bytes


def offset_of(dataset: h5d.DatasetID) -> int:
    """Return the byte offset of a dataset's raw data in the file; 0 if it has none or they are in chunks."""
    return (dataset.get_offset() or 0) if dataset.get_storage_size() else 0


class Unplaced(NamedTuple):
    """A dataset without storage: where its header is, by HDF5's count, and how many bytes it needs."""

    header: int
    nbytes: int


def give_places(path: Path, room: int, placed: Iterable[tuple[Unplaced, int]], end: int) -> None:
    """Fill in where the raw data of datasets lie.

    Parameters
    ----------
    path : pathlib.Path
        The file; closed.
    room : int
        Bytes in front of HDF5's part of the file, whose addresses count from there.
    placed : iterable of (Unplaced, int)
        Each dataset, with the byte offset in the file at which its raw data begin.
    end : int
        Where the file ends then.

    Raises
    ------
    StoreError
        If HDF5 wrote something else than expected; the file is then of no use.
    """
    content = bytearray(path.read_bytes())  # not mapped: a full disk would then be a signal
    for dataset, start in placed:
        struct.pack_into("<Q", content, _address_field(content, room, dataset), start - room)
    _check(content[room + 8] == 0, "a superblock of another version")
    (old_end,) = struct.unpack_from("<Q", content, room + _END_OF_FILE)
    _check(old_end == len(content), "another end of the file")
    struct.pack_into("<Q", content, room + _END_OF_FILE, end)
    with path.open("r+b") as file:
        file.write(content)
        file.truncate(end)


def _address_field(content: bytearray, room: int, dataset: Unplaced) -> int:
    """Find the place of the address in a dataset's header."""
    for at in _messages(content, room, dataset.header, _LAYOUT):
        _check(_CONTIGUOUS.unpack_from(content, at) == (3, 1, _UNDEFINED, dataset.nbytes), "another data layout")
        return at + 2
    raise _unexpected("a header without a data layout")


def _messages(content: bytearray, room: int, header: int, wanted: int) -> Iterator[int]:
    """Yield where the messages of a type begin in a header."""
    version, _, _, nbytes = _PREFIX.unpack_from(content, room + header)
    _check(version == 1, "a header of another version")
    chunks = [(room + header + _PREFIX.size, nbytes)]
    for start, length in chunks:  # which grows
        at = start
        while at + _MESSAGE.size <= start + length:
            kind, size, _ = _MESSAGE.unpack_from(content, at)
            at += _MESSAGE.size
            if kind == _CONTINUATION:
                further, its_length = _CHUNK.unpack_from(content, at)
                chunks.append((room + further, its_length))
            elif kind == wanted:
                yield at
            at += size


def _check(expected: bool, found: str) -> None:
    if not expected:
        raise _unexpected(found)


def _unexpected(found: str) -> StoreError:
    version = h5py.version.hdf5_version
    return StoreError(f"HDF5 {version} wrote {found} than mpickpt completes. Use h5py with HDF5 1.12 to 2.0.")
