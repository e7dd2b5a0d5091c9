"""What a slot file says about itself: its records, and whether they make a complete epoch. Nothing here unpickles.

Records are read straight from the file, never through HDF5's caches.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import MpickptError, StoreError
from mpickpt.layout.arrays import PAGE_BYTES, RECORD, RECORD_MAGIC, RecordState
from mpickpt.retry import read_again
from mpickpt.store.files import os_errors
from mpickpt.store.preface import Checksum, plain, read_preface

SLOT_NAME = re.compile(r"slot-(\d+)\.h5")


@dataclass(frozen=True)
class SlotInfo:
    """What a slot file says about itself.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    index : int
        Its number in the directory; -1 for a file of another name.
    world_size, block_bytes : int
        Number of ranks and size of a block; 0 if the file is not readable as a slot.
    digest : bytes
        Digest of the layout.
    records : ndarray of RECORD, shape (world_size,)
        Valid records by rank; corrupt and never written ones are all zero.
    epoch, step : int or None
        Of the complete epoch in the slot; None unless `complete`.
    complete : bool
        Whether all ranks' records say that the epoch is complete.
    why_not : str
        Why the slot holds no complete epoch; empty if it does.
    corrupt : bool
        Whether a record is neither valid nor untouched.
    packed : bool
        Whether the file is a compressed archive.
    preface : bytes
        Identifies this file among others of its name; empty for a slot of an older version.
    records_at : int
        Byte offset of the first record.
    """

    path: Path
    index: int
    world_size: int = 0
    digest: bytes = b""
    block_bytes: int = 0
    records: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, RECORD), compare=False)
    epoch: int | None = None
    step: int | None = None
    complete: bool = False
    why_not: str = ""
    corrupt: bool = False
    packed: bool = False
    preface: bytes = field(default=b"", compare=False, repr=False)
    records_at: int = 0

    @property
    def readable(self) -> bool:
        """Whether the file is a slot, with or without a complete epoch."""
        return self.world_size > 0

    @property
    def newest(self) -> int:
        """Highest epoch that any rank began to write here; 0 if none."""
        return int(self.records["epoch"].max(initial=0))


def record_is_valid(record: NDArray[np.void] | np.void, crc32c: Checksum) -> bool:
    """Return whether one record carries the magic and the right checksum."""
    raw = record.tobytes()
    return raw.startswith(RECORD_MAGIC) and crc32c(raw[:-4]) == int.from_bytes(raw[-4:], "little")


def read_slot(path: Path, crc32c: Checksum) -> SlotInfo:
    """Read what a slot file says about itself; `SlotInfo.why_not` says what is wrong with it."""
    from mpickpt.store.structure import read_head

    match = SLOT_NAME.fullmatch(path.name)
    index = int(match[1]) if match else -1
    try:
        head = read_head(path, crc32c)
        records = _read_records(path, head.records, head.world_size)
    except MpickptError as error:
        return SlotInfo(path, index, why_not=str(error))
    damage = _clear_damaged(records, crc32c)
    why_not = damage or _why_not_complete(records, head.digest)
    return SlotInfo(
        path,
        index,
        head.world_size,
        head.digest,
        head.block_bytes,
        records,
        epoch=None if why_not else int(records["epoch"][0]),
        step=None if why_not else int(records["step"][0]),
        complete=not why_not,
        why_not=why_not,
        corrupt=bool(damage),
        packed=head.packed,
        preface=head.preface,
        records_at=head.records,
    )


def is_unchanged(slot: SlotInfo, crc32c: Checksum) -> bool:
    """Return whether `slot` is unchanged since it was read: the same file, with the same records."""
    if not slot.preface:
        now = read_slot(slot.path, crc32c)
        return now.digest == slot.digest and now.records.tobytes() == slot.records.tobytes()

    def own_preface() -> bytes:
        with plain(slot.path) as fd:
            return read_preface(fd, crc32c)

    try:
        if read_again(slot.path, own_preface) != slot.preface:
            return False
        records = _read_records(slot.path, slot.records_at, slot.world_size)
    except (OSError, ValueError, StoreError):
        return False
    _clear_damaged(records, crc32c)
    return records.tobytes() == slot.records.tobytes()


def _read_records(path: Path, offset: int, world_size: int) -> NDArray[np.void]:
    nbytes = world_size * PAGE_BYTES

    def read() -> bytes:
        with plain(path) as fd:
            return os.pread(fd, nbytes, offset)

    with os_errors(f"The records of {path} cannot be read", path):
        raw = read_again(path, read)
    if len(raw) != nbytes:
        raise StoreError(f"{path} is truncated: it ends before its records do.", path=path)
    records: NDArray[np.void] = np.frombuffer(bytearray(raw), RECORD)
    return records


def _clear_damaged(records: NDArray[np.void], crc32c: Checksum) -> str:
    """Set corrupt records to zero, and name the first of them; records never written are zero already."""
    why_not = ""
    for rank, record in enumerate(records):
        if not record_is_valid(record, crc32c) and any(record.tobytes()):
            records[rank : rank + 1].view(np.uint8)[:] = 0
            why_not = why_not or f"The record of rank {rank} is corrupt."
    return why_not


def _why_not_complete(records: NDArray[np.void], digest: bytes) -> str:
    epoch, run, step = (int(records[name][0]) for name in ("epoch", "run", "step"))
    for rank, record in enumerate(records):
        state, here = int(record["state"]), int(record["epoch"])
        if state == RecordState.EMPTY:
            return f"Rank {rank} has written nothing yet."
        if state == RecordState.WRITING:
            return f"Rank {rank} has not finished epoch {here}."
        if state == RecordState.FAILED:
            return f"Rank {rank} could not write epoch {here}: {os.strerror(int(record['errno']))}."
        if state != RecordState.COMPLETE:
            return f"The record of rank {rank} has the state {state}, which this version does not know."
        if (here, int(record["run"]), int(record["step"])) != (epoch, run, step):
            return (
                f"Rank 0 holds epoch {epoch} (step {step}) and rank {rank} epoch {here} (step {int(record['step'])})."
            )
        if int(record["rank"]) != rank or record["digest"].tobytes() != digest:
            return f"The record of rank {rank} belongs to another slot."
    return ""
