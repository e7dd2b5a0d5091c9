#!/usr/bin/env bash
# PyTables opens no dataset that is a dimension scale of another one, as those of NetCDF 4 are.
#
# Guess: an attribute of a type that PyTables does not know is a warning, as DIMENSION_LIST is (a list of references).
# Seen: REFERENCE_LIST, a compound with a reference, ends in KeyError: 'Reference' when the dataset is opened, and so
# does a walk through the file, though its values are plain numbers. A file without REFERENCE_LIST is read, and h5py,
# netCDF4 and h5netcdf find the names of its dimensions by DIMENSION_LIST alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tables==3.11.1 h5py==3.14.0 numpy==2.4.6
cat >reads.py <<'PYTHON'
import warnings

import h5py
import numpy as np
import tables

warnings.simplefilter("ignore")
print(f"PyTables {tables.__version__} with HDF5 {tables.hdf5_version}, h5py {h5py.__version__}")
with h5py.File("scale.h5", "w") as file:
    file["x"], file["u"] = np.arange(5.0), np.arange(5.0)
    file["x"].make_scale("x")
    file["u"].dims[0].attach_scale(file["x"])


def read(name: str) -> str:
    with tables.open_file("scale.h5") as file:
        try:
            return str(file.get_node("/" + name)[:].tolist())
        except KeyError as error:
            return f"KeyError: {error}"


before = {name: read(name) for name in ("u", "x")}
with h5py.File("scale.h5", "r+") as file:
    del file["x"].attrs["REFERENCE_LIST"]
after = {name: read(name) for name in ("u", "x")}
print("with REFERENCE_LIST:   ", before)
print("without REFERENCE_LIST:", after)
with h5py.File("scale.h5") as file:
    assert file["u"].dims[0][0] == file["x"]
right = "[0.0, 1.0, 2.0, 3.0, 4.0]"
assert before == {"u": right, "x": "KeyError: 'Reference'"}, before
assert after == {"u": right, "x": right}, after
print("as described")
PYTHON
venv/bin/python reads.py
