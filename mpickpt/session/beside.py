"""What a program keeps beside its arrays and objects: files that it appends to, and global generators."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO, cast, overload

from mpickpt.errors import LayoutError, UsageError
from mpickpt.restart.sources import OtherRanks, PerRank, Remap
from mpickpt.session.appended import Mode, saved_length
from mpickpt.session.declarations import Declarations
from mpickpt.session.generators import GlobalGenerators, set_back

RemapLength = Callable[[Sequence[int | None], int, int], int]
GENERATORS = "mpickpt.random"  # the name of the object that holds their states


class Beside(Declarations):
    """The part of a `Session` that keeps what lies beside arrays and objects in step with them."""

    @overload
    def append(
        self,
        path: str | os.PathLike[str],
        mode: Literal["a"] = "a",
        *,
        name: str | None = None,
        remap: RemapLength | None = None,
        encoding: str = "utf-8",
    ) -> TextIO: ...

    @overload
    def append(
        self,
        path: str | os.PathLike[str],
        mode: Literal["ab"],
        *,
        name: str | None = None,
        remap: RemapLength | None = None,
    ) -> BinaryIO: ...

    def append(
        self,
        path: str | os.PathLike[str],
        mode: Mode = "a",
        *,
        name: str | None = None,
        remap: RemapLength | None = None,
        encoding: str = "utf-8",
    ) -> TextIO | BinaryIO:
        """Open a file of this rank to append to, such as a log; a restart cuts it back to its length at the cut.

        So after any crash and restart the file is, byte for byte, that of an uninterrupted run. What is cut off is kept
        beside it, in ``log.txt.cut-7`` if epoch 7 was restored. At a fresh start the file is empty: what it held is in
        ``log.txt.cut-0`` then. At a cut the file is flushed, and nothing is waited for; an epoch is complete only when
        the file is on the disk as well.

        One rank writes to a file, all the ranks to different ones. Only appending is safe: do not write to it by other
        means, shorten it, or put another file in its place.

        Parameters
        ----------
        path : path
            The file, which is made if it does not exist. Its folder exists.
        mode : "a" or "ab"
            A file of text (the default), or of bytes.
        name : str, optional
            Under which its length is saved, as that of an object; the path as it is given by default.
        remap : callable, optional
            For a restart on another number of ranks: a function of a sequence of the lengths that the old ranks' files
            of this name had (None where there was none), this rank and the number of ranks, that returns to how many
            bytes this rank's file is cut back. Without it such a restart is refused.
        encoding : str
            Of a file of text.

        Returns
        -------
        file object
            As the builtin `open` returns it; the session does not close it.

        Raises
        ------
        LayoutError
            If `name` is taken, or what is restored has no such file.
        StoreError
            If the file cannot be opened, or is shorter than it was at the cut.
        """
        if mode not in ("a", "ab"):
            raise UsageError(f"append() opens a file of text, 'a', or of bytes, 'ab', and not {mode!r}.")
        name = os.fspath(path) if name is None else name
        nbytes = self._length_at_cut(name, remap)
        epoch = 0 if self.restored is None else self.restored.epoch
        files = self._checkpointer.regions.files
        return cast("TextIO | BinaryIO", files.add(name, Path(path), mode, encoding, nbytes, epoch))

    def _length_at_cut(self, name: str, remap: RemapLength | None) -> int:
        """Return the length that a file had at the cut; 0 at a fresh start."""
        source = self._source_for(name)
        if source is None:
            return 0
        if not isinstance(source, OtherRanks):
            return saved_length(source.object(name, False, None), name)
        if remap is None:
            raise LayoutError(
                f"File {name!r} was appended to by one of {len(source.images)} ranks, and there are {source.size} now. "
                f"Which rank goes on with which file is known only to the program: give remap=, a function of (old "
                f"lengths, rank, size) that returns to how many bytes the file of this rank is cut back."
            )

        def lengths(old: Sequence[Any], rank: int, size: int) -> int:
            def length(of: int) -> int | None:
                with suppress(LayoutError):  # that rank had no such file
                    return saved_length(old[of], name)
                return None

            return remap(PerRank(len(old), length), rank, size)

        nbytes = source.object(name, False, lengths)
        if not isinstance(nbytes, int) or nbytes < 0:
            raise LayoutError(f"File {name!r}: its remap function gave {nbytes!r}, which is no number of bytes.")
        return nbytes

    def random(self, *, remap: Remap | None = None) -> None:
        """Save the global generators of random numbers, and set them back if there is something to restore.

        They are numpy's (``np.random.rand``, ``np.random.seed``), Python's (`random.random`), and torch's, also on
        CUDA, if the program has loaded torch by the time of the cut. Call it last before the loop: what draws random
        numbers between this call and the loop draws other ones after a restart. A generator of the program's own, such
        as ``np.random.default_rng()``, is an `object`.

        Parameters
        ----------
        remap : callable, optional
            For a restart on another number of ranks: a function of a sequence of the old ranks' states, this rank and
            the number of ranks, that returns one of them, or None to leave the generators as they are. Without it
            such a restart is refused.

        Raises
        ------
        LayoutError
            If it was called before, or what is restored holds no states, or they cannot be set.
        """
        source = self._source_for(GENERATORS)
        if source is not None:
            saved = source.object(GENERATORS, False, remap)
            if saved is not None:
                set_back(saved)
        self._checkpointer.regions.add_object(GENERATORS, GlobalGenerators(), "ignore")
