"""Layouts for tests, and epochs written into slots by plain pwrite, without the snapshotter."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpickpt.layout.arrays import RECORD, RECORD_MAGIC, ArraySpec, Layout, Order, RankLayout, RecordState
from mpickpt.layout.parts import Part
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, slot_path, spill_path


def record(**fields: object) -> bytes:
    """Make the bytes of one record, with the right checksum."""
    made = np.zeros(1, RECORD)
    made["magic"] = RECORD_MAGIC
    for name, value in fields.items():
        made[name] = np.void(value) if isinstance(value, bytes) else value
    raw = made.tobytes()
    return raw[:-4] + crc32c(raw[:-4]).to_bytes(4, "little")


def write_epoch(
    store: Store,
    index: int,
    layout: Layout,
    arrays: Sequence[Mapping[str, NDArray[Any]]],
    *,
    epoch: int = 1,
    step: int = 10,
    objects: Sequence[Mapping[str, Any]] = (),
    channels: Sequence[bytes] = (),
) -> Path:
    """Create slot `index` if need be, and write each rank's arrays, objects and channels and its record."""
    path = slot_path(store.directory, index)
    if not path.exists():
        store.create(index, layout)
    fd = os.open(path, os.O_RDWR)
    for rank, place in enumerate(store.offsets(index)):
        for spec, at, sums_at in zip(layout.ranks[rank].arrays, place.arrays, place.checksums, strict=True):
            raw = arrays[rank][spec.name].tobytes(order=spec.order)
            assert len(raw) == spec.nbytes
            sums = [crc32c(raw[k : k + layout.block_bytes]) for k in range(0, len(raw), layout.block_bytes)]
            os.pwrite(fd, raw, at)
            os.pwrite(fd, np.array(sums, np.uint32).tobytes(), sums_at)
        payload = pickle.dumps(dict(objects[rank]) if objects else {})
        spilled = len(payload) > place.objects_room
        if spilled:
            spill_path(path, rank).write_bytes(payload)
        else:
            os.pwrite(fd, payload, place.objects)
        in_flight = channels[rank] if channels else b""
        in_flight_spilled = len(in_flight) > place.channels_room
        if in_flight_spilled:
            spill_path(path, rank, "channels").write_bytes(in_flight)
        else:
            os.pwrite(fd, in_flight, place.channels)
        made = record(
            state=RecordState.COMPLETE, rank=rank, epoch=epoch, step=step, run=7, digest=layout.digest,
            objects_bytes=len(payload), objects_crc=crc32c(payload), objects_spilled=spilled,
            channels_bytes=len(in_flight), channels_crc=crc32c(in_flight), channels_spilled=in_flight_spilled,
        )  # fmt: skip
        os.pwrite(fd, made, place.record)
    os.close(fd)
    return path


def rows(ranks: int, cols: int = 3, halo: int = 1, order: Order = "C", dtype: DTypeLike = "f8") -> Layout:
    """Rank r has r rows of a global array, with halo rows; rank 0 has none."""
    world = (sum(range(ranks)), cols)
    return Layout.of(
        RankLayout(
            (
                ArraySpec(
                    "u",
                    (r + 2 * halo, cols),
                    np.dtype(dtype),
                    Part(world, (sum(range(r)), 0), np.s_[halo : halo + r]),
                    order,
                ),
                ArraySpec("scalar", (), np.dtype("i4")),
                ArraySpec("empty", (0, 5), np.dtype("c16")),
            )
        )
        for r in range(ranks)
    )


def spans(path: Path) -> list[tuple[int, int, str]]:
    """Where each dataset's raw data lie, read with plain h5py."""
    found = []

    def take(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not item.is_virtual and item.size and name != "layout":
            found.append((item.id.get_offset(), item.id.get_storage_size(), name))

    with h5py.File(path) as file:
        file.visititems(take)
    return sorted(found)
