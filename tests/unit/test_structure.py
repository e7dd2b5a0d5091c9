"""The HDF5 structure of slot files, as plain h5py and h5dump see it."""

from __future__ import annotations

import itertools
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from make_epoch import rows, spans, write_epoch
from numpy.typing import DTypeLike, NDArray

from mpickpt.errors import StoreError
from mpickpt.layout.arrays import PAGE_BYTES, RECORD, ArraySpec, Layout, Order, RankLayout, objects_room_for
from mpickpt.layout.parts import Part
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, read_structure, slot_path
from mpickpt.store.raw import Unplaced, give_places

STRUCT = np.dtype([("a", "i1"), ("b", "f8", (2,)), ("c", [("x", "c8"), ("y", "?")])], align=True)
ODD_DTYPES = ["f8", ">f4", "?", "c16", "c8", "i1", "f2", "longdouble", "S5", "U3", "V7", "M8[ns]", "m8[s]", STRUCT]


def odd_layout() -> Layout:
    big = ArraySpec("big", (3, 100_001), np.dtype("f4"), order="F")
    odd = [ArraySpec(f"odd{k}", (k,), np.dtype(kind)) for k, kind in enumerate(ODD_DTYPES)]
    return Layout((RankLayout((*odd, big)), RankLayout((), objects_room_for(100_000)), RankLayout((big, *odd[::-1]))))


def tracked_layout() -> Layout:
    """Room for messages in flight, of another size on each rank, and none on one."""
    u = ArraySpec("u", (3, 7), np.dtype("f8"))
    return Layout(tuple(RankLayout((u,) * (r % 2), channels_room=r * 5000) for r in range(4)))


def assert_same(read: NDArray[Any], made: NDArray[Any]) -> None:
    """Compare field by field: what lies between the fields is nobody's."""
    assert read.dtype == made.dtype
    for field in made.dtype.names or ():
        assert_same(read[field], made[field])
    if not made.dtype.names:
        assert read.tobytes() == made.tobytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, crc32c)


@pytest.mark.parametrize("layout", [rows(1), rows(6), rows(6, cols=1000, order="F"), odd_layout(), tracked_layout()])
def test_every_dataset_starts_on_a_page_of_its_own(store: Store, layout: Layout) -> None:
    store.create(0, layout)
    path = slot_path(store.directory, 0)
    found = spans(path)
    for start, _, name in found:
        assert start % PAGE_BYTES == 0, name
    for (start, nbytes, name), (after, _, other) in itertools.pairwise(found):
        assert start + nbytes <= after, f"{name} shares a page with {other}"
    last_start, last_bytes, _ = found[-1]
    assert path.stat().st_size % PAGE_BYTES == 0
    assert path.stat().st_size >= last_start + last_bytes
    assert path.stat().st_blocks * 512 >= path.stat().st_size  # the space is reserved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(store.directory.iterdir()) == [path]


def test_hdf5_keeps_nothing_of_its_own_in_the_pages_of_raw_data(store: Store) -> None:
    layout = odd_layout()
    store.create(0, layout)
    path = slot_path(store.directory, 0)
    raw = [(start, -(-(start + nbytes) // PAGE_BYTES) * PAGE_BYTES) for start, nbytes, _ in spans(path)]
    with path.open("r+b") as file:
        for start, stop in raw:
            file.seek(start)
            file.write(b"\xff" * (stop - start))
    assert read_structure(path, crc32c)[0].digest == layout.digest
    with h5py.File(path) as file:
        assert file["ranks/00000/odd0"].shape == (0,)
        assert np.all(file["records"][()] == 255)


def many_fields_layout() -> Layout:
    """Types whose headers go on elsewhere in the file."""
    kinds = [np.dtype([(f"field{k}", "f8") for k in range(count)]) for count in (10, 100, 1000)]
    return Layout(tuple(RankLayout(tuple(ArraySpec(f"a{len(k)}", (r + 1,), k) for k in kinds)) for r in range(2)))


@pytest.mark.parametrize("layout", [rows(6, cols=1000), odd_layout(), tracked_layout(), many_fields_layout()])
def test_hdf5_has_the_places_that_the_table_says(store: Store, layout: Layout) -> None:
    store.create(0, layout)
    places = store.offsets(0)
    with h5py.File(slot_path(store.directory, 0)) as file:

        def at(name: str) -> int:
            dataset = file[name]
            assert isinstance(dataset, h5py.Dataset)
            return (dataset.id.get_offset() or 0) if dataset.size else 0

        for number, (rank, place) in enumerate(zip(layout.ranks, places, strict=True)):
            group = f"ranks/{number:05d}/"
            assert [at(group + spec.name) for spec in rank.arrays] == list(place.arrays)
            assert at(f"checksums/{number:05d}") == place.first_checksum
            assert at(group + ".objects") == place.objects
            assert (at(group + ".channels") if rank.channels_room else 0) == place.channels
            assert at("records") == place.record - number * PAGE_BYTES


def test_the_next_slot_of_a_layout_has_the_structure_of_the_first(store: Store) -> None:
    """Unless that is corrupt, or another layout's."""
    layout, other = rows(6), rows(5)
    places = store.create(0, layout)
    first = slot_path(store.directory, 0)
    structure = first.read_bytes()[: places[0].record]
    assert store.create(1, layout) == places == store.offsets(1)
    assert slot_path(store.directory, 1).read_bytes()[: places[0].record] == structure
    assert slot_path(store.directory, 1).stat().st_size == first.stat().st_size
    assert store.create(2, other) == store.offsets(2) != places
    assert store.create(3, layout) == store.offsets(3) == places
    slot_path(store.directory, 3).write_bytes(slot_path(store.directory, 2).read_bytes())
    assert store.create(4, layout) == store.offsets(4) == places
    last = slot_path(store.directory, 4)
    content = bytearray(last.read_bytes())
    content[places[0].record - 100] ^= 1
    last.write_bytes(content)
    assert store.create(5, layout) == store.offsets(5) == places
    assert store.layout(5).digest == layout.digest


def test_the_structure_is_small(store: Store) -> None:
    names = [f"array{k}" for k in range(200)]
    specs = tuple(ArraySpec(name, (4, 16), np.dtype("f8")) for name in names)
    layout = Layout(tuple(RankLayout(specs) for _ in range(5)))
    store.create(0, layout)
    datasets = sum(len(rank.arrays) + 2 for rank in layout.ranks)
    assert store.offsets(0)[0].record <= 600 * datasets


@pytest.mark.parametrize("libver", ["v108", "earliest"])
def test_a_header_that_is_not_as_expected_is_refused(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w", libver=(libver, "v110")) as file:
        dataset = file.create_dataset("a", 100, "f8", chunks=(10,) if libver == "earliest" else None)
        header = h5py.h5o.get_info(dataset.id).addr
    before = path.read_bytes()
    with pytest.raises(StoreError, match="than mpickpt completes. Use h5py with HDF5"):
        give_places(path, 0, [(Unplaced(header, 800), 4096)], 8192)
    assert path.read_bytes() == before


@pytest.mark.parametrize("layout", [rows(1), rows(7), rows(4, order="F"), odd_layout(), tracked_layout()])
def test_layout_and_offsets_come_back(store: Store, layout: Layout) -> None:
    store.create(3, layout)
    back = store.layout(3)
    assert back.digest == layout.digest
    assert back.block_bytes == layout.block_bytes
    for made, read in zip(layout.ranks, back.ranks, strict=True):
        assert (read.objects_room, read.channels_room) == (made.objects_room, made.channels_room)
        assert [s.canonical() for s in read.arrays] == [s.canonical() for s in made.arrays]
    for rank, place in zip(layout.ranks, store.offsets(3), strict=True):
        assert (place.objects_room, place.channels_room) == (rank.objects_room, rank.channels_room)
        assert bool(place.channels) == bool(rank.channels_room)
        for spec, at, sums in zip(rank.arrays, place.arrays, place.checksums, strict=True):
            assert bool(at) == bool(sums) == bool(spec.nbytes)
    assert [p.record for p in store.offsets(3)] == [
        store.offsets(3)[0].record + PAGE_BYTES * r for r in range(len(layout.ranks))
    ]


def test_arrays_of_all_dtypes_read_as_themselves_in_plain_h5py(store: Store) -> None:
    rng = np.random.default_rng(1)
    specs = tuple(ArraySpec(f"odd{k}", (4, 2), np.dtype(kind)) for k, kind in enumerate(ODD_DTYPES))
    arrays = {}
    for spec in specs:
        raw = rng.integers(0, 2, spec.nbytes, dtype=np.uint8)  # 0 and 1 are values of every dtype
        arrays[spec.name] = raw.view(spec.dtype).reshape(spec.shape)
    path = write_epoch(store, 0, Layout((RankLayout(specs),)), [arrays])
    with h5py.File(path) as file:
        for spec in specs:
            read = file["ranks/00000"][spec.name][()]
            assert_same(read, arrays[spec.name])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", "?", "c16", STRUCT])
def test_global_array_is_put_together_from_ranks_in_any_order(store: Store, order: Order, dtype: DTypeLike) -> None:
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(2).integers(0, 2, 10 * 6 * dtype.itemsize, dtype=np.uint8)
    world = raw.view(dtype).reshape(10, 6)
    boxes = [(4, 3, 10, 6), (0, 0, 4, 3), (7, 1, 7, 3), (4, 0, 10, 3), (0, 3, 4, 6)]
    specs = [
        ArraySpec("u", (b - a + 2, d - c + 4), dtype, Part((10, 6), (a, c), np.s_[1:-1, 1:-3]), order)
        for a, c, b, d in boxes
    ]
    arrays = []
    for spec, (a, c, b, d) in zip(specs, boxes, strict=True):
        local = np.zeros(spec.shape, dtype)
        local[1:-1, 1:-3] = world[a:b, c:d]
        arrays.append({"u": local})
    path = write_epoch(store, 0, Layout(tuple(RankLayout((spec,)) for spec in specs)), arrays)
    with h5py.File(path) as file:
        read = file["global/u"][()]
        assert file["global/u"].is_virtual
    assert_same(read.T if order == "F" else read, world)


@pytest.mark.parametrize(
    ("shape", "parts"),
    [
        ((), [((), Part((), ()))]),
        ((0,), [((0,), Part((0,), (0,))), ((2,), Part((0,), (0,), np.s_[1:-1]))]),
        ((3, 0), [((3, 0), Part((3, 0), (0, 0)))]),
        ((1,), [((1,), Part((1,), (0,))), ((0,), Part((1,), (1,)))]),
    ],
)
def test_global_arrays_of_one_cell_or_none(
    store: Store, shape: tuple[int, ...], parts: list[tuple[tuple[int, ...], Part]]
) -> None:
    layout = Layout(tuple(RankLayout((ArraySpec("u", s, np.dtype("i8"), p),)) for s, p in parts))
    path = write_epoch(store, 0, layout, [{"u": np.full(s, 41)} for s, _ in parts])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["global/u"][()], np.full(shape, 41))
    assert store.layout(0).digest == layout.digest


def test_messages_in_flight_are_a_dataset_beside_the_arrays(store: Store) -> None:
    path = write_epoch(
        store, 0, tracked_layout(), [{"u": np.ones((3, 7))}] * 4, channels=[b"", b"to rank 1", b"x" * 10_000, b""]
    )
    with h5py.File(path) as file:
        assert list(file["ranks/00000"]) == [".objects"]
        assert sorted(file["ranks/00001"]) == [".channels", ".objects", "u"]
        assert file["ranks/00001/.channels"][:9].tobytes() == b"to rank 1"
        assert file["ranks/00002/.channels"][()].tobytes() == b"x" * 10_000
        assert np.frombuffer(file["records"][()], RECORD)["channels_bytes"].tolist() == [0, 9, 10_000, 0]
        assert file["checksums/00001"].shape == (1,)


@pytest.mark.skipif(not shutil.which("h5dump"), reason="h5dump is not installed")
def test_h5dump_reads_a_slot(store: Store) -> None:
    layout = rows(3)
    arrays = [{s.name: np.full(s.shape, 7 + r, s.dtype) for s in rank.arrays} for r, rank in enumerate(layout.ranks)]
    path = write_epoch(store, 0, layout, arrays)

    def h5dump(*args: str) -> str:
        return subprocess.run(
            ["h5dump", *args, str(path)], check=True, capture_output=True, text=True, timeout=150
        ).stdout

    assert "(2,0): 9, 9, 9" in h5dump("-d", "/global/u")
    assert "(1,0): 8, 8, 8" in h5dump("-d", "/ranks/00001/u")
    assert '"layout_digest"' in h5dump("-A")
    h5dump()
    store.create(1, odd_layout())
    path = slot_path(store.directory, 1)
    assert "odd13" in h5dump("-H")
    h5dump()


def test_creating_a_slot_for_a_thousand_ranks_takes_seconds(store: Store) -> None:
    part = [Part((1000, 8), (r, 0)) for r in range(1000)]
    names = ["u", "v", "w"]
    layout = Layout(
        tuple(RankLayout(tuple(ArraySpec(n, (1, 8), np.dtype("f8"), part[r]) for n in names)) for r in range(1000))
    )
    start = time.process_time()
    store.create(0, layout)
    created = time.process_time()
    assert store.layout(0).digest == layout.digest
    read = time.process_time()
    assert created - start < 15
    assert read - created < 15
    with h5py.File(slot_path(store.directory, 0)) as file:
        assert file["global/w"].shape == (1000, 8)
        assert len(file["global/w"].virtual_sources()) == 1000
