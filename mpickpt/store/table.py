"""The table of a slot: what each rank saves, and where it lies, as JSON; said once, not by attributes of each dataset.

What ranks have in common is written once. All offsets count from the first record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from mpickpt.layout.arrays import (
    RECORD,
    ArraySpec,
    Layout,
    RankLayout,
    SlotOffsets,
    dtype_from_text,
    dtype_to_text,
)
from mpickpt.layout.parts import Box, Part
from mpickpt.layout.placing import checksums_at

Kind = dict[str, Any]


def table_of(layout: Layout, places: Sequence[SlotOffsets]) -> bytes:
    """Return the table of a slot for `layout`, in which each rank's share lies at its of the `places`."""
    base = places[0].record
    kinds: dict[tuple[object, ...], tuple[int, Kind]] = {}
    ranks = []
    for rank, place in zip(layout.ranks, places, strict=True):
        rows: list[list[object]] = []
        for spec, at in zip(rank.arrays, place.arrays, strict=True):
            kind = _kind(spec)
            number, _ = kinds.setdefault(tuple(kind.values()), (len(kinds), kind))
            rows.append([number, _from(base, at), *([spec.part.start] if spec.part is not None else [])])
        one: dict[str, object] = {"arrays": rows, "checksums": _from(base, place.first_checksum)}
        one["objects"] = [_from(base, place.objects), place.objects_room]
        one["channels"] = [_from(base, place.channels), place.channels_room]
        ranks.append(one)
    return json.dumps({"kinds": [kind for _, kind in kinds.values()], "ranks": ranks}).encode()


def _from(base: int, at: int) -> int | None:
    return at - base if at else None


def _kind(spec: ArraySpec) -> Kind:
    """Return what an array has in common with those of other ranks: all but where its part begins."""
    kind: Kind = {"name": spec.name, "shape": spec.shape, "dtype": dtype_to_text(spec.dtype), "order": spec.order}
    if spec.part is not None:
        local = spec.part.local_box(spec.shape)
        kind |= {"global_shape": spec.part.shape, "local_start": local.start, "local_stop": local.stop}
        kind |= {"dims": spec.part.dims} if spec.part.dims else {}
    return kind


def read_table(data: bytes, base: int, block_bytes: int) -> tuple[Layout, list[SlotOffsets]]:
    """Return what `table_of` wrote, for a slot whose first record is at the byte offset `base`.

    Raises
    ------
    ValueError, KeyError, TypeError, IndexError, LayoutError
        If it is not such a table.
    """
    table = json.loads(data)
    specs = [_specs(kind) for kind in table["kinds"]]
    ranks, places = [], []
    for number, one in enumerate(table["ranks"]):
        rows = [(specs[kind](*start), at) for kind, at, *start in one["arrays"]]
        (objects, objects_room), (channels, channels_room) = one["objects"], one["channels"]
        arrays = tuple(spec for spec, _ in rows)
        ranks.append(RankLayout(arrays, objects_room, channels_room))
        places.append(
            SlotOffsets(
                record=base + number * RECORD.itemsize,
                arrays=tuple(_at(base, at) for _, at in rows),
                checksums=tuple(checksums_at(arrays, _at(base, one["checksums"]), block_bytes)),
                objects=_at(base, objects),
                objects_room=objects_room,
                channels=_at(base, channels),
                channels_room=channels_room,
            )
        )
    return Layout(tuple(ranks), block_bytes), places


def _at(base: int, offset: int | None) -> int:
    return 0 if offset is None else base + offset


def _specs(kind: Kind) -> Callable[..., ArraySpec]:
    """Return a function of the start of a part, or of nothing, that gives the array of this kind."""
    name, shape, dtype, order = kind["name"], tuple(kind["shape"]), dtype_from_text(kind["dtype"]), kind["order"]
    if "global_shape" not in kind:
        alone = ArraySpec(name, shape, dtype, None, order)
        return lambda: alone
    whole, local = tuple(kind["global_shape"]), Box(tuple(kind["local_start"]), tuple(kind["local_stop"])).slices
    dims = kind.get("dims")
    return lambda start: ArraySpec(name, shape, dtype, Part(whole, tuple(start), local, dims), order)
