"""Layouts, parts and the arithmetic of boxes, against plain numpy indexing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from mpickpt import errors
from mpickpt.errors import LayoutError
from mpickpt.layout.arrays import (
    BLOCK_BYTES,
    MAX_BLOCKS,
    MIN_OBJECTS_ROOM,
    PAGE_BYTES,
    RECORD,
    ArraySpec,
    Layout,
    RankLayout,
    block_bytes_for,
    blocks_in,
    dtype_from_text,
    dtype_to_text,
    objects_room_for,
)
from mpickpt.layout.names import check_name
from mpickpt.layout.parts import Box, Index, Part

F8 = np.dtype("f8")


def grid(shape: tuple[int, ...], cuts: list[list[int]], halo: int) -> list[tuple[tuple[int, ...], Part]]:
    """Local shapes and parts of a grid of ranks with `halo` cells on every side."""
    ranges = [list(pairwise([0, *sorted(c), n])) for c, n in zip(cuts, shape, strict=True)]
    mesh = np.array(np.meshgrid(*[range(len(r)) for r in ranges], indexing="ij")).reshape(len(shape), -1).T
    found = []
    for where in mesh:
        own = [r[i] for r, i in zip(ranges, where, strict=True)]
        local = tuple(slice(halo, halo + hi - lo) for lo, hi in own)
        part = Part(shape, tuple(lo for lo, _ in own), local)
        found.append((tuple(hi - lo + 2 * halo for lo, hi in own), part))
    return found


@st.composite
def decompositions(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], Part]], int]:
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    cuts = [draw(st.lists(st.integers(0, n), max_size=3)) for n in shape]
    halo = draw(st.integers(0, 2))
    return shape, grid(shape, cuts, halo), halo


def layout_of(decomposition: list[tuple[tuple[int, ...], Part]]) -> Layout:
    return Layout.of(RankLayout((ArraySpec("u", shape, F8, part),)) for shape, part in decomposition)


@given(decompositions())
def test_parts_of_a_grid_tile_and_show_what_numpy_shows(
    case: tuple[tuple[int, ...], list[tuple[tuple[int, ...], Part]], int],
) -> None:
    shape, parts, halo = case
    layout_of(parts)
    world = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    padded = np.pad(world, halo, constant_values=-1)
    for local_shape, part in parts:
        there, here = part.wanted(local_shape)
        mine = np.full(local_shape, -1)
        mine[here.slices] = world[there.slices]
        start = part.start
        whole = tuple(slice(lo, lo + n) for lo, n in zip(start, local_shape, strict=True))
        np.testing.assert_array_equal(mine, padded[whole])
        np.testing.assert_array_equal(mine[part.local_box(local_shape).slices], world[part.box(local_shape).slices])


@given(decompositions(), st.data())
def test_sources_find_every_cell_once(
    case: tuple[tuple[int, ...], list[tuple[tuple[int, ...], Part]], int], data: st.DataObject
) -> None:
    shape, parts, _ = case
    lo = tuple(data.draw(st.integers(0, n)) for n in shape)
    hi = tuple(data.draw(st.integers(a, n)) for a, n in zip(lo, shape, strict=True))
    count = np.zeros(shape, int)
    layout = layout_of(parts)
    for rank, box in layout.sources("u", Box(lo, hi)):
        count[box.slices] += 1
        spec = dict(layout.having("u")).get(rank)
        assert spec is not None
        assert box.intersection(spec.owned) == box
    expected = np.zeros(shape, int)
    expected[Box(lo, hi).slices] = 1
    np.testing.assert_array_equal(count, expected)


@given(decompositions(), st.data())
def test_a_missing_or_doubled_rank_is_found(
    case: tuple[tuple[int, ...], list[tuple[tuple[int, ...], Part]], int], data: st.DataObject
) -> None:
    _, parts, _ = case
    solid = [k for k, (shape, part) in enumerate(parts) if part.box(shape).size]
    if not solid:
        return
    k = data.draw(st.sampled_from(solid))
    with pytest.raises(LayoutError, match=f"ranks {k} and {len(parts)} (overlap|both)"):
        layout_of([*parts, parts[k]])
    if len(parts) > 1:
        with pytest.raises(LayoutError, match="no rank's part holds"):
            layout_of(parts[:k] + parts[k + 1 :])


@st.composite
def box_pairs(draw: st.DrawFn) -> tuple[Box, Box]:
    n = draw(st.integers(1, 3))
    ends = [sorted(draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))) for _ in range(2 * n)]
    one, two = ends[:n], ends[n:]
    return (
        Box(tuple(a for a, _ in one), tuple(b for _, b in one)),
        Box(tuple(a for a, _ in two), tuple(b for _, b in two)),
    )


@given(box_pairs())
def test_boxes_are_sets_of_cells(pair: tuple[Box, Box]) -> None:
    a, b = pair
    cells = np.zeros((2, *(6,) * len(a.start)), bool)
    cells[0][a.slices] = True
    cells[1][b.slices] = True
    both = np.zeros(cells.shape[1:], bool)
    both[a.intersection(b).slices] = True
    np.testing.assert_array_equal(both, cells[0] & cells[1])
    assert a.intersection(b).size == both.sum()
    rest = np.zeros(both.shape, int)
    for piece in a.without(b):
        rest[piece.slices] += 1
    np.testing.assert_array_equal(rest, cells[0] & ~cells[1])


@pytest.mark.parametrize(
    ("local", "box"),
    [
        (..., Box((0, 0), (5, 7))),
        (np.s_[1:-1], Box((1, 0), (4, 7))),
        (np.s_[1:-1, :], Box((1, 0), (4, 7))),
        (np.s_[..., 2:], Box((0, 2), (5, 7))),
        (np.s_[1:-1, 1:-1], Box((1, 1), (4, 6))),
        (np.s_[4:2], Box((4, 0), (4, 7))),
    ],
)
def test_local_index_follows_numpy(local: Index, box: Box) -> None:
    assert Part((10, 10), (0, 0), local).local_box((5, 7)) == box
    assert np.empty((5, 7))[local].shape == box.extent


@pytest.mark.parametrize(
    ("shape", "start", "local", "local_shape", "message"),
    [
        ((10,), (0, 0), ..., (5,), "2 axes"),
        ((10,), (-1,), ..., (5,), "negative"),
        ((10.5,), (0,), ..., (5,), "integer"),
        ((10,), (0,), 3, (5,), "slices"),
        ((10,), (0,), np.s_[::2], (5,), "step 1"),
        ((10,), (0,), np.s_[::-1], (5,), "step 1"),
        ((10,), (0,), np.s_[:, :], (5,), "2 axes"),
        ((10,), (0,), np.s_[..., ...], (5,), "at most one"),
        ((10,), (0,), None, (5,), "slices"),
        ((10,), (6,), ..., (5,), "reaches to 11 along axis 0"),
        ((10,), (0,), ..., (5, 5), "1 axes"),
    ],
)
def test_parts_that_cannot_be(shape: object, start: object, local: object, local_shape: object, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Part(shape, start, local).box(local_shape)


def test_part_of_one_axis_takes_plain_numbers() -> None:
    assert Part(10, 3, np.s_[1:-1]) == Part((10,), (3,), (slice(1, -1),))  # type: ignore[arg-type]
    assert hash(Part((10,), (3,))) == hash(Part((10,), (3,)))


@pytest.mark.parametrize("name", ["u", "u_1", "2nd", "a.b-c", "_x"])
def test_good_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", ".objects", "-x", "a/b", "a b", "ü", "u\n", 7, None])
def test_bad_names(name: object) -> None:
    with pytest.raises(LayoutError, match="will not do"):
        check_name(name)


DTYPES = [
    "f8", ">f4", "?", "c16", "i1", "f2", "S5", "U3", "V7", "M8[ns]", "m8[s]", "longdouble",
    np.dtype([("a", "i4"), ("b", "f8", (2, 3))]),
    np.dtype([("a", "i1"), ("b", "f8")], align=True),
    np.dtype([("in", [("x", "f4"), ("y", "?")]), ("n", "u2")]),
    np.dtype({"names": ["a", "b"], "formats": ["i2", "f4"], "offsets": [3, 8], "itemsize": 20}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_survive_as_text(dtype: DTypeLike) -> None:
    dtype = np.dtype(dtype)
    assert dtype_from_text(dtype_to_text(dtype)) == dtype


@pytest.mark.parametrize("dtype", ["O", "S0", np.dtype([("a", "O")]), np.dtype([])], ids=str)
def test_dtypes_that_are_not_plain_bytes(dtype: DTypeLike) -> None:
    with pytest.raises(LayoutError, match="Array 'u'"):
        ArraySpec("u", (1,), np.dtype(dtype))


@given(st.text(max_size=20))
def test_text_that_is_no_dtype(text: str) -> None:
    with contextlib.suppress(ValueError):  # anything else would reach whoever opens a strange file
        assert isinstance(dtype_from_text(text), np.dtype)


def digest(
    *arrays: ArraySpec,
    ranks: int = 1,
    room: int = MIN_OBJECTS_ROOM,
    channels_room: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> bytes:
    return Layout((RankLayout(arrays, room, channels_room),) * ranks, block_bytes).digest


def test_digest_changes_with_all_that_matters() -> None:
    u = ArraySpec("u", (4, 5), F8)
    part = Part((4, 7), (0, 0), np.s_[:, 1:])
    digests = [
        digest(u),
        digest(u, ranks=2),
        digest(u, block_bytes=2 * BLOCK_BYTES),
        digest(ArraySpec("v", (4, 5), F8)),
        digest(ArraySpec("u", (5, 4), F8)),
        digest(ArraySpec("u", (4, 5), F8, order="F")),
        digest(ArraySpec("u", (4, 5), np.dtype("i8"))),
        digest(ArraySpec("u", (4, 5), np.dtype(">f8"))),
        digest(ArraySpec("u", (4, 7), F8, Part((4, 7), (0, 0)))),
        digest(ArraySpec("u", (4, 8), F8, part)),
        digest(u, ArraySpec("v", (4, 5), F8)),
        digest(ArraySpec("v", (4, 5), F8), u),
        digest(u, channels_room=PAGE_BYTES),
        digest(u, ranks=2, channels_room=PAGE_BYTES),
        Layout((RankLayout((u,)), RankLayout((u,), channels_room=PAGE_BYTES))).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert {len(d) for d in digests} == {32}


def test_digest_ignores_how_a_part_is_written_and_the_room() -> None:
    u = ArraySpec("u", (6,), F8, Part((4,), (0,), np.s_[1:-1]))
    same = ArraySpec("u", (6,), np.dtype("float64"), Part((4,), (0,), np.s_[1:5]))
    assert digest(u) == digest(same) == digest(u, room=2 * MIN_OBJECTS_ROOM)
    assert digest(u, channels_room=PAGE_BYTES) == digest(u, channels_room=5 * PAGE_BYTES)


def test_digest_of_a_layout_without_messages_is_what_it_was_before_there_were_any() -> None:
    old = json.dumps(["mpickpt layout 1", BLOCK_BYTES, [[["u", [4, 5], "'<f8'", "C", None]]]])
    assert digest(ArraySpec("u", (4, 5), F8)) == hashlib.sha256(old.encode()).digest()


def test_ranks_must_agree_on_a_global_array() -> None:
    def both(**other: object) -> None:
        kept = {"dtype": F8, "part": Part((8, 2), (4, 0)), "order": "C"} | other
        first = ArraySpec("u", (4, 2), F8, Part((8, 2), (0, 0)))
        Layout((RankLayout((first,)), RankLayout((ArraySpec("u", (4, 2), **kept),))))

    both()
    for other, message in (
        ({"dtype": np.dtype("f4")}, "dtype .* float64 on rank 0 and float32 on rank 1"),
        ({"part": Part((9, 2), (4, 0))}, "global shape"),
        ({"order": "F"}, "order"),
        ({"part": None}, "rank 1 gives none"),
    ):
        with pytest.raises(LayoutError, match=message):
            both(**other)


def test_two_arrays_of_one_name() -> None:
    u = ArraySpec("u", (4,), F8)
    with pytest.raises(LayoutError, match="'u' is used for more than one"):
        RankLayout((u, u))


def test_a_thousand_ranks_are_checked_quickly_and_the_clash_is_found() -> None:
    parts = [((10, 40), Part((320, 40 * 32), (10 * i, 40 * j))) for i in range(32) for j in range(32)]
    layout_of(parts)
    parts[700] = ((10, 41), Part(parts[700][1].shape, parts[700][1].start))
    with pytest.raises(LayoutError, match="ranks 700 and 701 overlap"):
        layout_of(parts)


@given(st.lists(st.lists(st.integers(0, 2**40), max_size=5), min_size=1, max_size=4))
def test_block_size_is_the_smallest_that_fits(sizes: list[list[int]]) -> None:
    block_bytes = block_bytes_for(sizes)
    most = max(sum(blocks_in(n, block_bytes) for n in rank) for rank in sizes)
    assert most <= MAX_BLOCKS
    if block_bytes > BLOCK_BYTES:
        assert max(sum(blocks_in(n, block_bytes // 2) for n in rank) for rank in sizes) > MAX_BLOCKS


def test_too_many_arrays_for_any_block_size() -> None:
    with pytest.raises(LayoutError, match="Rank 1 has 16385 arrays"):
        block_bytes_for([[1], [1] * (MAX_BLOCKS + 1)])


def test_room_for_objects() -> None:
    assert objects_room_for(0) == objects_room_for(100) == MIN_OBJECTS_ROOM
    assert objects_room_for(100_000) == 200_704
    assert objects_room_for(100_000) % PAGE_BYTES == 0


def test_record_is_one_page_and_its_fields_do_not_overlap() -> None:
    assert RECORD.itemsize == PAGE_BYTES
    assert RECORD.fields is not None
    ends = sorted((offset, offset + kind.itemsize) for kind, offset, *_ in RECORD.fields.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert ends[-1] == (4092, 4096)


@pytest.mark.parametrize(
    "error",
    [
        errors.StoreError("full", errno=28, path="/a"),
        errors.InUseError("held", path="/a"),
        errors.CorruptionError("bad", rank=1, array="u", block=2, epoch=3, path="/a"),
        errors.WaitTimeout("late"),
        errors.UsageError("what"),
    ],
)
def test_errors_survive_pickling_with_what_they_know(error: errors.MpickptError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    assert vars(copy).get("path") in (None, Path("/a"))
