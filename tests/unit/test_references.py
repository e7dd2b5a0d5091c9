"""Objects that hold saved arrays: written by name, and the same arrays after a restart."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpickpt
from mpickpt.cli.pickles import types_in
from mpickpt.errors import LayoutError
from mpickpt.layout.arrays import ArraySpec
from mpickpt.references import Part, PickledObjects, Places, Saved, dump


class Sim:
    """What a program may hold its arrays in."""

    def __init__(self, **fields: object) -> None:
        vars(self).update(fields)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (for mypy)
        raise AttributeError(name)


class Named(np.ndarray[Any, Any]):
    """An array with more to it than its buffer."""

    unit = ""


def places(**arrays: NDArray[Any]) -> Places:
    """Take arrays as saved."""
    saved = []
    for name, array in arrays.items():
        order = "C" if array.flags.c_contiguous else "F"
        spec = ArraySpec(name, array.shape, array.dtype, None, order)  # type: ignore[arg-type]
        saved.append(Saved(spec, array.__array_interface__["data"][0], type(array), lambda array=array: array))
    return Places(saved)


VIEWS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "slice": lambda u: u[1:3],
    "steps": lambda u: u[::2, 1::3],
    "backwards": lambda u: u[::-1, ::-2],
    "transposed": lambda u: u.T,
    "one cell": lambda u: u[2:3, 3:4].reshape(()),
    "another shape": lambda u: u.reshape(-1) if u.flags.c_contiguous else u.reshape(-1, order="F"),
    "bytes": lambda u: (u if u.flags.c_contiguous else u.T).view(np.uint8)[1:, 2:5],
    "broadcast": lambda u: np.broadcast_to(u[0], (3, *u[0].shape)),
    "a matrix": lambda u: u[:2].view(np.matrix),
    "read-only": lambda u: read_only(u),
}


def read_only(u: NDArray[Any]) -> NDArray[Any]:
    view = u[:]
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_keep_what_they_show(view: Callable[[NDArray[Any]], NDArray[Any]], order: Any) -> None:  # noqa: ANN401
    u = np.arange(40.0).reshape(5, 8).copy(order=order)
    seen = view(u)
    payload, found = dump({"seen": seen}, places(other=np.zeros(3), u=u), apart=False)
    assert found.references == {("seen", "u")}
    assert len(payload) < 600
    again = np.arange(100.0, 140.0).reshape(5, 8).copy(order=order)
    restored = PickledObjects(payload, lambda name, part, holder: part.of(again) if part else again)["seen"]
    expected = view(again)
    assert type(restored) is type(expected)
    assert (restored.dtype, restored.strides) == (expected.dtype, expected.strides)
    assert restored.flags.writeable == expected.flags.writeable
    np.testing.assert_array_equal(restored, expected)
    if restored.flags.writeable:
        restored[...] = 0
        np.testing.assert_array_equal(expected, np.zeros_like(expected))


def test_pieces_that_lie_in_memory_side_by_side_are_told_apart() -> None:
    room = np.zeros(30)
    a, b = room[:10], room[10:20]
    where = places(a=a, b=b)
    objects = {"a": a, "b": b, "end of a": a[9:], "last": b[-1:], "beyond": room[20:], "over both": room[9:11]}
    _, found = dump(objects | {"over the end": room[19:21]}, where, apart=False)
    assert found.references == {("a", "a"), ("b", "b"), ("end of a", "a"), ("last", "b")}
    assert {holder for holder, _ in found.copies} == {"over both", "over the end"}


def test_objects_without_saved_arrays_are_pickled_as_they_always_were() -> None:
    objects = {"log": [1, 2], "own": np.arange(5.0), "count": 3}
    payload, found = dump(objects, places(u=np.zeros(5)), apart=False)
    assert not found.is_any
    assert pickle.loads(payload).keys() == objects.keys()
    assert PickledObjects(payload, pytest.fail).names == ("log", "own", "count")


def test_what_objects_share_they_share_after_a_restart() -> None:
    u, shared = np.zeros(4), [1]
    payload, _ = dump({"a": Sim(u=u, shared=shared), "b": Sim(shared=shared, u=u)}, places(u=u), apart=False)
    again = PickledObjects(payload, lambda name, part, holder: u).all()
    assert again["a"].shared is again["b"].shared
    assert again["a"].u is again["b"].u is u


def test_an_empty_array_is_known_by_itself() -> None:
    u, other = np.zeros((0, 3)), np.zeros((0, 3))
    payload, found = dump({"u": u, "other": other}, places(u=u), apart=False)
    assert found.references == {("u", "u")}
    again = PickledObjects(payload, lambda name, part, holder: u).all()
    assert again["u"] is u
    assert again["other"] is not u


def test_a_masked_array_of_saved_arrays_comes_back_as_one() -> None:
    data, mask = np.arange(6.0), np.zeros(6, bool)
    masked = np.ma.MaskedArray(data, mask=mask, copy=False, fill_value=-1.0, hard_mask=True)
    payload, found = dump({"m": masked}, places(data=data, mask=mask), apart=False)
    assert found.references == {("m", "data"), ("m", "mask")}
    arrays = {"data": data, "mask": mask}
    again = PickledObjects(payload, lambda name, part, holder: part.of(arrays[name]) if part else arrays[name])["m"]
    again[2] = np.ma.masked
    again[3] = 7.0
    assert mask.tolist() == [False, False, True, False, False, False]
    assert data[3] == 7.0
    assert (again.fill_value, again.hardmask) == (-1.0, True)


def test_it_costs_nothing_of_what_the_array_holds(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 1 << 20)
        sim = ckpt.object("sim", Sim(u=u, halo=u[1:-1], name="x"))
        for _ in ckpt.range(3):
            sim.u += 1
    record = mpickpt.Checkpoint(tmp_path).slot.records[0]
    assert 0 < record["objects_bytes"] < 1000


@pytest.mark.parametrize("lazy", [False, True])
def test_identity_survives_a_restart(tmp_path: Path, lazy: bool) -> None:
    def run(stop: int) -> tuple[NDArray[Any], Any]:
        with mpickpt.open(tmp_path, every=2, lazy=lazy) as ckpt:
            rng = ckpt.object("rng", np.random.default_rng(1))
            u = ckpt.array("u", (50, 40))
            v = ckpt.protect("v", np.zeros((30, 20), order="F"))
            sim = ckpt.object("sim", Sim(u=u, fields={"v": v}, row=u[3], part=v[1:-1, 2:], own=np.zeros(3)))
            last = ckpt.object("last", [sim, rng])
            assert sim.u is u
            assert sim.fields["v"] is v
            assert last == [sim, rng]
            for step in ckpt.range(stop):
                sim.u += step
                sim.row += 1000
                sim.part += 1
                sim.own += 1
            assert np.shares_memory(sim.row, u)
            assert np.shares_memory(sim.part, v)
            return u.copy(), [sim.row.copy(), sim.part.copy(), sim.own.copy(), v.copy()]

    run(5)
    u, rest = run(9)
    assert u[0, 0] == sum(range(9))
    assert u[3, 0] == sum(range(9)) + 9000
    assert (rest[1] == 9).all()
    assert (rest[2] == 9).all()
    assert rest[3].sum() == 28 * 18 * 9


def test_an_array_that_is_declared_after_the_object(tmp_path: Path) -> None:
    """Told at the first cut; and refused by a restart, which has nothing to put there."""
    with mpickpt.open(tmp_path, every=1) as ckpt:
        before = ckpt.object("before", [1])
        sim = ckpt.object("sim", Sim())
        u = sim.u = ckpt.array("u", 30, fill=2.0)
        with pytest.warns(UserWarning, match="Object 'sim' holds array 'u', which was declared after it") as told:
            ckpt.step()
        assert told[0].filename == __file__
        ckpt.step()
        ckpt.step()
    with mpickpt.open(tmp_path) as ckpt:
        assert ckpt.object("before", []) == before
        with pytest.raises(LayoutError, match="Object 'sim' holds array 'u', which is declared after it"):
            ckpt.object("sim", Sim())
    with mpickpt.open(tmp_path) as ckpt:
        assert ckpt.object("before", []) == [1]
        u = ckpt.array("u", 30)
        assert ckpt.object("sim", Sim()).u is u
        assert u[0] == 2.0


def test_a_copy_is_told_of_once(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        big = np.zeros((4, 10))
        ckpt.protect("row", big[1])
        u = ckpt.array("u", 10)
        named = u.view(Named)
        named.unit = "m"
        box = ckpt.object("box", [big, named])
        with pytest.warns(UserWarning, match="'box' holds memory of array '(row|u)' in a way") as told:
            ckpt.step()
        assert len(told) == 2
        for _ in range(3):
            ckpt.step()
        assert len(box) == 2


def test_a_checkpoint_reads_them_from_the_file(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", (20, 10), fill=1.5)
        sim = ckpt.object("sim", Sim(u=u, row=u[3], own=[1]))
        alias = ckpt.object("alias", u[2:])
        log = ckpt.object("log", [1])
        for _ in ckpt.range(2):
            u += 1
    assert len(log) == 1 and sim.u is u and alias.size
    checkpoint = mpickpt.Checkpoint(tmp_path)
    objects = checkpoint.objects(0)
    np.testing.assert_array_equal(objects["sim"].u, checkpoint.rank(0)["u"][:])
    assert np.shares_memory(objects["sim"].u, objects["sim"].row)
    assert objects["sim"].own == [1]
    payload = checkpoint.images[0].read_objects()[0]
    kinds = types_in(payload)
    assert kinds == {"sim": f"{Sim.__module__}.Sim with array u", "alias": "part of array u", "log": "list"}
    show = [sys.executable, "-m", "mpickpt", "show", str(tmp_path)]
    shown = subprocess.run(show, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "with array u" in " ".join(shown.split())
    with pytest.raises(LayoutError, match=r"refers to the saved array 'u': use mpickpt\.Checkpoint"):
        plain = pickle.Unpickler(io.BytesIO(payload))
        plain.load()
        plain.load()


def test_damage_in_an_array_that_an_object_holds(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 1000, fill=1.5)
        box = ckpt.object("box", [u])
        ckpt.step()
        ckpt.step()
    checkpoint = mpickpt.Checkpoint(tmp_path)
    with checkpoint.path.open("r+b") as file:
        file.seek(checkpoint.images[0].offsets.arrays[0] + 100)
        file.write(b"damage")
    with pytest.raises(mpickpt.CorruptionError, match="array 'u'"):
        mpickpt.Checkpoint(checkpoint.path).objects(0)
    assert box[0] is u


def test_objects_come_to_hold_arrays_and_cease_to(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 10)
        log = ckpt.object("log", [])
        for step in ckpt.range(6):
            log[:] = [u[step:]] if step in (1, 2, 4) else [step]
    with mpickpt.open(tmp_path, restart=5) as ckpt:
        u = ckpt.array("u", 10)
        (last,) = ckpt.object("log", [])
        assert last.size == 6
        assert np.shares_memory(last, u)
    with mpickpt.open(tmp_path, restart=4) as ckpt:
        u = ckpt.array("u", 10)
        assert ckpt.object("log", []) == [3]


def test_a_part_beyond_its_array_is_refused() -> None:
    with pytest.raises(ValueError, match="buffer|strides"):
        Part(np.dtype("f8"), (4,), (8,), 8, True, None).of(np.zeros(4))
