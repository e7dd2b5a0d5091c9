#!/usr/bin/env bash
# pyfive and kerchunk read a virtual dataset of HDF5 without an error, and without its values.
#
# Guess: a reader that does not know the layout of a dataset says so. Seen: pyfive 1.3 gives None for a virtual dataset,
# and kerchunk 0.2.10 makes references without a chunk, so that zarr gives the fill value for each cell. The layout class
# is in each dataset's header (h5py: Dataset.is_virtual). mpickpt's global arrays are virtual: docs/format.md says who
# reads them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyfive==1.3.0 kerchunk==0.2.10 zarr==3.1.6 h5py==3.14.0 numpy==2.4.6
cat >reads.py <<'PYTHON'
from importlib.metadata import version

import fsspec
import h5py
import numpy as np
import pyfive
import zarr
from kerchunk.hdf import SingleHdf5ToZarr

print(*(f"{name} {version(name)}" for name in ("pyfive", "kerchunk", "zarr", "h5py")), sep=", ")
with h5py.File("both.h5", "w") as file:
    file["plain"] = np.arange(1.0, 6.0)
    layout = h5py.VirtualLayout((5,), "f8")
    layout[:] = h5py.VirtualSource(".", "plain", (5,))
    file.create_virtual_dataset("virtual", layout)
with h5py.File("both.h5") as file:
    assert file["virtual"].is_virtual and file["virtual"][:].tolist() == [1, 2, 3, 4, 5]
with open("both.h5", "rb") as file:
    references = SingleHdf5ToZarr(file, "both.h5").translate()
store = fsspec.filesystem("reference", fo=references, asynchronous=True)
found = {}
for name in ("plain", "virtual"):
    values = pyfive.File("both.h5")[name][:]
    found["pyfive", name] = values if values is None else values.tolist()
    array = zarr.open_array(zarr.storage.FsspecStore(store, read_only=True, path=name), mode="r", zarr_format=2)
    found["kerchunk", name] = array[:].tolist()
for (reader, name), values in found.items():
    print(f"{reader:8} {name:8} {values}")
assert found["pyfive", "plain"] == found["kerchunk", "plain"] == [1, 2, 3, 4, 5]
assert found["pyfive", "virtual"] is None
assert found["kerchunk", "virtual"] == [0, 0, 0, 0, 0]
print("as described")
PYTHON
venv/bin/python reads.py
