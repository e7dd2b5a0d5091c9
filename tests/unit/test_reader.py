"""Reading checkpoints without MPI, and assembling global arrays from other ranks' parts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_epoch import record, write_epoch
from sampling import examples

from mpickpt.errors import CorruptionError, EpochError, LayoutError, StoreError, UsageError
from mpickpt.layout.arrays import PAGE_BYTES, ArraySpec, Layout, Order, RankLayout, RecordState
from mpickpt.layout.parts import Part
from mpickpt.reading import image as image_module
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.reading.image import gather, images_of
from mpickpt.restart.sources import check_share, read_own
from mpickpt.snapshot import Snapshotter, crc32c
from mpickpt.store import Store, read_slot, read_structure, slot_path, spill_path, write_skeleton

COLS = 40_000  # one row of float64 is more than a block of 256 KiB


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, crc32c)


def example(store: Store, index: int = 0, epoch: int = 3, ranks: int = 3, order: Order = "C") -> dict[str, Any]:
    """Write an epoch of a global array in rows with halo, an array of its own for each rank, and objects."""
    world = np.random.default_rng(epoch).random((2 * ranks, COLS))
    padded = np.pad(world, ((1, 1), (0, 0)), constant_values=-1)
    arrays, layouts = [], []
    for r in range(ranks):
        part = Part(world.shape, (2 * r, 0), np.s_[1:-1])
        specs = (ArraySpec("u", (4, COLS), np.dtype("f8"), part, order), ArraySpec("own", (r,), np.dtype("i4")))
        layouts.append(RankLayout(specs))
        arrays.append({"u": padded[2 * r : 2 * r + 4], "own": np.arange(r, dtype="i4")})
    objects = [{"name": f"rank {r}", "filler": bytes(200_000 if r == 1 else 0)} for r in range(ranks)]
    layout = Layout(tuple(layouts))
    path = write_epoch(store, index, layout, arrays, epoch=epoch, step=10 * epoch, objects=objects)
    return {"world": world, "arrays": arrays, "path": path, "layout": layout}


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_checkpoint_reads_as_it_was_written(store: Store, order: Order) -> None:
    made = example(store, order=order)
    for path in (store.directory, str(store.directory), made["path"]):
        ck = Checkpoint(path)
        assert (ck.epoch, ck.epochs, ck.step, ck.world_size, ck.path) == (3, (3,), 30, 3, made["path"])
    assert list(ck.arrays) == ["u", "own"]
    assert (ck.arrays["u"].shape, ck.arrays["u"].dtype, ck.arrays["u"].ranks) == ((6, COLS), np.dtype("f8"), (0, 1, 2))
    assert ck.arrays["own"].shape is None
    assert (list(ck), ck.keys(), "u" in ck, "own" in ck, 3 in ck) == (["u"], ["u"], True, False, False)
    for rank in range(3):
        assert list(ck.rank(rank)) == ["u", "own"]
        assert len(ck.rank(rank)) == 2
        for name, array in ck.rank(rank).items():
            np.testing.assert_array_equal(array[...], made["arrays"][rank][name])
            array[...][...] = 0  # an array of the reader's own
        assert ck.objects(rank)["name"] == f"rank {rank}"
    np.testing.assert_array_equal(ck["u"], made["world"])
    assert ck.verify() == []
    assert "epoch 3, step 30, 3 ranks" in repr(ck)


def test_the_newest_complete_epoch_is_chosen_or_the_one_asked_for(store: Store) -> None:
    example(store, 0, epoch=8)
    other = example(store, 1, epoch=7, ranks=2)
    example(store, 2, epoch=9)
    flip(slot_path(store.directory, 2), store.offsets(2)[0].record + 100)
    ck = Checkpoint(store.directory)
    assert (ck.epoch, ck.epochs) == (8, (7, 8))
    old = Checkpoint(store.directory, epoch=7)
    np.testing.assert_array_equal(old["u"], other["world"])
    with pytest.raises(EpochError, match="no epoch 9 .*epoch 7 is complete.*slot-2.h5: The record of rank 0 is c"):
        Checkpoint(store.directory, epoch=9)
    with pytest.raises(EpochError, match="no complete epoch .*The record of rank 0 is corrupt"):
        Checkpoint(slot_path(store.directory, 2))


def test_what_is_not_there(store: Store) -> None:
    with pytest.raises(EpochError, match="It holds no slots"):
        Checkpoint(store.directory)
    with pytest.raises(StoreError, match="There is no checkpoint directory or slot file"):
        Checkpoint(store.directory / "nothing")
    (store.directory / "text.h5").write_text("hello")
    with pytest.raises(StoreError, match="cannot be read as a slot"):
        Checkpoint(store.directory / "text.h5")
    example(store)
    ck = Checkpoint(store.directory)
    with pytest.raises(KeyError, match="no array 'v', only u, own"):
        ck["v"]
    with pytest.raises(KeyError, match=r"'own' has no part: .* but ranks? .*; see rank\(\d\)\['own'\]"):
        ck["own"]
    with pytest.raises(KeyError, match="rank 1 has no array 'v'. Rank 1 has: "):
        ck.rank(1)["v"]
    for rank in (-1, 3):
        with pytest.raises(UsageError, match="only 0 to 2"):
            ck.rank(rank)


def test_damaged_blocks_are_named(store: Store) -> None:
    made = example(store)
    block_bytes = made["layout"].block_bytes
    at = store.offsets(0)[1].arrays[0]
    flip(made["path"], at + 3 * block_bytes + 17)
    flip(made["path"], store.offsets(0)[2].objects + 5)
    ck = Checkpoint(store.directory)
    with pytest.raises(CorruptionError, match=r"Epoch 3 in .*slot-0.h5 .* rank 1, array 'u', block 3: wrong") as caught:
        ck.rank(1)["u"][...]
    error = caught.value
    assert (error.rank, error.array, error.block, error.epoch, error.path) == (1, "u", 3, 3, made["path"])
    with pytest.raises(CorruptionError, match="rank 1, array 'u', block 3"):
        ck["u"][...]
    np.testing.assert_array_equal(ck.rank(0)["u"], made["arrays"][0]["u"])
    with pytest.raises(CorruptionError, match="rank 2, objects in slot-0.h5: wrong checksum"):
        ck.objects(2)
    assert [str(d) for d in ck.verify()] == [
        "rank 1, array 'u', block 3: wrong checksum",
        "rank 2, objects in slot-0.h5: wrong checksum",
    ]


def test_a_damaged_checksum_counts_as_damage(store: Store) -> None:
    made = example(store)
    flip(made["path"], store.offsets(0)[0].checksums[0] + 4 * 2)
    assert [(d.rank, d.array, d.block) for d in Checkpoint(store.directory).verify()] == [(0, "u", 2)]


def test_a_slot_cut_off_after_it_was_opened(store: Store) -> None:
    made = example(store)
    ck = Checkpoint(store.directory)
    image = ck.images[2]
    os.truncate(made["path"], image.offsets.arrays[0] + 100)
    (damage,) = image.read_array(0, np.empty(4 * COLS * 8, np.uint8))
    assert str(damage) == "rank 2, array 'u': the file ends within its checksums"
    assert "the file ends too early" in str(image.read_objects()[1][0])
    with pytest.raises(CorruptionError, match="the file ends within its checksums"):
        ck.rank(2)["u"][...]


def test_spilled_objects_and_their_damage(store: Store) -> None:
    made = example(store)
    spill = spill_path(made["path"], 1)
    assert spill.exists()
    ck = Checkpoint(store.directory)
    assert len(ck.objects(1)["filler"]) == 200_000
    flip(spill, 1000)
    with pytest.raises(CorruptionError, match="rank 1, objects in slot-0.objects-00001: wrong checksum"):
        ck.objects(1)
    os.truncate(spill, 1000)
    assert [str(d) for d in ck.verify()] == ["rank 1, objects in slot-0.objects-00001: the file ends too early"]
    spill.unlink()
    with pytest.raises(CorruptionError, match="rank 1, objects in slot-0.objects-00001: the file is missing"):
        ck.objects(1)


def in_flight(store: Store) -> Path:
    """Write an epoch whose ranks have messages in flight: none, some that fit into their room, and some that do not."""
    u = ArraySpec("u", (500,), np.dtype("f8"))
    layout = Layout(tuple(RankLayout((u,), channels_room=PAGE_BYTES) for _ in range(3)))
    return write_epoch(store, 0, layout, [{"u": np.arange(500.0)}] * 3, channels=MESSAGES)


MESSAGES = [b"", b"for rank 1" * 1000, b"for rank 2" * 100]


def test_messages_in_flight_read_as_they_were_written(store: Store) -> None:
    path = in_flight(store)
    assert spill_path(path, 1, "channels").name == "slot-0.channels-00001"
    ck = Checkpoint(store.directory)
    assert [image.read_channels() for image in ck.images] == [(message, []) for message in MESSAGES]
    assert ck.verify() == []


@pytest.mark.parametrize(
    ("spilled", "spoil", "what"),
    [
        (False, lambda path, at: flip(path, at + 999), "wrong checksum"),
        (False, lambda path, at: os.truncate(path, at + 999), "the file ends too early"),
        (True, lambda path, _: flip(path, 7), "wrong checksum"),
        (True, lambda path, _: os.truncate(path, 9999), "the file ends too early"),
        (True, lambda path, _: path.unlink(), "the file is missing"),
    ],
)
def test_damaged_messages_are_found_wherever_an_epoch_is_checked(
    store: Store, spilled: bool, spoil: Callable[[Path, int], object], what: str
) -> None:
    path = in_flight(store)
    ck = Checkpoint(store.directory)
    image = ck.images[1 if spilled else 2]
    where = spill_path(path, 1, "channels") if spilled else path
    spoil(where, image.offsets.channels)
    assert image.read_objects()[1] == []
    (damage,) = image.read_channels()[1]
    assert (damage.array, damage.block, damage.payload) == (None, None, "channels")
    assert str(damage) == f"rank {image.rank}, channels in {where.name}: {what}"
    _, told = read_own(image, Snapshotter(), direct=True)
    assert told == [str(damage)]
    assert [line for part in range(2) for line in check_share(ck.images, part, 2, True)] == [str(damage)]
    if spilled or "checksum" in what:  # otherwise it is no slot any more
        assert ck.verify() == [damage]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
@pytest.mark.parametrize("spilled", [False, True])
def test_objects_of_another_user_are_not_unpickled(store: Store, spilled: bool) -> None:
    made = example(store)
    rank = int(spilled)
    os.chown(spill_path(made["path"], 1) if spilled else made["path"], 12345, 12345)
    ck = Checkpoint(store.directory)
    assert ck.verify() == []
    np.testing.assert_array_equal(ck["u"], made["world"])
    with pytest.raises(StoreError, match="belongs to another user .12345.: its objects are not unpickled"):
        ck.objects(rank)


def test_objects_that_cannot_be_unpickled(store: Store) -> None:
    made = example(store)
    payload = b"\x80\x04cnowhere\nNothing\n."
    place = store.offsets(0)[0]
    with made["path"].open("r+b") as file:
        file.seek(place.objects)
        file.write(payload)
        file.seek(place.record)
        file.write(
            record(
                state=RecordState.COMPLETE, rank=0, epoch=3, step=30, run=7, digest=made["layout"].digest,
                objects_bytes=len(payload), objects_crc=crc32c(payload),
            )
        )  # fmt: skip
    ck = Checkpoint(store.directory)
    assert ck.verify() == []
    with pytest.raises(StoreError, match="rank 0 in epoch 3 cannot be unpickled.*nowhere"):
        ck.objects(0)


def test_an_epoch_that_is_overwritten_meanwhile_is_not_mixed(store: Store) -> None:
    example(store, epoch=3)
    ck = Checkpoint(store.directory)
    example(store, epoch=5)
    for read in (lambda: ck["u"][...], lambda: ck.rank(0)["u"][0], lambda: ck.objects(0), ck.verify):
        with pytest.raises(EpochError, match="Epoch 3 in .* was overwritten"):
            read()
    assert Checkpoint(store.directory).epoch == 5


def test_reading_needs_no_mpi(store: Store) -> None:
    made = example(store)
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from mpickpt.reading.checkpoint import Checkpoint\n"
        "print(Checkpoint(sys.argv[1])['u'][...].sum().hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(store.directory)], capture_output=True, text=True, timeout=150, check=True
    )
    assert run.stdout.strip() == made["world"].sum().hex()


def cuts(draw: st.DrawFn, n: int) -> list[int]:
    return [0, *sorted(draw(st.lists(st.integers(0, n), max_size=2))), n]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], list[tuple[ArraySpec, Any]], list[tuple[ArraySpec, Any]]]:
    """Draw a global array, and what each rank shows of it in one grid of ranks with halo and in another."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from([np.dtype("f8"), np.dtype("u1"), np.dtype([("a", "u1"), ("b", "f8")])]))
    world = np.zeros(shape, dtype)
    flat = world.reshape(-1)
    if dtype.names:
        flat["a"], flat["b"] = np.arange(flat.size) % 251, np.arange(flat.size)
    else:
        flat[:] = np.arange(flat.size) % 251 + 1
    return world, decompose(draw, world), decompose(draw, world)


def decompose(draw: st.DrawFn, world: np.ndarray[Any, Any]) -> list[tuple[ArraySpec, Any]]:
    halo = draw(st.integers(0, 2))
    order = draw(st.sampled_from(["C", "F"]))
    padded = np.pad(world, halo)
    axes = [cuts(draw, n) for n in world.shape]
    found = []
    for where in np.ndindex(*[len(c) - 1 for c in axes]):
        own = [(c[k], c[k + 1]) for c, k in zip(axes, where, strict=True)]
        shown = padded[tuple(slice(lo, hi + 2 * halo) for lo, hi in own)]
        local = tuple(slice(halo, halo + hi - lo) for lo, hi in own)
        part = Part(world.shape, tuple(lo for lo, _ in own), local)
        found.append((ArraySpec("u", shown.shape, world.dtype, part, order), shown))
    ranks = draw(st.permutations(found))
    return list(ranks)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(case=worlds())
def test_any_ranks_arrays_come_from_any_other_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[np.ndarray[Any, Any], list[tuple[ArraySpec, Any]], list[tuple[ArraySpec, Any]]],
) -> None:
    world, old, new = case
    store = Store(tmp_path_factory.mktemp("gather"), crc32c)
    layout = Layout(tuple(RankLayout((spec,)) for spec, _ in old))
    path = write_epoch(store, 0, layout, [{"u": shown} for _, shown in old])
    images = images_of(path, layout, store.offsets(0), read_slot(path, crc32c).records)
    for spec, shown in new:
        assert spec.part is not None
        out = np.full(spec.shape, 99, np.uint8).astype(world.dtype)
        untouched = out.copy()
        gather(layout, images, spec, out)
        inside = spec.part.wanted(spec.shape)[1].slices
        np.testing.assert_array_equal(out[inside], shown[inside])
        out[inside] = untouched[inside]
        np.testing.assert_array_equal(out, untouched)
    if 0 not in world.shape:
        np.testing.assert_array_equal(Checkpoint(store.directory)["u"], world)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("piece_bytes", [32 << 20, PAGE_BYTES])
def test_large_arrays_in_pieces(store: Store, order: Order, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 3 bytes a cell that straddle blocks, cut in columns of columns of columns."""
    monkeypatch.setattr(image_module, "PIECE_BYTES", piece_bytes)
    dtype = np.dtype("V3")
    world = np.random.default_rng(5).integers(0, 256, 90 * 70 * 190 * 3, np.uint8).view(dtype).reshape(90, 70, 190)
    specs = [ArraySpec("u", (90, 35, 190), dtype, Part(world.shape, (0, 35 * r, 0)), order) for r in range(2)]
    layout = Layout(tuple(RankLayout((spec,)) for spec in specs), PAGE_BYTES)
    path = write_epoch(store, 0, layout, [{"u": world[:, :35]}, {"u": world[:, 35:]}])
    images = images_of(path, layout, store.offsets(0), read_slot(path, crc32c).records)
    for box in (np.s_[3:80, 30:40, 17:100], np.s_[88:90, :, 189:190], np.s_[:, 34:36, :]):
        wanted = world[box]
        start = tuple(s.indices(n)[0] for s, n in zip(box, world.shape, strict=True))
        out = np.zeros(wanted.shape, dtype)
        gather(layout, images, ArraySpec("u", wanted.shape, dtype, Part(world.shape, start)), out)
        assert out.tobytes() == wanted.tobytes()


def test_only_blocks_that_hold_wanted_cells_are_read(store: Store) -> None:
    made = example(store)
    layout, offsets = read_structure(made["path"], crc32c)
    images = images_of(made["path"], layout, offsets, read_slot(made["path"], crc32c).records)
    row_bytes = COLS * 8

    def wanted(rows: slice, cols: slice) -> None:
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        part = Part((6, COLS), (rows.start, cols.start))
        out = np.empty(shape)
        gather(layout, images, ArraySpec("u", shape, np.dtype("f8"), part), out)
        np.testing.assert_array_equal(out, made["world"][rows, cols])

    # Local row 2 of rank 1, global row 3, lies in the blocks 2 and 3: bytes 640,000 to 960,000 of 262,144 each.
    flip(made["path"], offsets[1].arrays[0] + 2 * row_bytes + row_bytes - 1)
    wanted(slice(0, 3), slice(0, COLS))
    wanted(slice(4, 6), slice(0, COLS))
    wanted(slice(2, 4), slice(0, 18_000))
    with pytest.raises(CorruptionError, match="rank 1, array 'u', block 3"):
        wanted(slice(2, 4), slice(0, 20_000))
    with pytest.raises(CorruptionError, match="rank 1, array 'u', block 3"):
        wanted(slice(3, 4), slice(COLS - 1, COLS))


def test_gather_refuses_what_is_not_the_same_global_array(store: Store) -> None:
    made = example(store)
    images = Checkpoint(store.directory).images
    f8 = np.dtype("f8")
    for spec, why in (
        (ArraySpec("v", (6, COLS), f8, Part((6, COLS), (0, 0))), "no global array 'v'"),
        (ArraySpec("own", (6,), np.dtype("i4"), Part((6,), (0,))), "no global array 'own'"),
        (ArraySpec("u", (6, COLS), f8), "of global shape None here"),
        (ArraySpec("u", (6, 5), f8, Part((6, 5), (0, 0))), r"global shape \(6, 5\) here, but the epoch holds float64"),
        (ArraySpec("u", (6, COLS), np.dtype("f4"), Part((6, COLS), (0, 0))), "is float32"),
    ):
        with pytest.raises(LayoutError, match=why):
            gather(made["layout"], images, spec, np.empty(spec.shape, spec.dtype))


# -- indexing ----------------------------------------------------------------------------------------------------------


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:  # noqa: ANN401
    items: list[Any] = []
    for extent in shape[: draw(st.integers(0, len(shape)))]:
        step = draw(st.sampled_from([None, 1, 2, 3, -1, -2]))
        ends = st.one_of(st.none(), st.integers(-extent - 2, extent + 2))
        if extent and draw(st.booleans()):
            items.append(draw(st.integers(-extent, extent - 1)))
        else:
            items.append(slice(draw(ends), draw(ends), step))
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ...)
    if ... in items and items.index(...) < len(items) - 1:  # what follows it belongs to the last axes
        items = items[: items.index(...) + 1]
    return tuple(items)


@settings(deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), case=worlds())
def test_indexing_is_that_of_numpy(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    case: tuple[np.ndarray[Any, Any], list[tuple[ArraySpec, Any]], list[tuple[ArraySpec, Any]]],
) -> None:
    world, parts, _ = case
    store = Store(tmp_path_factory.mktemp("index"), crc32c)
    layout = Layout(tuple(RankLayout((spec,)) for spec, _ in parts))
    write_epoch(store, 0, layout, [{"u": shown} for _, shown in parts])
    ck = Checkpoint(store.directory)
    for stored, expected in ((ck["u"], world), (ck.rank(0)["u"], parts[0][1])):
        index = data.draw(indices(stored.shape))
        found, wanted = stored[index], expected[index]
        assert type(found) is type(wanted)
        np.testing.assert_array_equal(found, wanted)
        assert sum(cells.size for _, cells in stored.pieces(16)) == expected.size
        again = np.zeros_like(expected)
        for where, cells in stored.pieces(16):
            again[where] = cells
        np.testing.assert_array_equal(again, expected)


def test_what_is_no_index(store: Store) -> None:
    example(store)
    u = Checkpoint(store.directory)["u"]
    for index in (6, -7, (0, COLS), (0, 0, 0), (..., ...), "x", 1.5, True, None, [1, 2], np.array([True])):
        with pytest.raises(IndexError):
            u[index]
    assert (len(u), u.ndim, u.size, u.nbytes) == (6, 2, 6 * COLS, 48 * COLS)
    with pytest.raises(ValueError, match="without reading"):
        u.__array__(copy=False)  # as np.asarray(u, copy=False) calls it, from numpy 2 on
    assert np.asarray(u, dtype="f4").dtype == np.float32


def test_indexing_reads_only_the_blocks_that_it_needs(store: Store) -> None:
    made = example(store)
    flip(made["path"], store.offsets(0)[1].arrays[0] + 3 * made["layout"].block_bytes)  # local row 2: global row 3
    u = Checkpoint(store.directory)["u"]
    np.testing.assert_array_equal(u[::2], made["world"][::2])
    np.testing.assert_array_equal(u[4::-2, ::-7], made["world"][4::-2, ::-7])
    assert u[3, 0] == made["world"][3, 0]
    for index in (3, np.s_[1::2], np.s_[:, -1]):
        with pytest.raises(CorruptionError, match="rank 1, array 'u', block 3"):
            u[index]


def test_strided_reading_needs_little_memory(tmp_path: Path) -> None:
    """One cell a row of 3 GiB of rows that are there but were never written: read in a process of its own."""
    rows, cols = 3 << 10, 1 << 17
    spec = ArraySpec("u", (rows, cols), np.dtype("f8"), Part((rows, cols), (0, 0)))
    layout = Layout((RankLayout((spec,)),))
    store = Store(tmp_path, crc32c)
    path = write_sparse(store, layout)
    code = (
        "import sys, mpickpt\n"
        "u = mpickpt.Checkpoint(sys.argv[1])['u']\n"
        "assert u[::64, 5].sum() == 0\n"
        "print(*(x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 150_000  # KiB


def write_sparse(store: Store, layout: Layout) -> Path:
    """Write an epoch of zeros whose arrays are holes in the file."""
    store.directory.mkdir(exist_ok=True)
    path = slot_path(store.directory, 0)
    write_skeleton(path, layout, crc32c)
    (place,) = store.offsets(0)
    zero = crc32c(bytes(layout.block_bytes))
    (spec,) = layout.ranks[0].arrays
    with path.open("r+b") as file:
        file.seek(place.checksums[0])
        file.write(np.full(spec.nbytes // layout.block_bytes, zero, "<u4").tobytes())
        file.seek(place.record)
        file.write(record(state=RecordState.COMPLETE, rank=0, epoch=1, step=1, run=7, digest=layout.digest))
    return path


def test_damage_names_bytes_and_cells(store: Store) -> None:
    for index, order in enumerate(("C", "F")):
        made = example(store, index, epoch=index + 1, order=order)
        flip(made["path"], store.offsets(index)[1].arrays[0] + made["layout"].block_bytes + 9)
        (damage,) = Checkpoint(made["path"]).verify()
        assert damage.bytes == (262_144, 524_287)
        cells = ((0, 32_768), (1, 25_535)) if order == "C" else ((0, 8_192), (3, 16_383))
        assert damage.cells == cells


def test_a_checkpoint_shows_itself_in_a_notebook(store: Store) -> None:
    example(store)
    ck = Checkpoint(store.directory)
    assert "<td>u</td><td>float64</td><td>(6, 40000)</td><td>3 of 3</td>" in ck._repr_html_()
    assert "<td>own</td><td>int32</td><td>(1,)</td>" in ck.rank(1)._repr_html_()
    assert repr(ck["u"]) == "<u: float64 (6, 40000)>"
    assert "(6, 40000)" in ck["u"]._repr_html_()
    assert repr(ck.rank(1)) == "<rank 1: <u: float64 (4, 40000)>, <own: int32 (1,)>>"


def test_xarray_reads_when_it_computes(store: Store) -> None:
    made = example(store)
    flip(made["path"], store.offsets(0)[1].arrays[0] + 3 * made["layout"].block_bytes)
    dataset = Checkpoint(store.directory).to_xarray()
    assert dict(dataset.sizes) == {"u_0": 6, "u_1": COLS}
    assert (dataset.attrs["epoch"], dataset.attrs["step"]) == (3, 30)
    rows = dataset["u"][[0, 4], 1:3]  # fancy in xarray, plain for the file
    np.testing.assert_array_equal(rows, made["world"][[0, 4], 1:3])
    assert float(dataset["u"][0].sum()) == pytest.approx(made["world"][0].sum())
    with pytest.raises(CorruptionError):
        dataset["u"][3].load()
