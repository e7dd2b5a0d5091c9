"""An older run's arrays and objects, and how they become those of the new run.

On the same number of ranks, each rank reads its own share straight into the memory that `Session.array` returns. On any
other number, each rank checks a share of the epoch, and an array is assembled from its parts when the program declares
it. All data are read as raw bytes at the offsets that the store returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import LayoutError, MpickptError, StoreError
from mpickpt.layout.arrays import ArraySpec, Layout, blocks_in
from mpickpt.layout.holders import ranks_holding
from mpickpt.layout.subclasses import check_values
from mpickpt.reading.image import RankImage, gather
from mpickpt.references import Part as SavedPart
from mpickpt.references import PickledObjects, Resolve
from mpickpt.retry import reason_of
from mpickpt.snapshot import Snapshotter, crc32c
from mpickpt.texts import told_ranks

PIECE_BYTES = 32 << 20  # checked at once on another number of ranks: the memory needed for it
OWN_PIECE_BYTES = 128 << 20  # read at once on the same number of ranks, between two reports of progress

Remap = Callable[[Sequence[Any], int, int], Any]
Tell = Callable[[int, int], object]  # takes the bytes read so far, and the total


class Source(Protocol):
    """A complete and valid epoch, from which the session takes arrays and objects."""

    def memory(self, spec: ArraySpec) -> NDArray[np.uint8] | None:
        """Return the memory that holds the array already, if there is such memory."""

    def read_into(self, spec: ArraySpec, out: NDArray[Any], remap: Remap | None) -> None:
        """Fill `out`, which `spec` describes."""

    def object(self, name: str, replicated: bool, remap: Remap | None) -> Any:  # noqa: ANN401  (objects may be anything)
        """Return the object called `name`."""

    def hand_out(self, name: str, array: NDArray[Any]) -> None:
        """Note which array the program has under a name: its objects refer to that."""

    def channels(self) -> bytes:
        """Return the messages that were in flight to this rank."""

    def names(self) -> set[str]:
        """Return the names of the arrays and objects that this rank should declare."""

    def close(self) -> None:
        """Release what was handed out; nothing is taken any more."""


def _missing(kind: str, name: str, where: str) -> LayoutError:
    return LayoutError(
        f"There is no {kind} {name!r} in {where}. If the program was changed, start from the beginning with "
        f"restart='never' (mpickpt run --restart never), or in another directory."
    )


def _changed(now: ArraySpec, saved: ArraySpec, where: str) -> LayoutError:
    return LayoutError(
        f"Array {now.name!r} is now {describe(now)}, but {where} holds it as {describe(saved)}. If the program was "
        f"changed, start from the beginning with restart='never' (mpickpt run --restart never), or in another "
        f"directory."
    )


@dataclass
class SameRanks:
    """An epoch written by the same number of ranks: all arrays are in memory, in the form in which they were saved."""

    where: str
    image: RankImage
    arrays: list[NDArray[np.uint8]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Prepare for objects to be unpickled when first asked for."""
        self._objects: PickledObjects | None = None
        self._handed: dict[str, NDArray[Any]] = {}

    def memory(self, spec: ArraySpec) -> NDArray[np.uint8]:
        """Return the memory of the array itself."""
        return self.arrays[self.find(spec)]

    def find(self, spec: ArraySpec) -> int:
        """Return the position of the array among the rank's arrays; LayoutError if it is missing or differs."""
        index = self.image.index(spec.name)
        if index is None:
            raise self._elsewhere(spec.name) or _missing("array", spec.name, self.where)
        saved = self.image.arrays[index]
        if not saved.saves_as(spec):
            raise _changed(spec, saved, self.where)
        return index

    def read_into(self, spec: ArraySpec, out: NDArray[Any], remap: Remap | None) -> None:
        """Copy the array to `out`."""
        out[...] = np.ndarray(spec.shape, spec.dtype, self.memory(spec), order=spec.order)

    def object(self, name: str, replicated: bool, remap: Remap | None) -> Any:  # noqa: ANN401  (objects may be anything)
        """Return this rank's own object."""
        if name not in self._pickled().names:
            raise _missing("object", name, self.where)
        with self.image.unpickling():
            return self._pickled()[name]

    def hand_out(self, name: str, array: NDArray[Any]) -> None:
        """Note which array the program has under a name."""
        self._handed[name] = array

    def channels(self) -> bytes:
        """Return the messages that were in flight to this rank."""
        return self.image.read_channels()[0]

    def names(self) -> set[str]:
        """Return the names of all that this rank saved."""
        return {spec.name for spec in self.image.arrays} | set(self._pickled().names)

    def close(self) -> None:
        """Release all arrays and objects."""
        self._handed.clear()
        self.arrays = []
        if self._objects is not None:
            self._objects.close()

    def _elsewhere(self, name: str) -> LayoutError | None:
        """Return an error that names the ranks that saved the array, if any did."""
        from mpickpt.store import read_structure  # imports h5py, which most starts do not need

        ranks: list[int] = []
        with suppress(MpickptError, OSError):  # then it is only missing
            layout, _ = read_structure(self.image.path, crc32c)
            ranks = ranks_holding(layout, name)
        if not ranks:
            return None
        return LayoutError(
            f"Rank {self.image.rank} saved no array {name!r} in {self.where}: {told_ranks(ranks)} did, and on as many "
            f"ranks each gets back what it saved itself. Declare it on the ranks that saved it; another one can read "
            f"it: mpickpt.Checkpoint({str(self.image.path)!r}).rank({ranks[0]})[{name!r}]."
        )

    def _pickled(self) -> PickledObjects:
        if self._objects is None:
            self._objects = self.image.pickled_objects(self._resolve)
        return self._objects

    def _resolve(self, name: str, part: SavedPart | None, holder: str) -> NDArray[Any]:
        array = _declared(self._handed, name, holder)
        return array if part is None else part.of(array)


class PerRank(Sequence[Any]):
    """The values of all ranks of the older run under one name; each is read when it is indexed."""

    def __init__(self, count: int, get: Callable[[int], Any]) -> None:
        self._count = count
        self._get = get

    def __len__(self) -> int:
        """Return the number of ranks of the older run."""
        return self._count

    def __getitem__(self, rank: Any) -> Any:  # noqa: ANN401  (the values may be anything)
        """Return the value of old rank `rank`."""
        if isinstance(rank, slice):
            return [self._get(r) for r in range(*rank.indices(self._count))]
        if not -self._count <= rank < self._count:
            raise IndexError(f"there is no rank {rank} among {self._count}")
        return self._get(rank % self._count)


@dataclass
class OtherRanks:
    """An epoch written by another number of ranks: global arrays are assembled from their parts."""

    where: str
    layout: Layout
    images: list[RankImage]
    rank: int
    size: int
    direct: bool = True

    def __post_init__(self) -> None:
        """Begin without arrays."""
        self._handed: dict[str, NDArray[Any]] = {}

    def memory(self, spec: ArraySpec) -> None:
        """Nothing is in memory yet."""

    def read_into(self, spec: ArraySpec, out: NDArray[Any], remap: Remap | None) -> None:
        """Read the cells of `spec` from their old owners, or call `remap`."""
        olds = self.layout.having(spec.name)
        if not olds:
            raise _missing("array", spec.name, self.where)
        _, old = olds[0]
        if spec.part is not None and old.part is not None and remap is None:
            self._put_together(spec, old, out)
            return
        if remap is None:
            raise self._needs_remap("Array", spec.name, "a part on both sides")
        per_rank = PerRank(len(self.images), lambda rank: self._old_array(rank, spec.name))
        given = remap(per_rank, self.rank, self.size)
        check_values(spec.name, given)
        value = np.asarray(given)
        if value.shape != spec.shape:
            raise LayoutError(f"Array {spec.name!r}: its remap function gave shape {value.shape}, not {spec.shape}.")
        out[...] = value

    def object(self, name: str, replicated: bool, remap: Remap | None) -> Any:  # noqa: ANN401  (objects may be anything)
        """Return what `remap` makes of the objects of all ranks; without it, rank 0's if it is replicated."""
        if remap is not None:
            return remap(PerRank(len(self.images), lambda r: self._old_object(r, name)), self.rank, self.size)
        if replicated:
            return self._old_object(0, name, self._resolve)
        raise self._needs_remap("Object", name, "replicated=True")

    def hand_out(self, name: str, array: NDArray[Any]) -> None:
        """Note which array the program has under a name."""
        self._handed[name] = array

    def channels(self) -> bytes:
        """Return nothing: messages between the old ranks have no meaning on the new ones.

        Raises
        ------
        LayoutError
            If there are any.
        """
        if any(image.channels_bytes for image in self.images):
            raise LayoutError(
                f"{self.where} holds messages that were in flight between {len(self.images)} ranks, which have no "
                f"meaning on {self.size}: restart it on {len(self.images)}, or go back to an epoch without (restart=)."
            )
        return b""

    def names(self) -> set[str]:
        """Return the global arrays; all else may have a meaning on the old ranks only."""
        return {name for name in self.layout.names if any(spec.part for _, spec in self.layout.having(name))}

    def close(self) -> None:
        """Release what was handed out."""
        self._handed.clear()

    def _put_together(self, spec: ArraySpec, old: ArraySpec, out: NDArray[Any]) -> None:
        assert spec.part is not None
        assert old.part is not None
        if (spec.part.shape, spec.dtype) != (old.part.shape, old.dtype):
            raise _changed(spec, old, self.where)
        gather(self.layout, self.images, spec, out, self.direct)

    def _old_array(self, rank: int, name: str) -> NDArray[Any] | None:
        index = self.images[rank].index(name)
        return None if index is None else self.images[rank].load(index, self.direct)

    def _old_object(self, rank: int, name: str, resolve: Resolve | None = None) -> Any:  # noqa: ANN401
        image = self.images[rank]
        objects = image.pickled_objects(resolve or image.resolver(self.direct))
        if name not in objects.names:
            raise _missing("object", name, f"{self.where}, rank {rank}")
        try:
            with image.unpickling():
                return objects[name]
        finally:
            objects.close()

    def _resolve(self, name: str, part: SavedPart | None, holder: str) -> NDArray[Any]:
        """Return this rank's array in place of rank 0's."""
        array = _declared(self._handed, name, holder)
        if part is None:
            return array
        index = self.images[0].index(name)
        old = None if index is None else self.images[0].arrays[index]
        if old is None or (old.shape, old.dtype) != (array.shape, array.dtype):
            raise LayoutError(
                f"Object {holder!r} holds a part of array {name!r}, which has another shape on {self.size} ranks than "
                f"on {len(self.images)}. Let it hold the array itself, or give remap=."
            )
        return part.of(array)

    def _needs_remap(self, kind: str, name: str, instead: str) -> LayoutError:
        return LayoutError(
            f"{kind} {name!r} was saved by {len(self.images)} ranks and there are {self.size} now. What it means for "
            f"them is known only to the program: give {instead}, or remap=, a function of (old values, rank, size)."
        )


def _declared(handed: Mapping[str, NDArray[Any]], name: str, holder: str) -> NDArray[Any]:
    """Return the array that an object holds."""
    if name not in handed:
        raise LayoutError(
            f"Object {holder!r} holds array {name!r}, which is declared after it, or not any more. Declare the array "
            f"before the objects: what they hold has to be there."
        )
    return handed[name]


def _nobody(done: int, total: int) -> None:
    """Report to nobody."""


def describe(spec: ArraySpec) -> str:
    """Return dtype, shape and place of an array in words."""
    order = " in Fortran order" if spec.order == "F" else ""
    if spec.part is None:
        return f"{spec.dtype} {spec.shape}{order}"
    return f"{spec.dtype} {spec.shape}{order}, cells from {spec.owned.start} of {spec.part.shape}"


def read_own(
    image: RankImage, snapshotter: Snapshotter, direct: bool, tell: Tell = _nobody
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Read and check all that one rank saved, and report progress to `tell`.

    Returns
    -------
    arrays : list of ndarray
        The bytes of each array in memory of its own.
    damage : list of str
        What is wrong, in words; empty if all is valid.
    """
    try:
        arrays = [snapshotter.allocate(spec.nbytes) for spec in image.arrays]
    except OSError as error:
        return [], [f"rank {image.rank}: {error}"]

    damage = check_payloads(image)
    done, total = 0, sum(spec.nbytes for spec in image.arrays)
    try:
        for _, index, first, nbytes in _pieces([image], OWN_PIECE_BYTES):
            if index is not None:
                start = first * image.block_bytes
                found = image.read_array(index, arrays[index][start : start + nbytes], first, direct)
                damage += map(str, found)
                done += nbytes
                tell(done, total)
    except (OSError, StoreError) as error:
        damage.append(f"rank {image.rank}: {reason_of(error)}")
    return arrays, list(dict.fromkeys(damage))  # that a file ends too early is found in each piece


def check_payloads(image: RankImage) -> list[str]:
    """Return what is wrong with one rank's objects and messages in flight, in words."""
    try:
        return [str(found) for found in image.check_payloads()]
    except (OSError, StoreError) as error:
        return [f"rank {image.rank}: {reason_of(error)}"]


def check_share(images: list[RankImage], rank: int, size: int, direct: bool, tell: Tell = _nobody) -> list[str]:
    """Read and check this rank's share of an epoch, pieces of arrays and payloads; report progress to `tell`.

    Returns
    -------
    list of str
        What is wrong, in words.
    """
    damage: list[str] = []
    buffer = np.empty(0, np.uint8)
    share = [piece for turn, piece in enumerate(_pieces(images, PIECE_BYTES)) if turn % size == rank]
    done, total = 0, sum(nbytes for *_, nbytes in share)
    for image, index, first, nbytes in share:
        tell(done, total)
        done += nbytes
        try:
            if index is None:
                damage += map(str, image.check_payloads())
                continue
            buffer = buffer if buffer.size >= nbytes else np.empty(nbytes, np.uint8)
            damage += map(str, image.read_array(index, buffer[:nbytes], first, direct))
        except (OSError, StoreError) as error:
            damage.append(f"rank {image.rank}: {reason_of(error)}")
            break  # after several tries; the epoch is not usable, whatever else is there
    return damage


def _pieces(images: list[RankImage], piece_bytes: int) -> Iterator[tuple[RankImage, int | None, int, int]]:
    """Split an epoch into pieces to check: image, array or None for objects and channels, first block, bytes."""
    for image in images:
        yield image, None, 0, image.objects_bytes + image.channels_bytes
        step = max(1, piece_bytes // image.block_bytes)
        for index, spec in enumerate(image.arrays):
            for first in range(0, blocks_in(spec.nbytes, image.block_bytes), step):
                start = first * image.block_bytes
                yield image, index, first, min(step * image.block_bytes, spec.nbytes - start)
