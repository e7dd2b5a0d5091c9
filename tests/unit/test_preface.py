"""Damage in the structure of a slot is found before HDF5 opens it, by all code that reads slots.

Corrupt data never reach HDF5: a test fails if they would.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from make_epoch import rows, write_epoch
from prefaces import HEAD_BYTES, drop_preface, raw_ranges, renew_preface, room_of, structure_bytes

import mpickpt
import mpickpt.store
from mpickpt.cli.main import main
from mpickpt.errors import CorruptionError, EpochError, NothingToRestore, StoreError
from mpickpt.layout.arrays import ArraySpec, Layout, RankLayout
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, preface, read_slot, slot_path, spill_path

PACKAGE = Path(mpickpt.__file__).parent
DAMAGED = "The structure of {path} is not the one that it was created with: it is corrupt."


class Opened:
    """What HDF5 was asked to open; files that it must not see fail the test."""

    def __init__(self) -> None:
        self.forbidden: set[int] = set()
        self.count = 0
        self._open = h5py.h5f.open

    def __call__(self, name: bytes, *args: object, **options: object) -> h5py.h5f.FileID:
        inode = Path(os.fsdecode(name)).stat().st_ino
        assert inode not in self.forbidden, "HDF5 opens a corrupt file"
        self.count += 1
        return self._open(name, *args, **options)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    recorder = Opened()
    monkeypatch.setattr(h5py.h5f, "open", recorder)
    return recorder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "c", crc32c)


def save(directory: Path, steps: int = 25) -> None:
    """Run a program that saves epochs at the steps 10, 20, …; `u` holds the number of steps done."""
    with mpickpt.open(directory, every=10) as ckpt:
        u = ckpt.array("u", (6, 50_000), part=mpickpt.Part((6, 50_000), (0, 0)))
        _log = ckpt.object("log", ["x"])
        for _ in ckpt.range(steps):
            u += 1


def write(store: Store, index: int = 0, epoch: int = 5) -> Path:
    layout = rows(3, cols=40)
    arrays = [{s.name: np.ones(s.shape, s.dtype) for s in rank.arrays} for rank in layout.ranks]
    return write_epoch(store, index, layout, arrays, epoch=epoch)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x41]))


def harmless(path: Path) -> int:
    """Find a byte of the structure that HDF5 only hands on: one of the time at which the slot was created."""
    found = re.search(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", path.read_bytes())
    assert found
    return found.start() + 3


@pytest.mark.parametrize("kind", ["slot", "archive"])
def test_any_flipped_byte_of_the_structure_is_found_before_hdf5_reads_it(
    kind: str, store: Store, opened: Opened
) -> None:
    path = write(store)
    if kind == "archive":
        assert main(["archive", str(store.directory), "--compress"]) == 0
        path = store.directory / "epoch-5.h5"
    places = structure_bytes(path)
    content = path.read_bytes()
    told = [n for n in places if content[n]]
    assert len(told) > 1000
    assert {b"TREE", b"HEAP", b"OHDR"} & {content[n : n + 4] for n in told}, "HDF5's own, and nothing else"
    rng = np.random.default_rng(5)
    opened.forbidden = {path.stat().st_ino}
    for n in [places[0], places[-1], *rng.choice(told, 250).tolist(), *rng.choice(places, 50).tolist()]:
        flip(path, n)
        slot = read_slot(path, crc32c)
        assert slot.why_not == DAMAGED.format(path=path), n
        assert not slot.readable
        with pytest.raises(StoreError, match="is not the one that it was created with"):
            store.structure(path)
        flip(path, n)
    opened.forbidden = set()
    assert read_slot(path, crc32c).complete


def test_any_flipped_byte_of_the_preface_is_found(store: Store, opened: Opened) -> None:
    path = write(store)
    used = HEAD_BYTES + 16 * len(raw_ranges(path))
    opened.forbidden = {path.stat().st_ino}
    for n in range(used):
        flip(path, n)
        why_not = read_slot(path, crc32c).why_not
        assert "its preface is corrupt" in why_not or (n < 8 and "begins neither as a slot nor as an HDF5" in why_not)
        flip(path, n)
    opened.forbidden = set()
    assert read_slot(path, crc32c).complete


def test_what_the_preface_calls_raw_is_only_raw_data(store: Store) -> None:
    """Else the checksum would leave out what HDF5 reads. What it calls raw can all be overwritten."""
    path = write(store)
    before = store.structure(path)
    with path.open("r+b") as file:
        for start, stop in raw_ranges(path):
            file.seek(start)
            file.write(b"\xff" * (stop - start))
    assert store.structure(path) == before
    with h5py.File(path) as file:
        file.visititems(lambda name, item: dict(item.attrs))
        assert np.all(file["ranks/00002/scalar"][()] == -1)


def test_chunks_are_no_structure(store: Store) -> None:
    """An archive's chunks are found corrupt when they are read, as blocks; the structure stands without them."""
    layout = Layout((RankLayout((ArraySpec("u", (40, 20_000), np.dtype("f8")),)),))
    noise = np.random.default_rng(1).random((40, 20_000))
    write_epoch(store, 0, layout, [{"u": noise}], epoch=5)
    assert main(["archive", str(store.directory), "--compress"]) == 0
    path = store.directory / "epoch-5.h5"
    with h5py.File(path) as file:
        chunk = file["ranks/00000/u"].id.get_chunk_info(3)
    assert sum(stop - start for start, stop in raw_ranges(path)) > 0.9 * path.stat().st_size
    np.testing.assert_array_equal(Checkpoint(path).rank(0)["u"][...], noise)
    flip(path, chunk.byte_offset + chunk.size // 2)
    with pytest.raises(CorruptionError, match="rank 0, array 'u', block"):
        Checkpoint(path).rank(0)["u"][...]


@pytest.mark.parametrize("kind", ["structure", "preface", "end cut off"])
def test_every_way_to_read_a_slot_finds_it_first(
    kind: str, tmp_path: Path, opened: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "c"
    save(directory)
    bad = slot_path(directory, 1)
    shutil.copytree(directory, tmp_path / "good")
    if kind == "end cut off":
        os.truncate(bad, structure_bytes(bad)[-1])
        why = "it ends before its structure does"
    else:
        flip(bad, harmless(bad) if kind == "structure" else 40)
        why = "is not the one that it was created with" if kind == "structure" else "its preface is corrupt"
    opened.forbidden = {bad.stat().st_ino}
    for place, verb in [(directory, "ls"), (directory, "verify"), (bad, "verify"), (bad, "show")]:
        assert main([verb, str(place)]) != 0
        assert why in "".join(capsys.readouterr())
    good = str(tmp_path / "good")
    for command in (["diff", str(bad), good], ["export", str(bad), str(tmp_path / "o.h5")], ["archive", str(bad)]):
        assert main(command) == 1
        assert why in capsys.readouterr().err
    with pytest.raises(StoreError, match=why):
        Checkpoint(bad)
    with pytest.raises(EpochError, match=why):
        Checkpoint(directory, epoch=2)
    assert Checkpoint(directory).epoch == 1
    save(directory, steps=35)  # goes on from the older epoch, and makes the corrupt slot again
    assert f"restored epoch 1 (step 10) of {directory}" in (told := capsys.readouterr().err)
    assert why in told
    opened.forbidden = set()
    assert {slot.index: slot.step for slot in Store(directory, crc32c).slots()} == {0: 30, 1: 20}


def test_damage_in_all_slots_is_no_fresh_start(tmp_path: Path, opened: Opened) -> None:
    save(tmp_path)
    for index in (0, 1):
        flip(slot_path(tmp_path, index), harmless(slot_path(tmp_path, index)))
        opened.forbidden |= {slot_path(tmp_path, index).stat().st_ino}
    with pytest.raises(NothingToRestore, match="(?s)slot-0.h5.*it is corrupt.*slot-1.h5.*it is corrupt"):
        save(tmp_path)


def test_damage_that_comes_while_a_checkpoint_is_open(store: Store, opened: Opened) -> None:
    """An archive is opened again for each array; one that was found right is looked at again when it has changed."""
    write(store)
    assert main(["archive", str(store.directory), "--compress"]) == 0
    path = store.directory / "epoch-5.h5"
    os.utime(path, (time.time() - 60,) * 2)
    time.sleep(preface.QUIET_SECONDS + 0.1)  # so old that its state can be remembered
    ck = Checkpoint(path)
    ck.rank(2)["u"][...]
    assert str(path) in preface._checked
    flip(path, harmless(path))
    opened.forbidden = {path.stat().st_ino}
    with pytest.raises(StoreError, match="is not the one that it was created with"):
        ck.rank(2)["u"][...]


def test_an_open_checkpoint_notices_another_file_with_the_same_records(store: Store) -> None:
    """The layout is the same but for the room of the objects, so that arrays lie elsewhere and records do not."""
    path = write(store)
    ck = Checkpoint(store.directory)
    path.unlink()
    roomy = Layout(tuple(replace(rank, objects_room=1 << 20) for rank in rows(3, cols=40).ranks))
    arrays = [{s.name: np.ones(s.shape, s.dtype) for s in rank.arrays} for rank in roomy.ranks]
    write_epoch(store, 0, roomy, arrays, epoch=5)
    assert read_slot(path, crc32c).records.tobytes() == ck.slot.records.tobytes()
    with pytest.raises(EpochError, match="overwritten while it was read"):
        ck.check_unchanged()


def test_a_file_that_just_changed_is_not_remembered(store: Store) -> None:
    path = write(store)
    assert read_slot(path, crc32c).complete
    assert str(path) not in preface._checked


def test_one_door() -> None:
    """HDF5 opens files in one function, and only behind the check or on files that are being made."""
    calls: dict[str, set[str]] = {"h5f.open": set(), "opened_unchecked": set(), "h5py.File": set()}
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and (name := ast.unparse(call.func)) in calls:
                    if name != "h5py.File" or ast.unparse(call.args[0]) not in ("file", "skeleton.file"):
                        calls[name].add(f"{path.stem}.{function.name}")
    assert calls == {
        "h5f.open": {"structure.opened_unchecked"},
        "opened_unchecked": {
            "structure.opened",
            *("packed.open_packed", "packed.finish_packed"),
        },
        "h5py.File": {"export.write_hdf5"},  # another kind of file, which it makes
    }


def test_hdf5_programs_open_a_slot_with_its_preface(store: Store) -> None:
    path = write(store)
    with h5py.File(path) as file:
        assert file.userblock_size == room_of(path) == 4096
        assert file["global/u"].shape == (3, 40)
    assert h5py.is_hdf5(path)


@pytest.mark.parametrize("ranks", [1, 4, 60])
def test_the_preface_has_room_for_all_ranges(ranks: int, store: Store) -> None:
    store.create(0, rows(ranks))
    path = slot_path(store.directory, 0)
    room = room_of(path)
    assert room % 4096 == 0 and room & (room - 1) == 0
    assert HEAD_BYTES + 16 * len(raw_ranges(path)) <= room
    assert not any(path.read_bytes()[HEAD_BYTES + 16 * len(raw_ranges(path)) : room])


# -- other files -------------------------------------------------------------------------------------------------------


def test_a_slot_of_an_older_version_has_no_preface_and_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path)
    for index in (0, 1):
        drop_preface(slot_path(tmp_path, index))
        assert slot_path(tmp_path, index).read_bytes().startswith(b"\x89HDF")
    assert Checkpoint(tmp_path).verify() == []
    assert main(["archive", str(tmp_path)]) == 0
    assert Checkpoint(tmp_path / "epoch-2.h5").rank(0)["u"][0, 0] == 20
    save(tmp_path, steps=35)
    assert "restored epoch 2 (step 20)" in capsys.readouterr().err
    assert [slot.step for slot in Store(tmp_path, crc32c).slots()] == [30, 20]


def test_an_open_checkpoint_of_an_older_version_notices_that_it_was_overwritten(store: Store) -> None:
    drop_preface(write(store))
    ck = Checkpoint(store.directory)
    ck.rank(0)["scalar"][...]
    write(store, epoch=7)
    with pytest.raises(EpochError, match="overwritten while it was read"):
        ck.rank(0)["scalar"][...]


def test_the_preface_of_a_newer_version_is_refused(store: Store, opened: Opened) -> None:
    path = write(store)
    content = bytearray(path.read_bytes())
    content[8] = 3
    content[60:64] = crc32c(bytes(content[:60])).to_bytes(4, "little")
    path.write_bytes(content)
    opened.forbidden = {path.stat().st_ino}
    assert "it has format 3, written by a newer mpickpt; this one reads 2" in read_slot(path, crc32c).why_not


def test_a_structure_that_another_program_changed_is_refused(store: Store) -> None:
    path = write(store)
    with h5py.File(path, "r+") as file:
        file.attrs["remark"] = "mine"
    assert read_slot(path, crc32c).why_not == DAMAGED.format(path=path)
    renew_preface(path)
    assert read_slot(path, crc32c).complete


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket has to be short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.fixture(params=[fifo, listening, device, Path.mkdir], ids=["FIFO", "socket", "device", "folder"])
def put(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], object]]:
    yield request.param


@pytest.mark.timeout(60)
def test_what_is_no_file_is_refused_without_waiting(
    put: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path)
    names = ["slot-7.h5", "epoch-9.h5"]
    for name in names:
        put(tmp_path / name)
    word = {fifo: "it is a FIFO", listening: "socket", device: "device"}.get(put, "Is a directory")
    assert main(["ls", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    for name in names:
        assert re.search(rf"{name} cannot be read as a slot: [^.]*{word}", told), told
        assert main(["verify", str(tmp_path / name)]) != 0
        assert main(["show", str(tmp_path / name)]) != 0
        if put is not Path.mkdir:
            with pytest.raises(StoreError, match=word):
                Checkpoint(tmp_path / name)
    assert main(["verify", str(tmp_path)]) == 1
    assert main(["report", str(tmp_path), "--json", "-o", str(tmp_path / "r.json")]) == 0
    assert Checkpoint(tmp_path).epoch == 2
    capsys.readouterr()
    save(tmp_path)
    assert "restored epoch 2 (step 20)" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_a_fifo_in_the_place_of_a_spill_file_is_not_waited_for(store: Store) -> None:
    layout = rows(3)
    arrays = [{s.name: np.ones(s.shape, s.dtype) for s in rank.arrays} for rank in layout.ranks]
    big = [{"log": "x" * 100_000}] * 3
    path = write_epoch(store, 0, layout, arrays, epoch=5, objects=big)
    spill = spill_path(path, 1)
    spill.unlink()
    os.mkfifo(spill)
    assert main(["verify", str(path)]) == 1
    assert main(["archive", str(store.directory)]) != 0


@pytest.mark.timeout(60)
def test_the_native_core_opens_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slot-0.h5")
    with pytest.raises(OSError, match="Invalid argument"):
        mpickpt.snapshot.read_blocks(tmp_path / "slot-0.h5", 0, np.empty(9, np.uint8), 4096, np.zeros(1, np.uint32))
    with pytest.raises(OSError, match="Invalid argument"):
        mpickpt.snapshot.Loader(tmp_path / "slot-0.h5", 4096)
