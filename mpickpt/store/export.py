"""Writes arrays to plain HDF5 or NetCDF files, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import UsageError
from mpickpt.store.dimensions import name_dimensions

Piece = tuple[tuple[slice, ...], NDArray[Any]]


@dataclass(frozen=True)
class Exported:
    """An array to export; `pieces` yields the place of each piece, and its cells; `dims` names its axes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Iterator[Piece]
    dims: tuple[str, ...] | None = None


def write_hdf5(path: Path, arrays: Iterable[Exported], attributes: Mapping[str, str | int]) -> None:
    """Write a plain HDF5 file with compressed datasets; a dtype that HDF5 lacks is stored as opaque."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        named = {}
        for array in arrays:
            plain = array.dtype.kind in "biufcSV"
            dtype = array.dtype if plain else h5py.opaque_dtype(array.dtype)
            chunked = {"chunks": True, "compression": "gzip", "shuffle": True} if 0 not in (array.shape or (0,)) else {}
            dataset = file.create_dataset(array.name, array.shape, dtype, **chunked)
            for where, cells in array.pieces:
                dataset[where] = cells if plain else cells.astype(dtype)
            if array.dims:
                named[array.name] = array.dims
        name_dimensions(file, named, reverse=frozenset())


def write_netcdf(path: Path, arrays: Iterable[Exported], attributes: Mapping[str, str | int]) -> None:
    """Write a NetCDF 4 file with compressed variables.

    Raises
    ------
    UsageError
        If h5netcdf is not installed, or NetCDF lacks a dtype.
    """
    try:
        import h5netcdf
    except ImportError:
        raise UsageError("NetCDF needs h5netcdf: pip install 'mpickpt[netcdf]'.") from None
    with closing(h5netcdf.File(path, "w")) as file:
        file.attrs.update(attributes)
        for array in arrays:
            dtype = np.dtype("f4") if array.dtype == np.float16 else array.dtype  # NetCDF has no half precision
            if dtype.kind not in "iuf" or dtype.itemsize > 8:
                raise UsageError(f"NetCDF has no type for array {array.name!r} of {array.dtype}; export it to .h5.")
            dims = array.dims or tuple(f"{array.name}_{axis}" for axis in range(len(array.shape)))
            for name, extent in zip(dims, array.shape, strict=True):
                if name not in file.dimensions:
                    file.dimensions[name] = extent
            filters = {"compression": "gzip", "shuffle": True} if 0 not in (array.shape or (0,)) else {}
            variable = file.create_variable(array.name, dims, dtype, **filters)
            for where, cells in array.pieces:
                variable[where if where else ...] = cells
