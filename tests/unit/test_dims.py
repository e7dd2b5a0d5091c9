"""Names of the axes of global arrays, in slots and archives, in exports, and as other readers see them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from make_epoch import write_epoch

import mpickpt
from mpickpt.cli.main import main
from mpickpt.errors import LayoutError
from mpickpt.layout.arrays import ArraySpec, Layout, RankLayout
from mpickpt.layout.parts import Part
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.reading.compare import compare
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, read_structure
from mpickpt.store.dimensions import name_dimensions

F8 = np.dtype("f8")
Y, X = 6, 5
U = np.arange(Y * X, dtype="f8").reshape(Y, X)


def rank(low: int, high: int, dims: tuple[str, ...] | None = ("y", "x")) -> RankLayout:
    """Return rows of `u` and columns of `ut`, which is in Fortran order; and `x`, the coordinates of a dimension."""
    swapped = dims and dims[::-1]
    cells = (0, X) if low == 0 else (X, X)
    return RankLayout(
        (
            ArraySpec("u", (high - low + 2, X), F8, Part((Y, X), (low, 0), np.s_[1:-1], dims)),
            ArraySpec("ut", (X, high - low), F8, Part((X, Y), (0, low), dims=swapped), "F"),
            ArraySpec("x", (cells[1] - cells[0],), F8, Part((X,), (cells[0],), dims=dims and ("x",))),
            ArraySpec("own", (3,), F8),
        )
    )


def layout(dims: tuple[str, ...] | None = ("y", "x")) -> Layout:
    return Layout((rank(0, 2, dims), rank(2, Y, dims)))


def write(folder: Path, made: Layout) -> Path:
    arrays = []
    for own in made.ranks:
        content = {spec.name: np.zeros(spec.shape, order=spec.order) for spec in own.arrays}
        u, ut = own.arrays[0].owned, own.arrays[1].owned
        content["u"][1:-1], content["ut"][...] = u.view(U), ut.view(U.T)
        content["x"][...] = np.arange(X)[own.arrays[2].owned.slices] / 2
        arrays.append(content)
    folder.mkdir(exist_ok=True)
    return write_epoch(Store(folder, crc32c), 0, made, arrays)


@pytest.mark.parametrize("dims", [("y", "x"), ["y", "x"]])
def test_names_are_kept_as_a_tuple(dims: tuple[str, ...]) -> None:
    assert Part((Y, X), (0, 0), dims=dims).dims == ("y", "x")
    assert Part((X,), (0,), dims="time").dims == ("time",)  # type: ignore[arg-type]
    assert Part((), (), dims=()).dims is None


@pytest.mark.parametrize(
    ("dims", "why"),
    [
        (("y",), r"The dims \('y',\) of a part name 1 axes, but its global shape \(6, 5\) has 2"),
        ((), "name 0 axes"),
        (("x", "x"), "must be different names"),
        (("y", "a/b"), "The name 'a/b' will not do"),
        (("y", 1), "The name 1 will not do"),
        (7, "must be a tuple of names, not 7"),
    ],
)
def test_other_names_are_refused(dims: tuple[str, ...], why: str) -> None:
    with pytest.raises(LayoutError, match=why):
        Part((Y, X), (0, 0), dims=dims)


def test_ranks_must_agree() -> None:
    for other in (None, ("x", "y")):
        with pytest.raises(
            LayoutError, match=r"dims of its part must be the same on all ranks, but is \('y', 'x'\) on r"
        ):
            Layout((rank(0, 2), rank(2, Y, other)))


def test_a_dimension_means_the_same_in_all_arrays() -> None:
    def one_rank(*arrays: tuple[str, tuple[int, ...], tuple[str, ...]]) -> Layout:
        return Layout((RankLayout(tuple(ArraySpec(n, s, F8, Part(s, (0,) * len(s), dims=d)) for n, s, d in arrays)),))

    with pytest.raises(LayoutError, match="The dimension 'x' has 5 cells in array 'u', but 6 in array 'v'"):
        one_rank(("u", (Y, X), ("y", "x")), ("v", (6,), ("x",)))
    with pytest.raises(
        LayoutError, match="The dimension 'x' of array 'u' has the name of an array that is not its coo"
    ):
        one_rank(("u", (Y, X), ("y", "x")), ("x", (Y, X), ("y", "z")))
    one_rank(("u", (Y, X), ("y", "x")), ("x", (X,), ("x",)), ("v", (X, 9), ("x", "z")))


@pytest.mark.parametrize("kind", ["slot", "archive"])
def test_names_come_back(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, layout())
    if kind == "archive":
        assert main(["archive", str(tmp_path), "--compress"]) == 0
        path = tmp_path / "epoch-1.h5"
    read, _ = read_structure(path, crc32c)
    assert read.digest == layout().digest != layout(None).digest
    checkpoint = Checkpoint(path)
    assert {name: info.dims for name, info in checkpoint.arrays.items()} == {
        "u": ("y", "x"), "ut": ("x", "y"), "x": ("x",), "own": None,
    }  # fmt: skip
    assert (checkpoint["ut"].dims, checkpoint.rank(0)["ut"].dims) == (("x", "y"), None)
    dataset = checkpoint.to_xarray()
    assert dataset.sizes == {"y": Y, "x": X}
    assert bool((dataset.u == dataset.ut).all()) and dataset.x[3] == 1.5


def test_other_readers_name_the_axes_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, layout())
    with xarray.open_dataset(path, group="global", engine="h5netcdf", phony_dims="sort") as dataset:
        assert (dataset.u.dims, dataset.ut.dims, dataset.x.dims) == (("y", "x"), ("y", "x"), ("x",))
        np.testing.assert_array_equal(dataset.u, U)
        np.testing.assert_array_equal(dataset.ut, U)
        assert dataset.u.sel(x=1.5).values.tolist() == U[:, 3].tolist()
    with h5py.File(path) as file:
        for array in ("u", "ut"):
            for axis, name in enumerate(("y", "x")):
                assert file["global"][array].dims[axis][0] == file["global"][name]
        assert file["global/y"].id.get_storage_size() == 0


def test_names_cost_nothing_on_the_ranks(tmp_path: Path) -> None:
    """What they add to a slot is in /global alone."""
    found: list[dict[str, list[str]]] = []
    for dims in (None, ("y", "x")):
        path = write(tmp_path / str(dims and 1), layout(dims))
        found.append({})
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found[-1].update({name: sorted(item.attrs)}))
    without, named = found
    assert {name: attrs for name, attrs in named.items() if not name.startswith("global")} == {
        name: attrs for name, attrs in without.items() if not name.startswith("global")
    }
    assert named.keys() - without.keys() == {"global/y"}


def test_names_of_many_arrays_take_little_room(tmp_path: Path) -> None:
    """HDF5's own function lists all arrays of a dimension again for each of them."""
    sizes = []
    for count in (500, 1000):
        path = tmp_path / f"{count}.h5"
        with h5py.File(path, "w", libver=("v108", "v110")) as file:
            for k in range(count):
                file.create_dataset(f"u{k}", (Y, X), "f8")
            before = file.id.get_filesize()
            name_dimensions(file, {f"u{k}": ("y", "x") for k in range(count)}, reverse=frozenset())
            file.flush()
            sizes.append(file.id.get_filesize() - before)
            assert file[f"u{count - 1}"].dims[1][0] == file["x"]
    assert sizes[1] < 2.2 * sizes[0] < 2.2 * 500 * 1500


def test_exports_name_the_axes(tmp_path: Path) -> None:
    write(tmp_path, layout())
    for name in ("w.h5", "w.nc"):
        assert main(["export", str(tmp_path), str(tmp_path / name)]) == 0
        with xarray.open_dataset(tmp_path / name, engine="h5netcdf") as dataset:
            assert (dataset.u.dims, dataset.ut.dims) == (("y", "x"), ("x", "y"))
            assert bool((dataset.u == dataset.ut).all()) and dataset.x[3] == 1.5
    assert main(["export", str(tmp_path), str(tmp_path / "r.nc"), "--rank", "1"]) == 0
    with xarray.open_dataset(tmp_path / "r.nc", engine="h5netcdf") as dataset:
        assert dataset.u.dims == ("u_0", "u_1"), "with halo cells the axes are others"


def test_netcdf_has_no_half_precision(tmp_path: Path) -> None:
    cells = np.array([1, 0.1, -np.inf, 6e-8], "f2")
    made = Layout((RankLayout((ArraySpec("h", (4,), np.dtype("f2"), Part((4,), (0,))),)),))
    write_epoch(Store(tmp_path, crc32c), 0, made, [{"h": cells}])
    assert main(["export", str(tmp_path), str(tmp_path / "h.nc")]) == 0
    with xarray.open_dataset(tmp_path / "h.nc", engine="h5netcdf") as dataset:
        assert dataset.h.dtype == "f4"
        np.testing.assert_array_equal(dataset.h, cells.astype("f4"))


def test_verbs_tell_the_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, layout())
    assert main(["show", str(tmp_path)]) == 0
    assert "ut: float64 (5, 6) (x, y), 240 B, on 2 ranks" in capsys.readouterr().out


def test_arrays_whose_axes_were_renamed_differ(tmp_path: Path) -> None:
    named, other, without = (
        Checkpoint(write(tmp_path / name, layout(dims)))
        for name, dims in (("named", ("y", "x")), ("other", ("lat", "x")), ("without", None))
    )
    found = {array.name: array.why for array in compare(named, other).arrays}
    assert found["u"] == "of dimensions ('y', 'x') here, ('lat', 'x') there"
    assert not found["x"]
    assert not compare(named, without).differs


def test_a_restart_takes_other_names_and_none(tmp_path: Path) -> None:
    for run, dims in enumerate((("y", "x"), None, ("a", "b"))):
        with mpickpt.open(tmp_path, every=1) as ckpt:
            u = ckpt.array("u", (Y, X), part=Part((Y, X), (0, 0), dims=dims))
            assert u[0, 0] == 2 * run
            for _ in ckpt.range(2 * run + 2):
                u += 1
            ckpt.save()
        assert Checkpoint(tmp_path)["u"].dims == dims
