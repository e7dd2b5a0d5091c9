"""The slots of a checkpoint directory: their creation, and what their records say.

A slot is created once by one process and then closed; ranks write raw bytes at the datasets' offsets, so that no
crash can damage the HDF5 structure. A slot gets its name by a rename, when its structure is complete and its space is
reserved. Records are read straight from the file, never through HDF5's caches. Nothing here unpickles.
h5py is imported only where it is needed, because most ranks of a program never open a slot.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import MpickptError, StoreError, warn
from mpickpt.layout.arrays import (
    PAGE_BYTES,
    RECORD,
    RECORD_MAGIC,
    Layout,
    RecordState,
    SlotOffsets,
    blocks_in,
    round_up,
)
from mpickpt.retry import read_again
from mpickpt.store.files import (
    create_file,
    free_bytes,
    make_folder,
    os_errors,
    reserve,
    sync_folder,
    sync_folder_above,
    tell_who_may_write,
)
from mpickpt.store.lock import LOCK, give_lock_back, lock_holder, take_lock
from mpickpt.store.preface import Checksum, plain, read_preface

PayloadKind = Literal["objects", "channels"]
_SLOT_NAME = re.compile(r"slot-(\d+)\.h5")
_ARCHIVE_NAME = re.compile(r"epoch-(\d+)\.h5")


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


def slot_path(directory: Path, index: int) -> Path:
    """Return the path of slot `index`."""
    return directory / f"slot-{index}.h5"


def spill_path(slot: Path, rank: int, kind: PayloadKind = "objects") -> Path:
    """Return the path of the file beside `slot` for a rank's objects or channels that outgrew their room."""
    return slot.with_name(f"{slot.stem}.{kind}-{rank:05d}")


def spill_paths(slot: Path) -> list[Path]:
    """List the spill files that are beside `slot`."""
    return sorted(p for kind in get_args(PayloadKind) for p in slot.parent.glob(f"{slot.stem}.{kind}-*"))


def archive_path(directory: Path, epoch: int) -> Path:
    """Return the path of an archived epoch."""
    return directory / f"epoch-{epoch}.h5"


def epoch_of_archive(path: Path) -> int:
    """Return the number of the epoch for which a file is named; -1 if it has no archive's name."""
    match = _ARCHIVE_NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def record_is_valid(record: NDArray[np.void] | np.void, crc32c: Checksum) -> bool:
    """Return whether one record carries the magic and the right checksum."""
    raw = record.tobytes()
    return raw.startswith(RECORD_MAGIC) and crc32c(raw[:-4]) == int.from_bytes(raw[-4:], "little")


class Store:
    """The slots of one checkpoint directory.

    Parameters
    ----------
    directory : pathlib.Path
        The directory; `lock` and `create` create it if needed.
    crc32c : callable
        CRC-32C of a bytes-like object, continued from a second argument.
    """

    def __init__(self, directory: Path, crc32c: Checksum) -> None:
        self.directory = Path(directory)
        self._crc32c = crc32c
        self.lock_descriptor: int | None = None
        self._reserves = True  # as far as is known, the file system can reserve room for files

    def lock(self, owner: str = "", *, patience: float = 0.0) -> int:
        """Lock the directory for this process, until `unlock` or its end.

        Parameters
        ----------
        owner : str
            Named in the lock, with the number of the process.
        patience : float
            Seconds to wait for a process on another machine, which may have died.

        Returns
        -------
        int
            The descriptor of the lock, also in `lock_descriptor`. A forked child inherits it, and must close it
            to release the lock.

        Raises
        ------
        InUseError
            If another process has it; the message names it.
        StoreError
            If the directory cannot be created or written.
        """
        if self.lock_descriptor is None:
            with os_errors(f"The checkpoint directory {self.directory} cannot be used", self.directory / LOCK):
                make_folder(self.directory)
                self.lock_descriptor = take_lock(self.directory, owner, patience)
                tell_who_may_write(self.directory)
        return self.lock_descriptor

    def holder(self) -> str | None:
        """Return which process has the directory, as far as this machine can see; None if none has."""
        return lock_holder(self.directory)

    def unlock(self) -> None:
        """Unlock the directory."""
        if self.lock_descriptor is not None:
            fd, self.lock_descriptor = self.lock_descriptor, None
            give_lock_back(fd)

    def keep_lock(self) -> None:
        """Keep the directory locked until the process ends, whatever becomes of this object."""
        self.lock_descriptor = None

    def slots(self) -> list[SlotInfo]:
        """List all slot files by index, unreadable ones too; `SlotInfo.why_not` says what is wrong with them."""
        return sorted(map(self.inspect, self._files(_SLOT_NAME)), key=lambda slot: slot.index)

    def archives(self) -> list[SlotInfo]:
        """List the archived epochs by name, unreadable ones too; their `SlotInfo.index` is -1."""
        return [self.inspect(path) for path in sorted(self._files(_ARCHIVE_NAME))]

    def inspect(self, path: Path) -> SlotInfo:
        """Describe one slot or archived epoch, whether or not it exists."""
        return read_slot(path, self._crc32c)

    def _files(self, name: re.Pattern[str]) -> list[Path]:
        """List the files with such names. A missing directory is empty; one that cannot be read is an error."""
        with os_errors(f"The checkpoint directory {self.directory} cannot be read", self.directory):
            try:
                found = read_again(self.directory, lambda: list(self.directory.iterdir()))
            except FileNotFoundError:
                return []
        return [path for path in found if name.fullmatch(path.name)]

    def remove(self, path: Path) -> None:
        """Delete a slot or an archived epoch with the files that belong to it.

        Raises
        ------
        StoreError
            If there is no permission.
        """
        with os_errors(f"{path} cannot be deleted", path):
            path.unlink(missing_ok=True)
            self._remove_spills(path)

    def create(self, index: int, layout: Layout) -> None:
        """Replace slot `index` by an empty one for `layout`; after an error the old one is still there.

        Raises
        ------
        StoreError
            If there is no room or no permission; nothing is left behind.
        """
        from mpickpt.store.skeleton import write_skeleton

        path = slot_path(self.directory, index)
        new = path.with_name(path.name + ".new")
        need = _bytes_needed(layout)
        with os_errors(f"Slot file {path} of {need} bytes cannot be created", path, need):
            make_folder(self.directory)
            fd = create_file(new)
            try:
                if need > (free := free_bytes(fd)):
                    raise OSError(errno.ENOSPC, f"{free} bytes are free")
                write_skeleton(new, layout, self._crc32c)
                reserved = reserve(fd, round_up(os.fstat(fd).st_size))
                os.fsync(fd)
                new.rename(path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
            finally:
                os.close(fd)
            self._remove_spills(path)
            sync_folder_above(self.directory)
        if self._reserves and not reserved:
            self._reserves = False
            warn(
                f"The file system of {self.directory} cannot reserve room for a slot: a full disk shows when an epoch "
                f"is written, which then fails, and not when its slot is created. A slot takes {need} bytes."
            )

    def _remove_spills(self, path: Path) -> None:
        """Delete the spill files of a slot that was replaced or deleted, after that is on the disk."""
        sync_folder(self.directory)
        spills = spill_paths(path)
        for spill in spills:
            spill.unlink(missing_ok=True)
        if spills:
            sync_folder(self.directory)

    def offsets(self, index: int) -> list[SlotOffsets]:
        """Return the byte offsets in slot `index` by rank."""
        return self.structure(slot_path(self.directory, index))[1]

    def layout(self, index: int) -> Layout:
        """Return the layout that slot `index` was created for."""
        return self.structure(slot_path(self.directory, index))[0]

    def structure(self, path: Path) -> tuple[Layout, list[SlotOffsets]]:
        """Return the layout of a slot or an archived epoch, and the byte offsets in it by rank."""
        from mpickpt.store.structure import read_structure

        return read_structure(path, self._crc32c)


def read_slot(path: Path, crc32c: Checksum) -> SlotInfo:
    """Read what a slot file says about itself; `SlotInfo.why_not` says what is wrong with it."""
    from mpickpt.store.structure import read_head

    match = _SLOT_NAME.fullmatch(path.name)
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


def _bytes_needed(layout: Layout) -> int:
    """Return the bytes of a slot's raw data; the structure takes a few more pages for each dataset."""
    sizes = [PAGE_BYTES * len(layout.ranks)]
    for rank in layout.ranks:
        sizes += [rank.objects_room, rank.channels_room]
        for spec in rank.arrays:
            sizes += [spec.nbytes, 4 * blocks_in(spec.nbytes, layout.block_bytes)]
    return sum(round_up(n) for n in sizes)
