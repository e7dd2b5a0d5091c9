"""Reads slots of format version 1, which had attributes on each dataset in place of a table."""

from __future__ import annotations

import numpy as np
from h5py import h5, h5a, h5d, h5f, h5g

from mpickpt.layout.arrays import PAGE_BYTES, ArraySpec, Layout, RankLayout, SlotOffsets, dtype_from_text
from mpickpt.layout.parts import Box, Part
from mpickpt.store.raw import offset_of

_OBJECTS, _CHANNELS = b".objects", b".channels"
_PART_FIELDS = (b"global_shape", b"global_start", b"local_start", b"local_stop")


def structure_of_version_1(
    file: h5f.FileID, records: int, world_size: int, block_bytes: int
) -> tuple[Layout, list[SlotOffsets]]:
    """Read what is saved, and where it lies; the first record is at the byte offset `records`."""
    ranks, offsets = [], []
    for rank in range(world_size):
        group = h5g.open(file, f"ranks/{rank:05d}".encode())
        sums = h5g.open(file, f"checksums/{rank:05d}".encode())
        names: list[bytes] = []
        group.links.iterate(names.append, idx_type=h5.INDEX_CRT_ORDER)
        objects, objects_room = _take_payload(group, names, _OBJECTS)
        channels, channels_room = _take_payload(group, names, _CHANNELS) if _CHANNELS in names else (0, 0)
        datasets = [h5d.open(group, name) for name in names]
        specs = tuple(_read_spec(name.decode(), dataset) for name, dataset in zip(names, datasets, strict=True))
        ranks.append(RankLayout(specs, objects_room, channels_room))
        offsets.append(
            SlotOffsets(
                record=records + rank * PAGE_BYTES,
                arrays=tuple(offset_of(dataset) for dataset in datasets),
                checksums=tuple(offset_of(h5d.open(sums, name)) for name in names),
                objects=objects,
                objects_room=objects_room,
                channels=channels,
                channels_room=channels_room,
            )
        )
    return Layout(tuple(ranks), block_bytes), offsets


def _take_payload(group: h5g.GroupID, names: list[bytes], name: bytes) -> tuple[int, int]:
    """Take a dataset that is no array out of `names`, and return its offset and room."""
    names.remove(name)
    dataset = h5d.open(group, name)
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
