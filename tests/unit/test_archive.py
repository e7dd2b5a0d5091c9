"""Archived epochs, comparison, export and pruning: on real slots, in every layout."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from make_epoch import rows, write_epoch
from mpi4py import MPI

import mpickpt
from mpickpt.cli.main import main
from mpickpt.errors import CorruptionError, EpochError
from mpickpt.layout.arrays import ArraySpec, Layout, Order, RankLayout
from mpickpt.layout.parts import Box, Part, boxes_of_run
from mpickpt.reading import archive as archive_module
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.reading.compare import compare
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, finish_packed, open_packed, slot_path, spill_path, spill_paths, write_packed_skeleton
from mpickpt.store.skeleton import _chunk


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "c", crc32c)


def make(
    store: Store, index: int = 0, epoch: int = 1, order: Order = "C", ranks: int = 3, channels: bool = True
) -> dict[str, np.ndarray[Any, Any]]:
    """Write an epoch of arrays of several kinds, with spilled objects and messages; gives the global arrays."""
    world = np.random.default_rng(epoch).integers(0, 9, (4 * ranks, 50_001)).astype("f8")
    odd = np.random.default_rng(epoch).integers(0, 256, 300_000 * 3, np.uint8).view("V3")
    layouts, arrays = [], []
    for r in range(ranks):
        part = Part(world.shape, (4 * r, 0), np.s_[1:-1])
        specs = (
            ArraySpec("u", (6, 50_001), np.dtype("f8"), part, order),
            ArraySpec("odd", odd.shape, odd.dtype),
            ArraySpec("when", (5,), np.dtype("M8[s]")),
            ArraySpec("scalar", (), np.dtype("i4")),
            ArraySpec("empty", (0, 5), np.dtype("c16")),
        )
        layouts.append(RankLayout(specs, channels_room=4096 if channels else 0))
        padded = np.pad(world, ((1, 1), (0, 0)), constant_values=-1)[4 * r : 4 * r + 6]
        own = {"u": padded, "odd": odd, "when": np.arange(5).astype("M8[s]"), "scalar": np.array(r, "i4")}
        arrays.append(own | {"empty": np.empty((0, 5), "c16")})
    messages = [b"", b"message" * 1000, b"message"][:ranks] if channels else []
    objects = [{"name": r, "filler": bytes(100_000 if r == 1 else 0)} for r in range(ranks)]
    write_epoch(
        store, index, Layout(tuple(layouts)), arrays, epoch=epoch, step=10 * epoch, objects=objects, channels=messages
    )
    return {"u": world}


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return not compare(one, other).differs


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compress", [False, True])
def test_an_archived_epoch_is_the_epoch(store: Store, compress: bool, order: Order) -> None:
    world = make(store, epoch=4, order=order)["u"]
    assert main(["archive", str(store.directory), *(["--compress"] if compress else [])]) == 0
    path = store.directory / "epoch-4.h5"
    assert path.stat().st_mode & 0o777 == 0o600
    slot = Checkpoint(slot_path(store.directory, 0))
    archived = Checkpoint(path)
    assert (archived.epoch, archived.step, archived.slot.packed) == (4, 40, compress)
    assert same(slot, archived)
    assert same(archived, slot)
    for rank in range(3):
        assert archived.objects(rank) == slot.objects(rank)
        assert archived.images[rank].read_channels() == slot.images[rank].read_channels()
    slot.path.unlink()
    for spill in spill_paths(slot.path):
        spill.unlink()
    assert archived.verify() == []
    np.testing.assert_array_equal(archived["u"][3:9:2, ::-5], world[3:9:2, ::-5])
    assert len(spill_paths(path)) == (0 if compress else 2)
    with h5py.File(path) as file:
        found = file["global/u"][...]
        np.testing.assert_array_equal(found.T if order == "F" else found, world)
        assert (file["ranks/00000/u"].compression == "gzip") == compress
    if compress:
        assert path.stat().st_size < slot.nbytes / 2


def test_damage_in_a_compressed_archive_is_found(store: Store) -> None:
    make(store, epoch=4)
    assert main(["archive", str(store.directory), "--compress"]) == 0
    path = store.directory / "epoch-4.h5"
    with h5py.File(path) as file:
        chunk = file["ranks/00001/u"].id.get_chunk_info(2)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 0x40
    path.write_bytes(raw)
    damage = Checkpoint(path).verify()
    assert {(found.rank, found.array) for found in damage} == {(1, "u")}
    assert damage[0].block is not None


def test_a_damaged_block_is_not_packed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    make(store)
    path = slot_path(store.directory, 0)
    with path.open("r+b") as file:
        file.seek(store.offsets(0)[2].arrays[0] + 5)
        file.write(b"damage")
    assert main(["archive", str(store.directory), "--compress"]) == 1
    assert "rank 2, array 'u', block 0: wrong checksum" in capsys.readouterr().err
    assert sorted(p.name for p in store.directory.glob("epoch*")) == []


@pytest.mark.parametrize("compress", [False, True])
def test_a_slot_that_is_overwritten_meanwhile_is_not_archived(
    store: Store, compress: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next epoch is written into the slot while it is copied."""
    make(store, epoch=4)
    module = archive_module if compress else mpickpt.store.archive
    name = "_pack" if compress else "_clone_or_copy"
    copy = getattr(module, name)

    def overwrite(*arguments: Any) -> object:  # noqa: ANN401
        result = copy(*arguments)
        make(store, epoch=6)
        return result

    monkeypatch.setattr(module, name, overwrite)
    assert main(["archive", str(store.directory), *(["--compress"] if compress else [])]) == 1
    assert "Epoch 4 in" in (told := capsys.readouterr().err)
    assert "was overwritten while it was read" in told
    assert not list(store.directory.glob("epoch-*"))


def test_restart_from_archived_epochs(tmp_path: Path) -> None:
    program = (
        "import sys, mpickpt\n"
        "with mpickpt.open('c', every=2, restart=sys.argv[1] if sys.argv[1] == 'auto' else int(sys.argv[1])) as ckpt:\n"
        "    u = ckpt.array('u', 1000, fill=0.0)\n"
        "    print(ckpt.restored and ckpt.restored.epoch, u[0])\n"
        "    for step in ckpt.range(int(sys.argv[2])):\n"
        "        u += 1\n"
    )
    (tmp_path / "app.py").write_text(program)

    def run(*arguments: str) -> str:
        command = [sys.executable, "app.py", *arguments]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150)
        assert found.returncode == 0, found.stderr
        return found.stdout

    run("auto", "3")
    assert main(["archive", str(tmp_path / "c")]) == 0
    run("auto", "5")
    assert main(["archive", str(tmp_path / "c"), "--compress"]) == 0
    run("auto", "11")
    assert Checkpoint(tmp_path / "c").epochs == (1, 2, 4, 5)
    assert run("1", "1") == "1 2.0\n"
    assert run("2", "1") == "2 4.0\n"
    for slot in (tmp_path / "c").glob("slot-*"):
        slot.unlink()
    assert run("auto", "7") == "2 4.0\n"
    assert Checkpoint(tmp_path / "c").epochs == (1, 2, 3)


# -- diff --------------------------------------------------------------------------------------------------------------


def test_differences_are_named(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(tuple(RankLayout((ArraySpec("u", (3, 40_000), np.dtype("f8")),)) for _ in range(2)))
    one = np.zeros((3, 40_000))
    other = one.copy()
    other[2, 7], other[2, 9], other[0, 0] = 5.0, -0.0, np.nan
    write_epoch(store, 0, layout, [{"u": one}, {"u": one}], epoch=1)
    write_epoch(store, 1, layout, [{"u": one}, {"u": other}], epoch=2, objects=[{}, {"x": 1}])
    found = compare(Checkpoint(store.directory, 1), Checkpoint(store.directory, 2))
    (u,) = found.arrays
    assert (u.blocks, u.differing_blocks, u.cells, u.nans) == (8, 2, 3, 1)
    assert (u.largest, u.rank, u.cell) == (5.0, 1, (2, 7))
    assert (found.objects, found.channels) == ([1], [])
    assert main(["diff", f"{store.directory}:1", f"{store.directory}:2"]) == 1
    text = capsys.readouterr().out
    assert "u: differs in 2 of 8 blocks, 3 cells, by 5 at most, on rank 1 at [2, 7], 1 cell NaN on one side" in text
    assert "objects: differ, as they are pickled, on rank 1\n" in text
    assert main(["diff", f"{store.directory}:1", f"{store.directory}:1"]) == 0
    assert capsys.readouterr().out.endswith("u: the same (8 blocks)\nall is the same\n")


@pytest.mark.parametrize(
    ("dtype", "one", "other", "largest", "nans"),
    [
        ("u1", 3, 250, 247.0, 0),
        ("i8", -(2**63), 2**63 - 1, float(2**64 - 1), 0),
        ("?", False, True, 1.0, 0),
        ("f4", 1.5, -1.5, 3.0, 0),
        ("f8", np.inf, 1.0, np.inf, 0),
        ("f8", np.inf, -np.inf, np.inf, 0),
        ("f8", np.nan, 1.0, 0.0, 1),
        ("f8", 0.0, -0.0, 0.0, 0),
        ("c16", 3j, 4.0, 5.0, 0),
        ("M8[s]", 0, 1, None, 0),
        ("V3", b"abc", b"abd", None, 0),
    ],
)
def test_largest_difference(store: Store, dtype: str, one: Any, other: Any, largest: Any, nans: int) -> None:  # noqa: ANN401
    layout = Layout((RankLayout((ArraySpec("u", (5,), np.dtype(dtype)),)),))
    for index, value in enumerate((one, other)):
        array = np.zeros(5, dtype)
        array[3] = value
        write_epoch(store, index, layout, [{"u": array}], epoch=index + 1)
    (u,) = compare(Checkpoint(store.directory, 1), Checkpoint(store.directory, 2)).arrays
    assert (u.cells, u.differing_blocks, u.largest, u.nans, u.cell) == (1, 1, largest, nans, (3,))


def test_two_nan_do_not_differ_by_anything(store: Store) -> None:
    layout = Layout((RankLayout((ArraySpec("u", (2,), np.dtype("f8")),)),))
    for index, bits in enumerate((0x7FF8000000000000, 0x7FF8000000000001)):
        write_epoch(store, index, layout, [{"u": np.array([bits, 0], "u8").view("f8")}], epoch=index + 1)
    (u,) = compare(Checkpoint(store.directory, 1), Checkpoint(store.directory, 2)).arrays
    assert (u.cells, u.largest, u.nans) == (1, 0.0, 0)


@pytest.mark.parametrize("order", ["C", "F"])
def test_other_ranks_hold_the_same_array(store: Store, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpickpt.reading.compare.PIECE_BYTES", 40)
    world = np.arange(60.0).reshape(12, 5)

    def write(index: int, cuts: list[int], values: np.ndarray[Any, Any]) -> None:
        specs, arrays = [], []
        for lo, hi in zip(cuts, cuts[1:], strict=False):
            part = Part(world.shape, (lo, 0), np.s_[1:-1])
            specs.append(RankLayout((ArraySpec("u", (hi - lo + 2, 5), np.dtype("f8"), part, order),)))
            arrays.append({"u": np.pad(values, ((1, 1), (0, 0)), constant_values=index)[lo : hi + 2]})
        write_epoch(store, index, Layout(tuple(specs)), arrays, epoch=index + 1)

    write(0, [0, 4, 12], world)
    write(1, [0, 3, 7, 12], world)
    changed = world.copy()
    changed[9, 2] += 0.25
    write(2, [0, 5, 9, 12], changed)
    checkpoints = [Checkpoint(store.directory, epoch) for epoch in (1, 2, 3)]
    assert not compare(checkpoints[0], checkpoints[1]).arrays[0].differs
    (u,) = compare(checkpoints[0], checkpoints[2]).arrays
    assert (u.cells, u.largest, u.rank, u.cell) == (1, 0.25, 1, (6, 2))
    assert "ranks" in compare(checkpoints[0], checkpoints[2]).why_not_objects


def test_what_cannot_be_compared_is_said(store: Store) -> None:
    for index, (name, dtype, shape) in enumerate((("u", "f8", 5), ("u", "f4", 5), ("u", "f8", 6), ("v", "f8", 5))):
        layout = Layout((RankLayout((ArraySpec(name, (shape,), np.dtype(dtype)),)),))
        write_epoch(store, index, layout, [{name: np.zeros(shape, dtype)}], epoch=index + 1)
    first = Checkpoint(store.directory, 1)
    whys = [[a.why for a in compare(first, Checkpoint(store.directory, e)).arrays] for e in (2, 3, 4)]
    assert whys[:2] == [["float64 here, float32 there"], ["of other shapes, or on other ranks"]]
    assert [why.partition(" /")[0] for why in whys[2]] == ["only in", "only in"]


# -- export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
def test_export(store: Store, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpickpt.reading.array.PIECE_BYTES", 100_000)
    world = make(store, epoch=4, order=order)["u"]
    place = str(store.directory)
    assert main(["export", place, str(tmp_path / "u.npy"), "--array", "u"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "u.npy", mmap_mode="r"), world)
    assert main(["export", place, str(tmp_path / "r.npy"), "--array", "u", "--rank", "2"]) == 0
    loaded = np.load(tmp_path / "r.npy")
    assert loaded.flags.f_contiguous == (order == "F")
    np.testing.assert_array_equal(loaded[1:-1], world[8:])
    assert main(["export", place, str(tmp_path / "w.h5")]) == 0
    with h5py.File(tmp_path / "w.h5") as file:
        assert (file.attrs["epoch"], list(file), file["u"].compression) == (4, ["u"], "gzip")
        np.testing.assert_array_equal(file["u"][...], world)
    assert main(["export", place, str(tmp_path / "w.h5"), "--array", "u", "--array", "u", "--force"]) == 0
    assert main(["export", place, str(tmp_path / "r.h5"), "--rank", "1"]) == 0
    with h5py.File(tmp_path / "r.h5") as file:
        assert set(file) == {"u", "odd", "when", "scalar", "empty"}
        np.testing.assert_array_equal(file["when"][...], np.arange(5).astype("M8[s]"))
        assert (file["scalar"][()], file["empty"].shape) == (1, (0, 5))
    assert main(["export", place, str(tmp_path / "w.nc")]) == 0
    with xarray.open_dataset(tmp_path / "w.nc", engine="h5netcdf") as dataset:
        np.testing.assert_array_equal(dataset["u"].values, world)


def test_export_says_what_it_cannot_do(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(store)
    (tmp_path / "there.h5").touch()
    for given, told in (
        (["x.txt"], "does not tell a format"),
        (["x.npy", "--rank", "1"], "holds one array; choose one of u, odd"),
        (["there.h5"], "there.h5 exists"),
        (["x.h5", "--array", "odd"], "There is no global array 'odd' in "),
        (["x.h5", "--array", "odd"], "slot-0.h5, but on rank"),
        (["x.h5", "--array", "v", "--rank", "1"], "There is no array 'v' on rank 1"),
        (["x.h5", "--rank", "9"], "There is no rank 9"),
        (["x.nc", "--array", "odd", "--rank", "1"], "NetCDF has no type for array 'odd'"),
        (["no/x.h5"], "cannot be written"),
    ):
        assert main(["export", str(store.directory), str(tmp_path / given[0]), *given[1:]]) == 2
        assert told in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "there.h5"]
    assert main(["export", str(store.directory), str(tmp_path / "there.h5"), "--force"]) == 0
    slot = next(store.directory.glob("slot-*.h5"))
    assert main(["export", str(store.directory), str(slot), "--force"]) == 2
    assert "is a slot or an archived epoch, which is never overwritten" in capsys.readouterr().err
    assert Checkpoint(slot).verify() == []


# -- prune -------------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_complete_epochs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    make(store, 0, epoch=7)
    make(store, 1, epoch=8)
    (store.directory / "slot-2.h5").write_bytes(b"nonsense")
    for epoch in ("7", "8"):
        assert main(["archive", f"{store.directory}:{epoch}"]) == 0
    make(store, 0, epoch=9)
    before = sorted(p.name for p in store.directory.iterdir())
    capsys.readouterr()
    assert main(["prune", str(store.directory), "--keep", "2", "--dry-run"]) == 0
    assert "would delete epoch-7.h5, epoch 7\nkeeps epochs 8-9" in capsys.readouterr().out
    assert sorted(p.name for p in store.directory.iterdir()) == before
    assert main(["prune", str(store.directory), "--keep", "2"]) == 0
    assert Checkpoint(store.directory).epochs == (8, 9)
    assert not list(store.directory.glob("epoch-7*"))
    assert spill_path(store.directory / "epoch-8.h5", 1).exists()
    assert main(["prune", str(store.directory), "--keep", "1"]) == 0
    assert Checkpoint(store.directory).epochs == (9,)
    assert sorted(p.name for p in store.directory.glob("slot-?.h5")) == ["slot-0.h5", "slot-2.h5"]
    assert not spill_paths(store.directory / "slot-1.h5")
    capsys.readouterr()
    assert main(["prune", str(store.directory), "--keep", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": [], "kept": [9], "bytes": 0, "dry_run": False}


def test_prune_leaves_a_running_program_its_slots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mpickpt.open(tmp_path / "c", every=1) as ckpt:
        _u = ckpt.array("u", 100)
        for step in ckpt.range(8):
            if step == 2:
                wait_for(tmp_path / "c", 1)
                assert main(["archive", str(tmp_path / "c")]) == 0
        wait_for(tmp_path / "c", 7)
        capsys.readouterr()
        assert main(["prune", str(tmp_path / "c"), "--keep", "1"]) == 2
        assert "is in use by process" in (told := capsys.readouterr().err)
        assert "Nothing is deleted" in told
        assert main(["prune", str(tmp_path / "c"), "--keep", "2"]) == 0
        assert not list((tmp_path / "c").glob("epoch-*"))


def wait_for(directory: Path, epoch: int) -> None:
    """Wait until an epoch, or a later one, is complete; commits need no safe point."""
    limit = time.monotonic() + 20
    while not any((slot.epoch or 0) >= epoch for slot in Store(directory, crc32c).slots()):
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_no_program_may_begin_while_slots_are_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make(store, 0, epoch=7)
    make(store, 1, epoch=8)
    seen = []
    remove = Store.remove

    def look(self: Store, path: Path) -> None:
        with pytest.raises(mpickpt.InUseError):
            mpickpt.open(store.directory, MPI.COMM_SELF)
        seen.append(path.name)
        remove(self, path)

    monkeypatch.setattr(Store, "remove", look)
    assert main(["prune", str(store.directory), "--keep", "1"]) == 0
    assert seen == ["slot-0.h5"]


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4), (1, 5, 1)])
def test_runs_of_cells_as_boxes(shape: tuple[int, ...]) -> None:
    cells = np.arange(int(np.prod(shape))).reshape(shape)
    for first in range(cells.size + 1):
        for end in range(first, cells.size + 1):
            boxes: list[Box] = list(boxes_of_run(shape, first, end))
            found = [int(n) for box in boxes for n in cells[box.slices].reshape(-1)]
            assert found == list(range(first, end))
            assert len(boxes) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize("shape", [(1000, 1000), (3, 5, 70_000), (10_000_000,), (2, 2, 2)])
def test_a_chunk_is_one_stretch(shape: tuple[int, ...]) -> None:
    chunk = _chunk(shape, 8)
    axis = next((k for k, n in enumerate(chunk) if n > 1), len(shape) - 1)
    assert chunk[axis + 1 :] == shape[axis + 1 :]
    assert 8 * int(np.prod(chunk)) <= 256 * 1024
    assert 16 * int(np.prod(chunk)) > 256 * 1024 or chunk == shape or chunk[axis] in (shape[axis], 1, 6, 32)


def test_packed_arrays_read_any_bytes(tmp_path: Path) -> None:
    layout = rows(3, cols=40_000, halo=1)
    path = tmp_path / "epoch-1.h5"
    write_packed_skeleton(path, layout)
    data = np.random.default_rng(0).integers(0, 256, layout.ranks[2].arrays[0].nbytes, np.uint8)
    with open_packed(path, 2, "u", None) as write:
        assert write(0, data)
    finish_packed(path, crc32c)
    with open_packed(path, 2, "u", crc32c) as read:
        for start, count in ((0, data.size), (1, 7), (320_000 - 3, 6), (262_144, 262_144), (data.size - 1, 1)):
            out = np.zeros(count, np.uint8)
            assert read(start, out)
            np.testing.assert_array_equal(out, data[start : start + count])


def test_errors_are_those_of_the_reader(store: Store) -> None:
    make(store)
    one, other = Checkpoint(store.directory), Checkpoint(store.directory)
    make(store, epoch=3)
    with pytest.raises(EpochError, match="overwritten"):
        compare(one, other)
    path = slot_path(store.directory, 0)
    with path.open("r+b") as file:
        file.seek(store.offsets(0)[1].arrays[1])
        file.write(b"damage")
    with pytest.raises(CorruptionError, match="rank 1, array 'odd', block 0"):
        compare(Checkpoint(store.directory), Checkpoint(store.directory))
