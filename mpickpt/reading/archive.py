"""Archives an epoch in a file of its own, outside the rotation of the slots.

A copy of the slot file is a complete checkpoint by itself, and costs nothing where the file system clones files. A
compressed archive is a new file with all payloads, which are checked while they are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mpickpt.errors import UsageError
from mpickpt.layout.arrays import PAGE_BYTES, RECORD, Layout, blocks_in, round_up
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.reading.image import RankImage, page_aligned, valid
from mpickpt.snapshot import crc32c
from mpickpt.store import appearing, copy_slot, copying, finish_packed, open_packed, write_at, write_packed_skeleton

PIECE_BYTES = 16 << 20

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Archived:
    """The file, its size in bytes, and how it was made."""

    path: Path
    nbytes: int
    how: Literal["cloned", "copied", "compressed"]


def archive(checkpoint: Checkpoint, target: Path, *, compress: bool, progress: Progress) -> Archived:
    """Archive an epoch in a file of its own.

    A running program may overwrite the slot meanwhile: its records are compared before and after, and the file gets its
    name only if they are the same.

    Raises
    ------
    EpochError
        If the slot was overwritten meanwhile.
    UsageError
        If the file exists already.
    StoreError
        If it cannot be written.
    CorruptionError
        If a block is corrupt and `compress` is asked for; a copy is not checked.
    """
    if target.exists():
        raise UsageError(f"{target} exists: the epoch is archived there already, or choose another place by --to.")
    if not compress or checkpoint.slot.packed:
        cloned = copy_slot(checkpoint.path, target, checkpoint.check_unchanged, copying(progress))
        return Archived(target, target.stat().st_size, "cloned" if cloned else "copied")
    with appearing(target) as new, checkpoint.unchanged():
        _pack(checkpoint, new, progress)
    return Archived(target, target.stat().st_size, "compressed")


def _pack(checkpoint: Checkpoint, path: Path, progress: Progress) -> None:
    """Write the compressed archive: structure and arrays through HDF5, all else at offsets, as in a slot."""
    ranks = []
    for own, image in zip(checkpoint.layout.ranks, checkpoint.images, strict=True):
        channels = max(PAGE_BYTES, round_up(image.channels_bytes)) if own.channels_room else 0
        ranks.append(replace(own, objects_room=round_up(max(1, image.objects_bytes)), channels_room=channels))
    layout = Layout(tuple(ranks), checkpoint.layout.block_bytes)
    offsets = write_packed_skeleton(path, layout)
    for image, place in zip(checkpoint.images, offsets, strict=True):
        objects, channels_payload = (valid(read) for read in (image.read_objects(), image.read_channels()))
        write_at(path, place.objects, objects)
        if channels_payload:
            write_at(path, place.channels, channels_payload)
        for index, spec in enumerate(image.arrays):
            if spec.nbytes:
                sums = _pack_array(image, index, path, progress)
                write_at(path, place.checksums[index], sums)
        write_at(path, place.record, _record(checkpoint, image.rank))
    finish_packed(path, crc32c)


def _pack_array(image: RankImage, index: int, path: Path, progress: Progress) -> bytes:
    """Copy one array piece by piece; return its checksums."""
    spec, step = image.arrays[index], image.block_bytes * max(1, PIECE_BYTES // image.block_bytes)
    memory = page_aligned(min(step, spec.nbytes))
    sums: list[int] = []
    rest = memory[:0]  # the first bytes of a cell that the next piece completes
    written = 0
    with open_packed(path, image.rank, spec.name, None) as write:
        for start in range(0, spec.nbytes, step):
            piece = memory[: min(step, spec.nbytes - start)]
            damage = image.read_array(index, piece, start // image.block_bytes)
            if damage:
                raise damage[0].error()
            cells = np.concatenate((rest, piece)) if rest.size else piece
            whole = cells.size // spec.dtype.itemsize * spec.dtype.itemsize
            write(written, cells[:whole])
            written, rest = written + whole, cells[whole:].copy()
            sums += [crc32c(piece[at : at + image.block_bytes]) for at in range(0, piece.size, image.block_bytes)]
            progress(piece.size)
    assert len(sums) == blocks_in(spec.nbytes, image.block_bytes)
    return np.array(sums, "<u4").tobytes()


def _record(checkpoint: Checkpoint, rank: int) -> bytes:
    """Return the rank's record for the archive, in which nothing is spilled."""
    record = checkpoint.slot.records[rank : rank + 1].copy()
    record["objects_spilled"] = record["channels_spilled"] = 0
    record["crc"] = crc32c(record.tobytes()[: RECORD.itemsize - 4])
    return record.tobytes()
