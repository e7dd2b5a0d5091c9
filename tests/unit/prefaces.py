"""Prefaces of slots, parsed and rebuilt by the format (docs/format.md), without the package's reader."""

from __future__ import annotations

import struct
from pathlib import Path

from mpickpt.snapshot import crc32c
from mpickpt.store.preface import write_preface

HEAD_BYTES = 64


def room_of(path: Path) -> int:
    """Return the size of the preface, which is where HDF5's part of the file begins."""
    magic, _, room = struct.unpack_from("<8sII", path.read_bytes())
    assert magic == b"MPKPREF1"
    return int(room)


def raw_ranges(path: Path) -> list[tuple[int, int]]:
    """Return the ranges of bytes that the preface calls raw data."""
    content = path.read_bytes()
    (count,) = struct.unpack_from("<Q", content, 24)
    return [struct.unpack_from("<QQ", content, HEAD_BYTES + 16 * k) for k in range(count)]  # type: ignore[misc]


def structure_bytes(path: Path) -> list[int]:
    """Return the positions of all bytes that HDF5 may read when it opens the file and walks through it."""
    content = path.read_bytes()
    (end,) = struct.unpack_from("<Q", content, 16)
    found: list[int] = []
    start = room_of(path)
    for first, stop in [*raw_ranges(path), (end, end)]:
        found += range(start, first)
        start = stop
    return found


def drop_preface(path: Path) -> None:
    """Make the slot one of an older version: HDF5's part of the file alone."""
    path.write_bytes(path.read_bytes()[room_of(path) :])


def renew_preface(path: Path) -> None:
    """Make the preface agree with the structure as it is now."""
    write_preface(path, room_of(path), raw_ranges(path), crc32c)
