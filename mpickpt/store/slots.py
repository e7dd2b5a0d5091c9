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
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
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
from mpickpt.layout.placing import place
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


@dataclass(frozen=True)
class Made:
    """A slot that was created: what the next one of its layout is copied from.

    Attributes
    ----------
    layout : Layout
        What it is for.
    path : Path
        The file.
    start : int
        Where its raw data begin, in bytes.
    preface : bytes
        By which it is known.
    """

    layout: Layout
    path: Path
    start: int
    preface: bytes


class Store:
    """The slots of one checkpoint directory.

    Parameters
    ----------
    directory : pathlib.Path
        The directory; `lock` and `create` create it if needed.
    crc32c : callable
        CRC-32C of a bytes-like object, continued from a second argument.

    Attributes
    ----------
    made : Made or None
        The slot that was created last.
    """

    def __init__(self, directory: Path, crc32c: Checksum) -> None:
        self.directory = Path(directory)
        self._crc32c = crc32c
        self.lock_descriptor: int | None = None
        self.made: Made | None = None
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

    def check_room(self, index: int, layout: Layout) -> None:
        """Find out whether slot `index` can be created for `layout`, as far as permission and room tell before that.

        Raises
        ------
        StoreError
            If it cannot.
        """
        path = slot_path(self.directory, index)
        need = _bytes_needed(layout)
        with _creating(path, need):
            os.close(self._new_file(path, need))
            _new(path).unlink()

    def create(self, index: int, layout: Layout, progress: Callable[[], object] = lambda: None) -> list[SlotOffsets]:
        """Replace slot `index` by an empty one for `layout`; after an error the old one is still there.

        Parameters
        ----------
        index : int
            Which slot.
        layout : Layout
            What all ranks save.
        progress : callable
            Called for each array of each rank.

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
        new = _new(path)
        need = _bytes_needed(layout)
        with _creating(path, need):
            fd = self._new_file(path, need)
            try:
                places, preface = self._write_structure(new, layout, progress)
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
        self.made = Made(layout, path, places[0].record, preface)
        if self._reserves and not reserved:
            self._reserves = False
            warn(
                f"The file system of {self.directory} cannot reserve room for a slot: a full disk shows when an epoch "
                f"is written, which then fails, and not when its slot is created. A slot takes {need} bytes."
            )
        return places

    def _new_file(self, path: Path, need: int) -> int:
        """Create the file that is to become slot `path`, empty, if there are `need` bytes for it."""
        make_folder(self.directory)
        fd = create_file(_new(path))
        if need > (free := free_bytes(fd)):
            os.close(fd)
            _new(path).unlink()
            raise OSError(errno.ENOSPC, f"{free} bytes are free")
        return fd

    def has_model(self, layout: Layout) -> bool:
        """Whether the structure of a slot for `layout` would be copied from the last one that was created."""
        return self.made is not None and self.made.layout == layout

    def _write_structure(
        self, path: Path, layout: Layout, progress: Callable[[], object]
    ) -> tuple[list[SlotOffsets], bytes]:
        """Write the structure of a slot into `path`: that of the last one that was made, if it had this layout.

        Returns the offsets by rank, and the preface.
        """
        from mpickpt.store.skeleton import write_skeleton

        model = self.made
        if model is not None and model.layout == layout:
            with suppress(OSError, ValueError, StoreError):  # then it is made as if it were the first
                if copy_structure(model.path, path, model.start, model.preface, self._crc32c):
                    return place(layout, model.start)[0], model.preface
        return write_skeleton(path, layout, self._crc32c, progress)

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


def _new(path: Path) -> Path:
    """Return the name of a slot before it is complete."""
    return path.with_name(path.name + ".new")


def _creating(path: Path, need: int) -> AbstractContextManager[None]:
    return os_errors(f"Slot file {path} of {need} bytes cannot be created", path, need)


def _bytes_needed(layout: Layout) -> int:
    """Return the bytes of a slot's raw data; the structure takes a few more pages for each dataset."""
    sizes = [PAGE_BYTES * len(layout.ranks)]
    for rank in layout.ranks:
        sizes += [rank.objects_room, rank.channels_room]
        for spec in rank.arrays:
            sizes += [spec.nbytes, 4 * blocks_in(spec.nbytes, layout.block_bytes)]
    return sum(round_up(n) for n in sizes)
