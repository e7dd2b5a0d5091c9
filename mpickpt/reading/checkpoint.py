"""Reading checkpoints without MPI: in a notebook, a test, or the command line.

All data are checked against their checksums while they are read. Only `Checkpoint.objects` unpickles.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpickpt.errors import CorruptionError, EpochError, StoreError, UsageError
from mpickpt.layout.arrays import blocks_in
from mpickpt.layout.holders import ranks_holding
from mpickpt.reading.array import StoredArray, global_array, html_table, rank_array
from mpickpt.reading.image import Damage, RankImage, images_of
from mpickpt.retry import read_again, reason_of, system_errno
from mpickpt.snapshot import Snapshotter, crc32c
from mpickpt.store import SlotInfo, Store, is_unchanged, read_slot, read_structure
from mpickpt.texts import told_ranks

if TYPE_CHECKING:
    import xarray

VERIFIERS = 4  # threads of `verify`: some compute checksums while the others wait for the storage
VERIFY_BYTES = 16 << 20  # read and checked at once


@dataclass(frozen=True)
class ArrayInfo:
    """An array of a checkpoint.

    Attributes
    ----------
    name : str
        Its name.
    dtype : numpy.dtype
        Its dtype, the same on all ranks for arrays with a part.
    shape : tuple of int or None
        Shape of the global array; None for arrays without a part.
    ranks : tuple of int
        The ranks that have it.
    dims : tuple of str or None
        Names of the axes of the global array; None if they have none.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    ranks: tuple[int, ...]
    dims: tuple[str, ...] | None = None


class RankArrays(Mapping[str, StoredArray]):
    """The arrays of one rank: a mapping of their names to `StoredArray`, with halo cells.

    Nothing is read before an array is indexed.
    """

    def __init__(self, checkpoint: Checkpoint, image: RankImage) -> None:
        self._checkpoint = checkpoint
        self._image = image

    def __getitem__(self, name: str) -> StoredArray:
        """Return array `name`; KeyError if the rank has none of that name."""
        index = self._image.index(name)
        if index is None:
            raise KeyError(self._checkpoint.told_absent(name, self._image.rank))
        return rank_array(self._checkpoint.unchanged, self._image, index)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return (spec.name for spec in self._image.arrays)

    def __len__(self) -> int:
        """Count the arrays."""
        return len(self._image.arrays)

    def __repr__(self) -> str:
        """Return names, dtypes and shapes."""
        return f"<rank {self._image.rank}: {', '.join(map(repr, self.values())) or 'no arrays'}>"

    def _repr_html_(self) -> str:
        rows = [(spec.name, spec.dtype, spec.shape) for spec in self._image.arrays]
        return html_table(f"rank {self._image.rank}", ("array", "dtype", "shape"), rows)


class Checkpoint:
    """A checkpoint to read: global arrays by ``checkpoint["u"]``, a rank's own by ``checkpoint.rank(3)["u"]``.

    As in h5py, an array is read when it is indexed: ``checkpoint["u"][100:200, ::2]`` reads only the blocks of the file
    that hold these cells.

    Parameters
    ----------
    path : path-like
        A checkpoint directory, one slot file, or one archived epoch.
    epoch : int, optional
        Which epoch; the newest complete one by default.

    Attributes
    ----------
    path : pathlib.Path
        The slot file, or the archived epoch.
    epoch, step : int
        Number of the epoch, and the step that it was cut at.
    epochs : tuple of int
        All complete epochs there, in ascending order.
    world_size : int
        Number of ranks that wrote it.

    Raises
    ------
    StoreError
        If there is no such directory or file, or it cannot be read.
    EpochError
        If there is no complete epoch, or not the requested one.

    Examples
    --------
    >>> ck = Checkpoint("heat.ckpt")                                      # doctest: +SKIP
    >>> ck.step, ck["u"].shape, ck["u"][0, :3], ck.rank(0)["u"].shape     # doctest: +SKIP
    (1200, (1000, 80), array([0., 0., 0.]), (252, 80))
    """

    def __init__(self, path: str | os.PathLike[str], epoch: int | None = None) -> None:
        where = Path(path)
        complete, reasons = _complete_epochs(where)
        chosen = [slot for slot in complete if epoch in (None, slot.epoch)]
        if not chosen:
            wanted = "complete epoch" if epoch is None else f"epoch {epoch}"
            there = [f"{slot.path.name}: epoch {slot.epoch} is complete" for slot in complete] + reasons
            raise EpochError(f"There is no {wanted} in {where}. " + ("; ".join(there) or "It holds no slots."))
        self.slot = chosen[-1]
        self.path: Path = self.slot.path
        self.epochs: tuple[int, ...] = tuple(dict.fromkeys(slot.epoch or 0 for slot in complete))
        self.epoch: int = self.slot.epoch or 0
        self.step: int = self.slot.step or 0
        self.world_size: int = self.slot.world_size
        self.layout, offsets = read_structure(self.path, crc32c)
        self.images = images_of(self.path, self.layout, offsets, self.slot.records, self.slot.packed)
        self.check_unchanged()

    def __repr__(self) -> str:
        """Return path, epoch, step and number of ranks."""
        return f"<Checkpoint {self.path}: epoch {self.epoch}, step {self.step}, {self.world_size} ranks>"

    def _repr_html_(self) -> str:
        """Show what is in it, for notebooks."""
        rows = [
            (info.name, info.dtype, info.shape or "no part", f"{len(info.ranks)} of {self.world_size}")
            for info in self.arrays.values()
        ]
        title = f"{self.path}: epoch {self.epoch}, step {self.step}, {self.world_size} ranks"
        return html_table(title, ("array", "dtype", "global shape", "ranks"), rows)

    @property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """The arrays: a mapping of names to `ArrayInfo`, in the order in which they were declared."""
        found = {}
        for name in self.layout.names:
            specs = self.layout.having(name)
            first = specs[0][1]
            shape, dims = (first.part.shape, first.part.dims) if first.part else (None, None)
            found[name] = ArrayInfo(name, first.dtype, shape, tuple(rank for rank, _ in specs), dims)
        return found

    def rank(self, rank: int) -> RankArrays:
        """Return the arrays of one rank.

        Parameters
        ----------
        rank : int
            From 0 to ``world_size - 1``: a rank of the run that wrote the checkpoint.

        Returns
        -------
        RankArrays
            The arrays by name, halo cells included.

        Raises
        ------
        UsageError
            If there is no such rank.
        """
        return RankArrays(self, self._image(rank))

    def told_absent(self, name: str, rank: int) -> str:
        """Return a sentence: the rank has no such array, which ranks have it, and what the rank has."""
        others = ranks_holding(self.layout, name)
        elsewhere = f"; {told_ranks(others)} {'has' if len(others) == 1 else 'have'} it" if others else ""
        own = ", ".join(spec.name for spec in self.images[rank].arrays) or "none"
        return f"rank {rank} has no array {name!r}{elsewhere}. Rank {rank} has: {own}"

    def __getitem__(self, name: str) -> StoredArray:
        """Return the global array `name`, which is assembled from the parts of all ranks when it is read.

        Returns
        -------
        StoredArray
            Of the shape of the global array, without halo cells. Nothing is read before it is indexed.

        Raises
        ------
        KeyError
            If there is no array of that name, or it has no parts.
        """
        info = self.arrays.get(name)
        if info is None:
            raise KeyError(f"there is no array {name!r}, only {', '.join(self.arrays) or 'none'}")
        if info.shape is None:
            holds = f"{told_ranks(info.ranks)} {'holds one' if len(info.ranks) == 1 else 'hold one each'}"
            raise KeyError(
                f"array {name!r} has no part: it is not global, but {holds}; see rank({info.ranks[0]})[{name!r}]"
            )
        return global_array(self.unchanged, self.layout, self.images, name)

    def __iter__(self) -> Iterator[str]:
        """Return the names of the global arrays, in the order in which they were declared."""
        return (info.name for info in self.arrays.values() if info.shape is not None)

    def keys(self) -> list[str]:
        """Return the names of the global arrays, as `h5py.File.keys` does for a file."""
        return list(self)

    def to_xarray(self) -> xarray.Dataset:
        """Return all global arrays as an xarray Dataset, whose variables are read when they are used.

        Dimensions have the names that ``Part(..., dims=...)`` gave. Without names, those of array ``u`` are ``u_0``,
        ``u_1``, ….

        Returns
        -------
        xarray.Dataset
            One variable for each array with a part; `epoch`, `step` and the path (`source`) as attributes.

        Raises
        ------
        UsageError
            If xarray is not installed.
        """
        from mpickpt.reading.array import as_dataset

        arrays = [self[name] for name in self]
        return as_dataset(arrays, {"epoch": self.epoch, "step": self.step, "source": str(self.path)})

    def objects(self, rank: int) -> dict[str, Any]:
        """Unpickle the objects of one rank.

        Unpickling runs code from the file. It is done only here, and only for files that belong to the user of this
        process. Saved arrays that an object refers to are read with it.

        Parameters
        ----------
        rank : int
            From 0 to ``world_size - 1``: a rank of the run that wrote the checkpoint.

        Returns
        -------
        dict of str to object
            The objects by name.

        Raises
        ------
        UsageError
            If there is no such rank.
        StoreError
            If the file belongs to another user, or the objects cannot be unpickled.
        CorruptionError
            If they do not match their checksum.
        """
        with self.unchanged():
            return self._image(rank).objects()

    @property
    def nbytes(self) -> int:
        """Size in bytes of all ranks' arrays, objects and messages in flight."""
        return sum(
            sum(spec.nbytes for spec in image.arrays) + image.objects_bytes + image.channels_bytes
            for image in self.images
        )

    def verify(self, progress: Callable[[int], object] | None = None) -> list[Damage]:
        """Read all data, and return what does not match its checksum.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of bytes of each piece of up to 16 MiB that was read.

        Returns
        -------
        list of Damage
            One for each corrupt block, and for each rank's corrupt objects or messages; empty if all is valid.

        Raises
        ------
        EpochError
            If a running program overwrote the epoch meanwhile.
        StoreError
            If a file cannot be read.
        """
        damage: list[Damage] = []
        verifier = _Verifier()
        with self.unchanged(), ThreadPoolExecutor(VERIFIERS) as verifiers:
            for found, nbytes in verifiers.map(verifier.check, self._pieces()):
                damage += found
                if progress:
                    progress(nbytes)
        return damage

    def _pieces(self) -> Iterator[tuple[RankImage, int | None, int, int]]:
        """Split the epoch into pieces to verify: image, array or None for the payloads, first block, bytes."""
        for image in self.images:
            yield image, None, 0, image.objects_bytes + image.channels_bytes
            blocks = max(1, VERIFY_BYTES // image.block_bytes)
            for index, spec in enumerate(image.arrays):
                for first in range(0, blocks_in(spec.nbytes, image.block_bytes), blocks):
                    left = spec.nbytes - first * image.block_bytes
                    yield image, index, first, min(blocks * image.block_bytes, left)

    def _image(self, rank: int) -> RankImage:
        if not 0 <= rank < self.world_size:
            raise UsageError(f"There is no rank {rank} in {self.path}, only 0 to {self.world_size - 1}.")
        return self.images[rank]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise EpochError at the end of the block if a running program overwrote the slot meanwhile."""
        try:
            yield
        except OSError as error:
            self.check_unchanged()
            raise StoreError(
                f"{error.filename or self.path} cannot be read: {reason_of(error)}.",
                errno=system_errno(error),
                path=self.path,
            ) from error
        except CorruptionError:
            self.check_unchanged()
            raise
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raise EpochError if the slot was written to since the checkpoint was opened."""
        if not is_unchanged(self.slot, crc32c):
            raise EpochError(
                f"Epoch {self.epoch} in {self.path} was overwritten while it was read; a program is saving there. "
                "Open the checkpoint again."
            )


def _complete_epochs(where: Path) -> tuple[list[SlotInfo], list[str]]:
    """Return the files with a complete epoch, oldest first, slots after archives; and why others have none."""
    try:
        mode = read_again(where, where.stat).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as error:
        raise StoreError(f"{where} cannot be inspected: {error.strerror}.", errno=error.errno, path=where) from None
    if stat.S_ISDIR(mode):
        store = Store(where, crc32c)
        slots = [*store.archives(), *store.slots()]
    elif mode:
        slots = [read_slot(where, crc32c)]
        if not slots[0].readable:
            raise StoreError(slots[0].why_not, errno=_access_errno(where), path=where)
    else:
        raise StoreError(f"There is no checkpoint directory or slot file {where}.", errno=errno.ENOENT, path=where)
    complete = sorted((slot for slot in slots if slot.complete), key=lambda slot: slot.epoch or 0)
    return complete, [f"{slot.path.name}: {slot.why_not}" for slot in slots if not slot.complete]


def _access_errno(path: Path) -> int | None:
    return None if os.access(path, os.R_OK) else errno.EACCES


class _Verifier(threading.local):
    """Checks pieces; each thread keeps one buffer, because allocating and clearing memory takes time."""

    buffer = np.empty(0, np.uint8)

    def check(self, piece: tuple[RankImage, int | None, int, int]) -> tuple[list[Damage], int]:
        """Return what is corrupt in a piece, and the bytes that were read."""
        image, index, first, nbytes = piece
        if index is None:
            return image.check_payloads(), nbytes
        if self.buffer.size < nbytes:
            self.buffer = Snapshotter.allocate(nbytes)
        return image.read_array(index, self.buffer[:nbytes], first), nbytes
