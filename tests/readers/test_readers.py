"""What other libraries read in a slot, an archive, and exported files: the table of docs/format.md.

Each reader runs in a process and an environment of its own (requirements.txt). A test fails where one reads more than
the table says, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpickpt.cli.main import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = ROOT / ".build" / "venv-readers" / "bin" / "python"
U = np.arange(36).reshape(6, 6) + 200
X = np.arange(6) / 2

ALL = ("h5py", "h5netcdf", "xarray_h5netcdf", "pytables")
NETCDF = ("netcdf4", "xarray_netcdf4")  # not with half precision: their process ends
EXPORTS = (*ALL, "pyfive", "kerchunk", "virtualizarr")
OWN = (*ALL, *NETCDF, "pyfive_in_memory", "kerchunk")  # those that read a rank's own array in a slot
NAMING = ("netcdf4", "h5netcdf", "xarray_netcdf4", "xarray_h5netcdf")


class Files(dict[str, Path]):
    """The files of one checkpoint by their kind."""

    half = False  # whether `u` is in half precision


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def read(reader: str, path: Path, *datasets: str) -> list[tuple[Any, Any]]:
    """Read datasets with a library; return the values of each, and what else the library tells of it."""
    done = run(PYTHON, HERE / "read.py", reader, path, *datasets)
    assert done.returncode == 0, done.stderr[-2000:]
    return [(values, more) for values, more in json.loads(done.stdout)]


@pytest.fixture(scope="session", params=["f8", "f2"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Make a slot, an archive, and exports of them, with `u` in double or in half precision."""
    folder = tmp_path_factory.mktemp(request.param)
    done = run("mpiexec", "-n", "2", sys.executable, HERE / "save.py", folder / "c", request.param)
    assert done.returncode == 0, done.stderr
    assert main(["archive", str(folder / "c"), "--compress", "--to", str(folder)]) == 0
    found = Files(slot=folder / "c" / "slot-0.h5", archive=folder / "epoch-3.h5")
    found.half = request.param == "f2"
    for name, source in (("h5", "slot"), ("nc", "slot"), ("slot.xdmf", "slot"), ("archive.xdmf", "archive")):
        found[name] = folder / f"plate.{name}"
        assert main(["export", str(found[source]), str(found[name])]) == 0
    return found


def skip_half(reader: str, files: Files) -> None:
    """Skip what would end the reader's process: docs/format.md says what to do instead."""
    if reader in NETCDF and files.half:
        pytest.skip("netCDF4 does not know half precision")


@pytest.mark.parametrize("reader", [*ALL, *NETCDF])
def test_global_arrays_are_read(reader: str, files: Files) -> None:
    skip_half(reader, files)
    for kind in ("slot", "archive"):
        names = ("global/u", "global/turned", "global/x")
        for name, expected, (values, more) in zip(names, (U, U, X), read(reader, files[kind], *names), strict=True):
            np.testing.assert_array_equal(values, expected)
            if reader in NAMING:
                assert more == (["x"] if name == "global/x" else ["y", "x"])
            elif reader == "pytables":
                assert more == [], "nothing in the file is unknown to it"
            else:
                assert more.startswith("1.14."), "a version of HDF5 older than the one that wrote"


@pytest.mark.parametrize("reader", OWN)
def test_what_is_not_virtual_is_read(reader: str, files: Files) -> None:
    skip_half(reader, files)
    (turned, _), (values, _) = read(reader, files["slot"], "ranks/00001/turned", "records")
    np.testing.assert_array_equal(turned, U[3:])
    records = np.array(values, np.uint8)
    assert records.shape == (2, 4096)
    assert [record[:8].tobytes() for record in records] == [b"MPKREC01"] * 2


@pytest.mark.parametrize("reader", [*EXPORTS, *NETCDF])
@pytest.mark.parametrize("kind", ["h5", "nc"])
def test_exports_are_read(reader: str, kind: str, files: Files) -> None:
    if kind == "h5":
        skip_half(reader, files)
    if (reader, kind) == ("pytables", "nc"):
        pytest.skip("PyTables does not know the references that are in all files of NetCDF with dimensions")
    dims = {"u": ["y", "x"], "turned": ["x", "y"], "x": ["x"]}
    for name, expected, (values, more) in zip(dims, (U, U.T, X), read(reader, files[kind], *dims), strict=True):
        np.testing.assert_array_equal(values, expected)
        assert more == dims[name] or reader not in (*NAMING, "virtualizarr")


def test_some_know_no_virtual_datasets(files: Files) -> None:
    for kind in ("slot", "archive"):
        for reader in ("pyfive", "pyfive_in_memory"):
            assert read(reader, files[kind], "global/u")[0][0] is None
        assert not np.any(read("kerchunk", files[kind], "global/u")[0][0]), "fill values, and no error"
        done = run(PYTHON, HERE / "read.py", "virtualizarr", files[kind], "global/u")
        assert done.returncode == 1 and "ValueError: Invalid range requested" in done.stderr


def test_pyfive_gives_wrong_values_by_the_path(files: Files) -> None:
    assert not np.array_equal(read("pyfive", files["slot"], "ranks/00001/turned")[0][0], U[3:])


@pytest.mark.parametrize("reader", ["vtk", "pyvista"])
@pytest.mark.parametrize("kind", ["slot.xdmf", "archive.xdmf"])
def test_viewers_open_the_xdmf_of_a_slot_and_of_an_archive(reader: str, kind: str, files: Files) -> None:
    for values, image in read(reader, files[kind], "u", "turned"):
        np.testing.assert_array_equal(values, U)
        assert image in ("vtkImageData", "ImageData")


@pytest.mark.skipif(not shutil.which("h5dump"), reason="h5dump is not installed")
def test_h5dump_reads_them(files: Files) -> None:
    for kind in ("slot", "archive"):
        done = run("h5dump", "-y", "-w", "0", "-d", "/global/u", files[kind])
        assert done.returncode == 0, done.stderr
        data = done.stdout.partition("DATA {")[2].partition("}")[0]
        assert [float(value) for value in data.split(",")] == U.ravel().tolist()


def has_hdf5r() -> bool:
    return bool(shutil.which("Rscript")) and run("Rscript", "-e", "library(hdf5r)").returncode == 0


@pytest.mark.skipif(not has_hdf5r(), reason="R's hdf5r is not installed")
def test_hdf5r_reads_them(files: Files) -> None:
    for kind in ("slot", "archive", "nc"):
        done = run("Rscript", HERE / "read.R", files[kind], "u" if kind == "nc" else "global/u")
        assert done.returncode == 0, done.stderr
        _, extents, values = done.stdout.splitlines()
        assert extents.split() == ["6", "6"]
        assert [float(value) for value in values.split()] == U.ravel().tolist()


def test_the_table_names_the_versions_that_ran() -> None:
    table = (ROOT / "docs" / "format.md").read_text().partition("## Who reads it")[2].partition("\n## ")[0].lower()
    for line in (HERE / "requirements.txt").read_text().lower().splitlines():
        name, _, version = line.partition("==")
        if version and name not in ("numpy", "zarr"):
            told = f"{name.replace('tables', 'pytables')} {version.partition('.post')[0]}"
            assert told in table, told
