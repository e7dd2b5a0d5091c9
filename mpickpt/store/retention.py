"""Archives that come and go by themselves: which of them in a directory were made so, and which of those may go.

The file `archives` in the directory lists them by name. What anybody archived by hand is not in it, and is never
deleted. A name is in the list before its file appears, so that a crash leaves nothing behind that nobody knows of.
"""

from __future__ import annotations

import os
from pathlib import Path

from mpickpt.store.files import replace_text, sync_folder
from mpickpt.store.preface import plain
from mpickpt.store.slots import Store, archive_path, epoch_of_archive

LIST = "archives"
MOST_BYTES = 1 << 20  # of the list that are read


class Retention:
    """The archives of one directory that were made by themselves.

    Parameters
    ----------
    store : Store
        The directory, which exists.
    most : int or None
        So many stay; None for all.
    """

    def __init__(self, store: Store, most: int | None) -> None:
        self._store = store
        self._most = most

    def newest_time(self) -> float | None:
        """Return when the newest one was made, in seconds since 1970; None if there is none."""
        return max((path.stat().st_mtime for path in self._made()), default=None)

    def expect(self, epoch: int) -> Path:
        """Note that the archive of `epoch` is about to be made, and delete what a crash left of others.

        Returns
        -------
        pathlib.Path
            The file to make.

        Raises
        ------
        OSError, StoreError
            If the list cannot be written.
        """
        directory = self._store.directory
        target = archive_path(directory, epoch)
        made = self._made()
        for path in self._listed():
            if path not in made:
                for part in directory.glob(f"{path.stem}.*"):  # it was not finished
                    part.unlink(missing_ok=True)
        names = [*(path.name for path in made), target.name]
        replace_text(directory / LIST, "".join(f"{name}\n" for name in names))
        sync_folder(directory)
        return target

    def prune(self) -> None:
        """Delete the oldest ones that are too many.

        Raises
        ------
        StoreError
            If there is no permission.
        """
        if self._most is not None:
            for path in self._made()[: -self._most]:
                self._store.remove(path)

    def _made(self) -> list[Path]:
        """Return those that exist, by epoch."""
        return sorted((path for path in self._listed() if path.exists()), key=epoch_of_archive)

    def _listed(self) -> set[Path]:
        directory = self._store.directory
        try:
            with plain(directory / LIST) as fd:
                names = os.read(fd, MOST_BYTES).decode(errors="replace").split()
        except FileNotFoundError:
            return set()
        return {path for name in names if epoch_of_archive(path := directory / name) >= 0 and path.name == name}
