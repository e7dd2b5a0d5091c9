"""Reads datasets of a file with one library, and prints what it gives: `read.py LIBRARY FILE DATASET...`.

It runs in the environment of requirements.txt, which has no mpickpt.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")


def with_h5py(path: str, name: str) -> tuple[Any, Any]:
    import h5py

    with h5py.File(path) as file:
        return file[name][()], h5py.version.hdf5_version


def with_netcdf4(path: str, name: str) -> tuple[Any, Any]:
    import netCDF4

    with netCDF4.Dataset(path) as file:
        variable = file[name]
        # It takes half precision for text, and ends the process when it reads that.
        return None if variable.dtype is str else variable[...], variable.dimensions


def with_h5netcdf(path: str, name: str) -> tuple[Any, Any]:
    import h5netcdf

    with h5netcdf.File(path, phony_dims="sort") as file:
        return file[name][...], file[name].dimensions


def _with_xarray(engine: str, path: str, name: str) -> tuple[Any, Any]:
    import xarray

    group, _, variable = name.rpartition("/")
    with xarray.open_dataset(path, group=group or None, engine=engine) as dataset:
        return dataset[variable].values, dataset[variable].dims


def with_xarray_netcdf4(path: str, name: str) -> tuple[Any, Any]:
    return _with_xarray("netcdf4", path, name)


def with_xarray_h5netcdf(path: str, name: str) -> tuple[Any, Any]:
    return _with_xarray("h5netcdf", path, name)


def with_pytables(path: str, name: str) -> tuple[Any, Any]:
    import tables

    with tables.open_file(path) as file:
        unknown = [node._v_pathname for node in file.walk_nodes() if isinstance(node, tables.UnImplemented)]
        return file.get_node("/" + name)[...], unknown


def with_pyfive(path: str, name: str) -> tuple[Any, Any]:
    import pyfive

    return pyfive.File(path)[name][()], None


def with_pyfive_in_memory(path: str, name: str) -> tuple[Any, Any]:
    import pyfive

    return pyfive.File(io.BytesIO(Path(path).read_bytes()))[name][()], None


def with_kerchunk(path: str, name: str) -> tuple[Any, Any]:
    import fsspec
    import zarr
    from kerchunk.hdf import SingleHdf5ToZarr

    with open(path, "rb") as file:  # noqa: PTH123
        references = SingleHdf5ToZarr(file, path).translate()
    store = fsspec.filesystem("reference", fo=references, asynchronous=True)
    array = zarr.open_array(zarr.storage.FsspecStore(store, read_only=True, path=name), mode="r", zarr_format=2)
    return array[...], [key for key in references["refs"] if key.startswith(f"{name}/") and "/." not in key]


def with_virtualizarr(path: str, name: str) -> tuple[Any, Any]:
    import xarray
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr.parsers import HDFParser

    group, _, variable = name.rpartition("/")
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    store = HDFParser(group=group or None)(f"file://{Path(path).resolve()}", registry=registry)
    with xarray.open_zarr(store, consolidated=False, zarr_format=3) as dataset:
        return dataset[variable].values, dataset[variable].dims


def with_vtk(path: str, name: str) -> tuple[Any, Any]:
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    reader = vtk.vtkXdmfReader()
    reader.SetFileName(path)
    reader.Update()
    image = reader.GetOutputDataObject(0)
    values = vtk_to_numpy(image.GetPointData().GetArray(name))
    return values.reshape([n for n in image.GetDimensions()[::-1] if n > 1]), image.GetClassName()


def with_pyvista(path: str, name: str) -> tuple[Any, Any]:
    import pyvista

    image = pyvista.read(path)
    return image.point_data[name].reshape([n for n in image.dimensions[::-1] if n > 1]), type(image).__name__


if __name__ == "__main__":
    _, library, path, *names = sys.argv
    found = [globals()[f"with_{library}"](path, name) for name in names]
    print(json.dumps([(None if values is None else values.tolist(), more) for values, more in found]))
