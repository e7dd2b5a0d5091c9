"""Names the axes of datasets as NetCDF 4 does, by HDF5's dimension scales.

A dimension is a dataset of its length without data, or an array that holds its coordinates. Each array lists its
dimensions (DIMENSION_LIST). The list of a dimension's arrays, REFERENCE_LIST, which HDF5 would add, is left out: nobody
needs it to find names, PyTables cannot open a dataset that has one, and it would be written again for each array.
"""

from __future__ import annotations

from collections.abc import Mapping

import h5py
import numpy as np
from h5py import h5ds, h5p, h5s, h5t

_REFERENCE = h5py.vlen_dtype(h5py.ref_dtype)
_WITHOUT_DATA = "This is a netCDF dimension but not a netCDF variable.%10d"  # the words that NetCDF looks for


def name_dimensions(group: h5py.Group, arrays: Mapping[str, tuple[str, ...]], reverse: frozenset[str]) -> None:
    """Name the axes of arrays in a group, once for all of them.

    Parameters
    ----------
    group : h5py.Group
        Where the arrays are.
    arrays : mapping of str to tuple of str
        Names of the axes by array.
    reverse : frozenset of str
        The arrays whose datasets have their axes in reverse order.
    """
    scales: dict[str, h5py.Dataset] = {}
    for array, dims in arrays.items():
        dataset = group[array]
        stored = dims[::-1] if array in reverse else dims
        for name, length in zip(stored, dataset.shape, strict=True):
            if name not in scales:
                scales[name] = _scale(group, name, length)
        if dims == (array,):
            continue  # the coordinates of a dimension are the dimension
        listed = np.empty(len(dims), _REFERENCE)
        for axis, name in enumerate(stored):
            listed[axis] = np.array([scales[name].ref], h5py.ref_dtype)
        dataset.attrs.create("DIMENSION_LIST", listed, dtype=_REFERENCE)


def _scale(group: h5py.Group, name: str, length: int) -> h5py.Dataset:
    if name in group:
        h5ds.set_scale(group[name].id, name.encode())
    else:
        creation = h5p.create(h5p.DATASET_CREATE)  # no storage is allocated before something is written
        creation.set_obj_track_times(False)
        space = h5s.create_simple((length,))
        made = h5py.h5d.create(group.id, name.encode(), h5t.IEEE_F32BE, space, dcpl=creation)
        h5ds.set_scale(made, (_WITHOUT_DATA % length).encode())
    return group[name]
