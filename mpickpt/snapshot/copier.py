"""Copying files beside the program, in time and storage bandwidth that nobody wants."""

from __future__ import annotations

from pathlib import Path

from mpickpt import _native


class Copier:
    """Copies files, one after another, until it is stopped.

    A native thread of idle priority copies, past the page cache where the file system can, and rests while an epoch of
    this process is being drained. The thread that calls `copy` waits without the interpreter lock.
    """

    def __init__(self) -> None:
        self._copier = _native.Copier()

    def copy(self, source: Path, target: Path) -> None:
        """Overwrite `target`, which exists, with the bytes of `source`, and put them on stable storage.

        Raises
        ------
        OSError
            ECANCELED once `stop` was called; otherwise the error of the storage. `target` then holds a part.
        """
        self._copier.run(str(source), str(target))

    def stop(self) -> None:
        """End the copy in progress soon, and refuse further ones. Any thread may call it."""
        self._copier.stop()

    def copied(self) -> int:
        """Return how many bytes were copied in all."""
        return self._copier.copied()
