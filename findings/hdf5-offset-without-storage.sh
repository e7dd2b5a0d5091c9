#!/usr/bin/env bash
# HDF5 gives an offset for a dataset that has no storage, if the file has a user block; kerchunk believes it.
#
# Guess: H5Dget_offset of a dataset that nothing was written to tells that there is no storage (h5py: None), with a user
# block as without one. Seen, with HDF5 1.14.2 and 2.0.0: with a user block it is the size of that block less one; the
# size of the block is added to the value that means "undefined". kerchunk makes a reference to no bytes at that place of
# it, so that zarr ends with an error where it gives fill values for the same dataset in a file without a user block.
# Whoever asks for an offset should ask for the size of the storage first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
pip() { venv/bin/pip install --quiet --disable-pip-version-check "$@"; }
pip numpy==2.4.6 h5py==3.16.0 kerchunk==0.2.10 zarr==3.1.6 numcodecs==0.16.5
pip --target older --no-deps h5py==3.11.0
cat >offsets.py <<'PYTHON'
import h5py

for size in (0, 512, 4096):
    with h5py.File(f"user-block-{size}.h5", "w", userblock_size=size) as file:
        file.create_dataset("empty", (3,), "f8")
    with h5py.File(f"user-block-{size}.h5") as file:
        empty = file["empty"].id
        assert empty.get_storage_size() == 0
        offset = empty.get_offset()
    print(f"HDF5 {h5py.version.hdf5_version}, user block of {size:4} bytes: no storage, offset {offset}")
    assert offset == (size - 1 if size else None)
PYTHON
PYTHONPATH=older venv/bin/python offsets.py
venv/bin/python offsets.py
cat >reads.py <<'PYTHON'
import warnings
from importlib.metadata import version
from pathlib import Path

import fsspec
import zarr
from kerchunk.hdf import SingleHdf5ToZarr

warnings.simplefilter("ignore")
print(f"kerchunk {version('kerchunk')}, zarr {version('zarr')}")
for size, expected in ((0, "[0. 0. 0.]"), (4096, "ValueError: cannot reshape array of size 0 into shape (3,)")):
    path = str(Path(f"user-block-{size}.h5").resolve())
    references = SingleHdf5ToZarr(path, inline_threshold=0).translate()
    files = fsspec.filesystem("reference", fo=references, asynchronous=True, remote_protocol="file")
    group = zarr.open_group(zarr.storage.FsspecStore(files), mode="r", zarr_format=2)
    try:
        found = str(group["empty"][:])
    except ValueError as error:
        found = f"ValueError: {error}"
    chunk = references["refs"].get("empty/0")
    print(f"user block of {size:4} bytes: reference {chunk and chunk[1:]}, read: {found}")
    assert found == expected
print("as described")
PYTHON
venv/bin/python reads.py
