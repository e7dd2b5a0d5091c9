"""Where the raw data of a slot lie: rank after rank, each with its arrays, its checksums, and its room for payloads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mpickpt.layout.arrays import PAGE_BYTES, ArraySpec, Layout, SlotOffsets, blocks_in, round_up


def place(layout: Layout, base: int, *, arrays: bool = True) -> tuple[list[SlotOffsets], int]:
    """Give everything pages of its own, from the byte offset `base` on.

    Parameters
    ----------
    layout : Layout
        What all ranks save.
    base : int
        Where the records begin, which come first.
    arrays : bool
        Whether the arrays lie there; without, their offsets are 0, as in a compressed archive.

    Returns
    -------
    places : list of SlotOffsets
        By rank.
    end : int
        Where the next thing could begin.
    """
    at = base + len(layout.ranks) * PAGE_BYTES

    def take(nbytes: int) -> int:
        nonlocal at
        start = at
        at += round_up(nbytes)
        return start if nbytes else 0

    places = []
    for number, rank in enumerate(layout.ranks):
        starts = tuple(take(spec.nbytes) if arrays else 0 for spec in rank.arrays)
        sums = take(checksum_bytes(rank.arrays, layout.block_bytes))
        places.append(
            SlotOffsets(
                record=base + number * PAGE_BYTES,
                arrays=starts,
                checksums=tuple(checksums_at(rank.arrays, sums, layout.block_bytes)),
                objects=take(rank.objects_room),
                objects_room=rank.objects_room,
                channels=take(rank.channels_room),
                channels_room=rank.channels_room,
            )
        )
    return places, at


def shifted(offsets: SlotOffsets, by: int) -> SlotOffsets:
    """Return the offsets of a slot that begins `by` bytes later, without empty arrays."""
    return replace(
        offsets,
        record=offsets.record + by,
        arrays=tuple(at + by for at in offsets.arrays),
        checksums=tuple(at + by for at in offsets.checksums),
        objects=offsets.objects + by,
        channels=offsets.channels + by if offsets.channels else 0,
    )


def checksum_bytes(arrays: Iterable[ArraySpec], block_bytes: int) -> int:
    """Return the size of one rank's checksums in bytes: 4 for each block of its arrays."""
    return sum(4 * blocks_in(spec.nbytes, block_bytes) for spec in arrays)


def checksums_at(arrays: Iterable[ArraySpec], start: int, block_bytes: int) -> Iterator[int]:
    """Yield the byte offset of each array's checksums, which follow each other from `start` on; 0 if it has none."""
    at = start
    for spec in arrays:
        size = 4 * blocks_in(spec.nbytes, block_bytes)
        yield at if size else 0
        at += size
