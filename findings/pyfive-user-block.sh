#!/usr/bin/env bash
# pyfive reads other values than those in the file when the file has a user block and is opened by its path.
#
# Guess: pyfive 1.3 knows user blocks (it has File.userblock_size), so that it reads such a file as any other, or says
# that it cannot. Seen: names, shapes and attributes are right; contiguous datasets give wrong values without an error,
# moved by the size of the user block; compressed ones end in an AssertionError without words. The same bytes read from
# memory (io.BytesIO) are right. Reading that goes by the file's descriptor leaves the user block out of account.
# MATLAB's files of version 7.3 have user blocks, and so have mpickpt's slots (docs/format.md says what to do).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyfive==1.3.0 h5py==3.16.0 numpy==2.4.6
cat >reads.py <<'PYTHON'
import io
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pyfive

print(f"pyfive {version('pyfive')}, h5py {h5py.__version__} with HDF5 {h5py.version.hdf5_version}")
expected = np.arange(1000.0)
seen = {}
for size in (0, 512, 4096):
    path = Path(f"user-block-{size}.h5")
    with h5py.File(path, "w", userblock_size=size) as file:
        file["contiguous"] = expected
        file.create_dataset("compressed", data=expected, chunks=(100,), compression="gzip")
    with h5py.File(path) as file:
        assert all(np.array_equal(file[name][:], expected) for name in file)
    for how, source in (("path", path), ("memory", io.BytesIO(path.read_bytes()))):
        file = pyfive.File(source)
        assert file.userblock_size == size
        for name in ("contiguous", "compressed"):
            try:
                values = file[name][:]
                found = "right" if np.array_equal(values, expected) else "wrong values, no error"
            except AssertionError as error:
                found = f"AssertionError{str(error)!r}"
            seen[size, how, name] = found
            print(f"user block of {size:4} bytes, {name:10} by {how:6}: {found}")
for (size, how, name), found in seen.items():
    bad = {"contiguous": "wrong values, no error", "compressed": "AssertionError''"}[name]
    assert found == (bad if size and how == "path" else "right"), (size, how, name, found)
print("as described")
PYTHON
venv/bin/python reads.py
