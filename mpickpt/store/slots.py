"""The slots of a checkpoint directory, and their creation.

A slot is created once by one process and then closed; ranks write raw bytes at the datasets' offsets, so that no
crash can damage the HDF5 structure. A slot gets its name by a rename, when its structure is complete and its space is
reserved.
h5py is imported only where it is needed, because most ranks of a program never open a slot.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from mpickpt.errors import StoreError, warn
from mpickpt.layout.arrays import (
    PAGE_BYTES,
    Layout,
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
from mpickpt.store.info import SLOT_NAME, SlotInfo, read_slot
from mpickpt.store.lock import LOCK, give_lock_back, lock_holder, take_lock
from mpickpt.store.preface import Checksum, copy_structure

PayloadKind = Literal["objects", "channels"]
_ARCHIVE_NAME = re.compile(r"epoch-(\d+)\.h5")


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
        self._made: tuple[Layout, Path, list[SlotOffsets], bytes] | None = None  # the last slot, and its preface
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
        return sorted(map(self.inspect, self._files(SLOT_NAME)), key=lambda slot: slot.index)

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

    def create(self, index: int, layout: Layout) -> list[SlotOffsets]:
        """Replace slot `index` by an empty one for `layout`; after an error the old one is still there.

        Returns
        -------
        list of SlotOffsets
            The byte offsets in it by rank.

        Raises
        ------
        StoreError
            If there is no room or no permission; nothing is left behind.
        """
        path = slot_path(self.directory, index)
        new = path.with_name(path.name + ".new")
        need = _bytes_needed(layout)
        with os_errors(f"Slot file {path} of {need} bytes cannot be created", path, need):
            make_folder(self.directory)
            fd = create_file(new)
            try:
                if need > (free := free_bytes(fd)):
                    raise OSError(errno.ENOSPC, f"{free} bytes are free")
                places, preface = self._write_structure(new, layout)
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
        self._made = layout, path, places, preface
        if self._reserves and not reserved:
            self._reserves = False
            warn(
                f"The file system of {self.directory} cannot reserve room for a slot: a full disk shows when an epoch "
                f"is written, which then fails, and not when its slot is created. A slot takes {need} bytes."
            )
        return places

    def _write_structure(self, path: Path, layout: Layout) -> tuple[list[SlotOffsets], bytes]:
        """Write the structure of a slot into `path`: that of the last one that was made, if it had this layout.

        Returns the offsets by rank, and the preface.
        """
        from mpickpt.store.skeleton import write_skeleton

        if self._made is not None and self._made[0] == layout:
            _, other, places, preface = self._made
            with suppress(OSError, ValueError, StoreError):  # then it is made as if it were the first
                if copy_structure(other, path, places[0].record, preface, self._crc32c):
                    return places, preface
        return write_skeleton(path, layout, self._crc32c)

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


def _bytes_needed(layout: Layout) -> int:
    """Return the bytes of a slot's raw data; the structure takes a few more pages for each dataset."""
    sizes = [PAGE_BYTES * len(layout.ranks)]
    for rank in layout.ranks:
        sizes += [rank.objects_room, rank.channels_room]
        for spec in rank.arrays:
            sizes += [spec.nbytes, 4 * blocks_in(spec.nbytes, layout.block_bytes)]
    return sum(round_up(n) for n in sizes)
