"""Files that a program appends to, such as a log: what of each belongs to an epoch, and cutting it back to that.

At a cut a file is flushed, and its length is saved with the objects of the rank. Nothing is waited for there: the drain
syncs the file before the epoch counts as complete. A restart cuts the file back to the saved length.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from mpickpt.errors import LayoutError, StoreError
from mpickpt.retry import reason_of
from mpickpt.store import appearing, os_errors, sync_folder_above
from mpickpt.texts import told_ranks

FILE_MODE = 0o666  # of a new file, without what the umask takes away
Mode = Literal["a", "ab"]
Identity = tuple[str, int]  # the path of a file without links, and its inode


@dataclass(eq=False)
class _Appended:
    """One file.

    Attributes
    ----------
    path : Path
        Where it is.
    file : file object
        What the program writes to.
    descriptor : int
        Ours, which stays open when the program closes its own. Also, an error of the storage is told once for each.
    lost : str
        Why no epoch with this file can be complete any more; empty if nothing is wrong.
    """

    path: Path
    file: IO[Any]
    descriptor: int
    lost: str = ""

    def identity(self) -> Identity:
        """Return what tells it from other files, also between nodes."""
        return str(self.path.resolve()), os.fstat(self.descriptor).st_ino

    def saved(self) -> dict[str, Any]:
        """Return what an epoch keeps of it. Asking for its status instead would make NFS write all of it first."""
        return {"file": str(self.path), "nbytes": os.lseek(self.descriptor, 0, os.SEEK_END)}

    def flush(self) -> None:
        """Hand what is buffered to the operating system; raises OSError if that, or a sync, cannot be done."""
        if self.lost:
            raise OSError(errno.EIO, self.lost)
        try:
            self.file.flush()
        except ValueError:  # the program has closed it, or has taken its buffer away
            pass
        except OSError as error:
            raise OSError(error.errno, f"{self.path} cannot be flushed: {reason_of(error)}") from error


class AppendedFiles:
    """The files of one rank.

    Parameters
    ----------
    rank : int
        This rank, for messages.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._files: dict[str, _Appended] = {}
        self._at_cut: list[_Appended] = []  # those of the last cut, in the order of its plan

    def __contains__(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self._files

    def add(self, name: str, path: Path, mode: Mode, encoding: str, nbytes: int, epoch: int) -> IO[Any]:
        """Open a file to append to, cut back to the `nbytes` that it had at the cut of `epoch`.

        What is cut off stays in a file beside it. At a fresh start, of epoch 0, that is all that was there.

        Raises
        ------
        StoreError
            If the file is shorter, or cannot be opened or cut.
        """
        with os_errors(f"Rank {self._rank}: {path} cannot be appended to", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, FILE_MODE)
            try:
                self._cut_back(path, descriptor, nbytes, epoch)
                file = path.open(mode, encoding=encoding if mode == "a" else None)
            except BaseException:
                os.close(descriptor)
                raise
        self._files[name] = _Appended(path, file, descriptor)
        return file

    def _cut_back(self, path: Path, descriptor: int, nbytes: int, epoch: int) -> None:
        """Leave `nbytes` of a file, and have them and its name on the disk."""
        size = os.fstat(descriptor).st_size
        if size < nbytes:
            raise StoreError(
                f"Rank {self._rank}: {path} has {size} bytes, but had {nbytes} at the cut of epoch {epoch}, so that "
                f"somebody has shortened or replaced it. Nothing was changed. Put back what is missing (an earlier "
                f"restart has kept what it cut off in {path.name}.cut-*), or restore an older epoch (restart=).",
                path=path,
            )
        if size > nbytes:
            kept = _free_name(path, epoch)
            with appearing(kept) as new, new.open("r+b", buffering=0) as target:
                while nbytes + target.tell() < size:
                    offset = nbytes + target.tell()
                    if not os.sendfile(target.fileno(), descriptor, offset, size - offset):
                        break
            os.ftruncate(descriptor, nbytes)
            text = f"{path}: {size - nbytes} bytes behind the cut of epoch {epoch} are in {kept.name} now"
            print(f"mpickpt: rank {self._rank}: {text}", file=sys.stderr, flush=True)
        os.fsync(descriptor)
        sync_folder_above(path)

    def drop(self, name: str) -> None:
        """Save a file no longer."""
        os.close(self._files.pop(name).descriptor)

    def identities(self) -> list[Identity]:
        """Return what tells each of the files from those of other ranks."""
        return [one.identity() for one in self._files.values()]

    # -- at a cut ------------------------------------------------------------------------------------------------

    def flush(self) -> OSError | None:
        """Hand all that is buffered to the operating system; the error, if it refuses that."""
        self._at_cut = list(self._files.values())
        try:
            for one in self._at_cut:
                one.flush()
        except OSError as error:
            return error
        return None

    def saved(self) -> dict[str, Any]:
        """Return what an epoch keeps of each, by name."""
        return {name: one.saved() for name, one in self._files.items()}

    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors of those that were flushed, which are to be synced."""
        return tuple(one.descriptor for one in self._at_cut)

    def note_unsynced(self, index: int, number: int) -> str:
        """Note that the file at this place of `descriptors` could not be synced, and say so.

        The system then takes its pages for written: another sync would succeed, with bytes missing in the file.
        """
        one = self._at_cut[index]
        one.lost = (
            f"{one.path} cannot be synced ({os.strerror(number)}), so that bytes may be missing in it, and no epoch of "
            f"this run can be complete any more. Start the program again: it goes back to the last complete epoch, and "
            f"writes them once more"
        )
        return one.lost

    def close(self) -> None:
        """Let go of all files, which stay open for the program."""
        for name in list(self._files):
            self.drop(name)
        self._at_cut = []


def _free_name(path: Path, epoch: int) -> Path:
    """Return a name that nobody has for what is cut off: nothing that was kept is overwritten."""
    kept, number = path.with_name(f"{path.name}.cut-{epoch}"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.cut-{epoch}-{number}")
    return kept


def check_owners(ranks: Sequence[Sequence[Identity]]) -> None:
    """Refuse files that several ranks append to.

    Raises
    ------
    LayoutError
        If there is one, which it names.
    """
    owners = defaultdict(list)
    for rank, files in enumerate(ranks):
        for one in files:
            owners[one].append(rank)
    for (path, _), several in owners.items():
        if len(several) > 1:
            raise LayoutError(
                f"File {path} is appended to more than once, by {told_ranks(sorted(set(several)))}: each file has one "
                f"writer. Give each rank a file of its own, or call append() on one rank alone."
            )


def saved_length(saved: object, name: str) -> int:
    """Return the length of a file from what an epoch kept of it."""
    if not isinstance(saved, dict) or not isinstance(saved.get("nbytes"), int):
        raise LayoutError(f"{name!r} was saved as an object, and is now a file that the program appends to.")
    return int(saved["nbytes"])
