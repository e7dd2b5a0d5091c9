"""Reading checkpoints without MPI: in a notebook, a test, or the command line.

Everything is checked against its checksum while it is read. Nothing is unpickled but by `Checkpoint.objects`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import DamageError, EpochError, StoreError, UsageError
from mpickpt.image import PIECE_BYTES, Damage, RankImage, gather, images_of, page_aligned
from mpickpt.layout import ArraySpec, blocks_in
from mpickpt.parts import Part
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, Store, read_slot, read_structure


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
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None
    ranks: tuple[int, ...]


class RankArrays(Mapping[str, NDArray[Any]]):
    """The arrays of one rank, by name; each is read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, image: RankImage) -> None:
        self._checkpoint = checkpoint
        self._image = image

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read array `name`; KeyError if the rank has none of that name, DamageError if it is damaged."""
        index = self._image.index(name)
        if index is None:
            raise KeyError(f"rank {self._image.rank} has no array {name!r}, only {', '.join(self) or 'none'}")
        with self._checkpoint._unchanged():
            return self._image.load(index)

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return (spec.name for spec in self._image.arrays)

    def __len__(self) -> int:
        """Count the arrays."""
        return len(self._image.arrays)


class Checkpoint:
    """A checkpoint to look at.

    Parameters
    ----------
    path : path-like
        A checkpoint directory or one slot file.
    epoch : int, optional
        Which epoch; the newest whole one by default.

    Attributes
    ----------
    path : pathlib.Path
        The slot file.
    epoch, step : int
        Number of the epoch, and the step that it was cut at.
    epochs : tuple of int
        All whole epochs there, in ascending order.
    world_size : int
        Number of ranks that wrote it.

    Raises
    ------
    StoreError
        If there is no such directory or file, or it cannot be read.
    EpochError
        If there is no whole epoch, or not the one asked for.

    Examples
    --------
    >>> ck = Checkpoint("heat.ckpt")                                      # doctest: +SKIP
    >>> ck.step, ck["u"].shape, ck.rank(0)["u"].shape                     # doctest: +SKIP
    (1200, (1000, 80), (252, 80))
    """

    def __init__(self, path: str | os.PathLike[str], epoch: int | None = None) -> None:
        where = Path(path)
        whole, reasons = _whole_slots(where)
        chosen = [slot for slot in whole if epoch in (None, slot.epoch)]
        if not chosen:
            wanted = "whole epoch" if epoch is None else f"epoch {epoch}"
            there = [f"{slot.path.name}: epoch {slot.epoch} is whole" for slot in whole] + reasons
            raise EpochError(f"There is no {wanted} in {where}. " + (" ".join(there) or "It holds no slots."))
        self._slot = chosen[-1]
        self.path: Path = self._slot.path
        self.epochs: tuple[int, ...] = tuple(slot.epoch or 0 for slot in whole)
        self.epoch: int = self._slot.epoch or 0
        self.step: int = self._slot.step or 0
        self.world_size: int = self._slot.world_size
        self._layout, offsets = read_structure(self.path)
        self._images = images_of(self.path, self._layout, offsets, self._slot.records)
        self._check_unchanged()

    def __repr__(self) -> str:
        """Say what it is."""
        return f"<Checkpoint {self.path}: epoch {self.epoch}, step {self.step}, {self.world_size} ranks>"

    @property
    def arrays(self) -> Mapping[str, ArrayInfo]:
        """What arrays there are, by name."""
        found = {}
        for name in self._layout.names:
            specs = [(rank, spec) for rank, own in enumerate(self._layout.ranks) if (spec := own.spec(name))]
            first = specs[0][1]
            shape = first.part.shape if first.part else None
            found[name] = ArrayInfo(name, first.dtype, shape, tuple(rank for rank, _ in specs))
        return found

    def rank(self, rank: int) -> RankArrays:
        """Return the arrays of one rank, halo and all, by name."""
        return RankArrays(self, self._image(rank))

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read the global array `name`, put together from the parts of all ranks.

        Raises
        ------
        KeyError
            If there is no array of that name, or the ranks' arrays of that name are no parts of a global one.
        DamageError
            If a block of it is damaged.
        """
        info = self.arrays.get(name)
        if info is None:
            raise KeyError(f"there is no array {name!r}, only {', '.join(self.arrays) or 'none'}")
        if info.shape is None:
            raise KeyError(f"array {name!r} has no part: it is not global; see rank(r)[{name!r}]")
        spec = ArraySpec(name, info.shape, info.dtype, Part(info.shape, (0,) * len(info.shape)))
        out: NDArray[Any] = np.empty(info.shape, info.dtype)
        with self._unchanged():
            gather(self._layout, self._images, spec, out)
        return out

    def objects(self, rank: int) -> dict[str, Any]:
        """Unpickle the objects of one rank.

        Unpickling runs code from the file. It is done only here, and only for files that belong to the user who runs
        this process.

        Raises
        ------
        StoreError
            If the file belongs to somebody else, or the objects cannot be unpickled.
        DamageError
            If they do not agree with their checksum.
        """
        with self._unchanged():
            return self._image(rank).objects()

    def verify(self) -> list[Damage]:
        """Read everything, and return what does not agree with its checksum; an empty list if all is sound."""
        damage: list[Damage] = []
        with self._unchanged():
            for image in self._images:
                damage += image.check_payloads()
                for index in range(len(image.arrays)):
                    damage += _verify_array(image, index)
        return damage

    def _image(self, rank: int) -> RankImage:
        if not 0 <= rank < self.world_size:
            raise UsageError(f"There is no rank {rank} in {self.path}, only 0 to {self.world_size - 1}.")
        return self._images[rank]

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Refuse what was read if a running program overwrote the slot meanwhile."""
        try:
            yield
        except OSError as error:
            self._check_unchanged()
            raise StoreError(
                f"{error.filename or self.path} cannot be read: {error.strerror}.", errno=error.errno, path=self.path
            ) from error
        except DamageError:
            self._check_unchanged()
            raise
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        now = read_slot(self.path, crc32c)
        if now.digest != self._slot.digest or now.records.tobytes() != self._slot.records.tobytes():
            raise EpochError(
                f"Epoch {self.epoch} in {self.path} was overwritten while it was read; a program is saving there. "
                "Open the checkpoint again."
            )


def _whole_slots(where: Path) -> tuple[list[SlotInfo], list[str]]:
    """All slots with a whole epoch, oldest first, and why others have none."""
    if where.is_dir():
        slots = Store(where, crc32c).slots()
    elif where.exists():
        slots = [read_slot(where, crc32c)]
        if not slots[0].readable:
            raise StoreError(slots[0].why_not, path=where)
    else:
        raise StoreError(f"There is no checkpoint directory or slot file {where}.", errno=errno.ENOENT, path=where)
    whole = sorted((slot for slot in slots if slot.whole), key=lambda slot: slot.epoch or 0)
    return whole, [f"{slot.path.name}: {slot.why_not}" for slot in slots if not slot.whole]


def _verify_array(image: RankImage, index: int) -> Iterator[Damage]:
    """Read an array in pieces, to need little memory."""
    nbytes = image.arrays[index].nbytes
    blocks = max(1, PIECE_BYTES // image.block_bytes)
    buffer = page_aligned(min(nbytes, blocks * image.block_bytes))
    for first in range(0, blocks_in(nbytes, image.block_bytes), blocks):
        length = min(blocks * image.block_bytes, nbytes - first * image.block_bytes)
        yield from image.read_array(index, buffer[:length], first)
