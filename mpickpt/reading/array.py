"""An array in a checkpoint, which is read when it is indexed."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpickpt.errors import UsageError
from mpickpt.layout.arrays import ArraySpec, Layout, Order
from mpickpt.layout.parts import Box, Part
from mpickpt.layout.slicing import Selection, pieces_of
from mpickpt.reading.image import PIECE_BYTES, RankImage, bytewise, gather

if TYPE_CHECKING:
    import xarray

NEAR_BYTES = 256 * 1024  # a box of up to this size is read whole, even if not all of its cells are wanted

Guard = Callable[[], AbstractContextManager[None]]
Read = Callable[[Box, NDArray[Any]], None]


class StoredArray:
    """An array that is read when it is indexed: ``array[10:20]``, ``array[::2, -1]``, ``array[...]`` for all of it.

    Only the blocks that hold the requested cells are read, and each is checked. An index consists of integers, slices
    with any step, and ``...``. ``numpy.asarray(array)`` reads the whole array.

    Attributes
    ----------
    name : str
        Its name.
    shape : tuple of int
        Its shape: that of the global array for ``checkpoint[name]``, that of the rank's own array, halo included, for
        ``checkpoint.rank(rank)[name]``.
    dtype : numpy.dtype
        Its dtype.
    order : "C" or "F"
        The order of its cells in the file.
    dims : tuple of str or None
        Names of the axes of a global array, as ``Part(..., dims=...)`` gave them; None without names, and for a rank's
        own array.

    Raises
    ------
    CorruptionError
        If a block that holds a requested cell is corrupt.
    EpochError
        If a running program overwrote the epoch since it was opened.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        order: Order,
        guard: Guard,
        read: Read,
        dims: tuple[str, ...] | None = None,
    ) -> None:
        self.name, self.shape, self.dtype, self.order = name, shape, dtype, order
        self.dims = dims
        self._guard, self._read = guard, read

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of cells."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        """Length of the first axis."""
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  (as numpy: an array or a scalar)
        """Read the cells that `index` selects.

        Parameters
        ----------
        index : int, slice, ``...``, or a tuple of these
            As for numpy; a slice can have any step, also negative. Arrays of indices and masks are not supported.

        Returns
        -------
        ndarray or scalar
            A new array of the shape that numpy gives for this index, or a scalar of `dtype` if only integers are
            given.

        Raises
        ------
        IndexError
            If an index is out of bounds or not supported, or there are too many.
        CorruptionError
            If a block that holds a selected cell is corrupt.
        EpochError
            If a running program overwrote the epoch since it was opened.
        StoreError
            If the file cannot be read.
        """
        selection = Selection.of(index, self.shape)
        out: NDArray[Any] = np.empty(selection.extent, self.dtype)
        with self._guard():
            for box, inside, where in selection.boxes(max(1, NEAR_BYTES // self.dtype.itemsize)):
                target: NDArray[Any] = out[(*where, ...)]  # type: ignore[arg-type]  # an array also where there are no axes
                if box.extent == target.shape:
                    self._read(box, target)
                else:
                    cells: NDArray[Any] = np.empty(box.extent, self.dtype)
                    self._read(box, cells)
                    whole = bytewise(self.dtype)
                    target.view(whole)[...] = cells.view(whole)[inside]
        upright: tuple[Any, ...] = (*selection.flipped, ...)
        result = out[upright].reshape(selection.shape)
        return result[()] if selection.scalar else result

    def pieces(self, nbytes: int = PIECE_BYTES) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
        """Read the array in pieces, in the order of the file, so that little memory is needed.

        Parameters
        ----------
        nbytes : int
            Approximate size of a piece in bytes; 32 MiB by default.

        Yields
        ------
        where : tuple of slice
            Place of the piece in the array: one slice for each axis.
        cells : ndarray
            Its cells, of the shape of ``array[where]``.

        Raises
        ------
        CorruptionError, EpochError, StoreError
            As for indexing.
        """
        for box in pieces_of(self.shape, max(1, nbytes // self.dtype.itemsize), self.order):
            yield box.slices, self[box.slices] if self.shape else self[...]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Read the whole array, for numpy."""
        if copy is False:
            raise ValueError("an array of a checkpoint cannot be had without reading it into memory")
        whole: NDArray[Any] = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __repr__(self) -> str:
        """Return name, dtype and shape."""
        return f"<{self.name}: {self.dtype} {self.shape}>"

    def _repr_html_(self) -> str:
        return html_table("", ("array", "dtype", "shape", "bytes"), [(self.name, self.dtype, self.shape, self.nbytes)])


def rank_array(guard: Guard, image: RankImage, index: int) -> StoredArray:
    """Return one rank's array."""
    spec = image.arrays[index]
    return StoredArray(
        spec.name, spec.shape, spec.dtype, spec.order, guard, lambda box, out: image.copy_cells(index, box, out)
    )


def global_array(guard: Guard, layout: Layout, images: Sequence[RankImage], name: str) -> StoredArray:
    """Return the global array `name`, which has parts."""
    first = layout.first(name)
    assert first.part is not None
    shape = first.part.shape

    def read(box: Box, out: NDArray[Any]) -> None:
        gather(layout, images, ArraySpec(name, box.extent, first.dtype, Part(shape, box.start)), out)

    return StoredArray(name, shape, first.dtype, first.order, guard, read, first.part.dims)


def names_of_axes(array: StoredArray) -> tuple[str, ...]:
    """Return the names of an array's axes, or names that no other array has: u_0, u_1, …."""
    return array.dims or tuple(f"{array.name}_{axis}" for axis in range(array.ndim))


def as_dataset(arrays: Iterable[StoredArray], attributes: Mapping[str, Any]) -> xarray.Dataset:
    """Make an xarray Dataset whose variables are read when they are used."""
    try:
        import xarray
        from xarray.backends import BackendArray
        from xarray.core.indexing import IndexingSupport, LazilyIndexedArray, explicit_indexing_adapter
    except ImportError:
        raise UsageError("to_xarray() needs xarray: pip install 'mpickpt[xarray]'.") from None

    class Backend(BackendArray):  # type: ignore[misc, unused-ignore]
        def __init__(self, array: StoredArray) -> None:
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __getitem__(self, key: Any) -> Any:  # noqa: ANN401  (xarray's own)
            return explicit_indexing_adapter(key, self.shape, IndexingSupport.BASIC, self.array.__getitem__)

    variables = {array.name: (names_of_axes(array), LazilyIndexedArray(Backend(array))) for array in arrays}
    return xarray.Dataset(variables, attrs=dict(attributes))


def html_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in HTML, for notebooks."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
