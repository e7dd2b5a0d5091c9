"""Whether the program still holds its saved arrays and objects: what is reported, and what is not."""

from __future__ import annotations

import array as plain_array
import ctypes
import gc
import mmap
import random
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpickpt
from mpickpt.errors import UsageError
from mpickpt.session.bindings import Bindings, owner_of

Held = Callable[[NDArray[Any]], object]


class Box:
    """Something with attributes."""

    def __init__(self, value: object) -> None:
        self.value = value


class Looped(Box):
    """Something that only the collector takes away."""

    def __init__(self, value: object) -> None:
        super().__init__(value)
        self.itself = self


def closure(u: NDArray[Any]) -> Callable[[], float]:
    return lambda: float(u[0])


HELD: dict[str, Held] = {
    "by its name": lambda u: u,
    "by a view": lambda u: u[3:5],
    "by a view of a view, of another type": lambda u: u[2:].view(np.uint8)[::-2],
    "by one cell": lambda u: u[5:6].reshape(()),
    "in a container": lambda u: {"fields": [(u,)]},
    "by an attribute": lambda u: Box(Box(u)),
    "by a closure": closure,
    "by a partial call": lambda u: partial(np.sum, u),
    "by a method": lambda u: u.sum,
    "by an iterator": lambda u: iter(u),
    "by a buffer": lambda u: memoryview(u),
    "by a pointer of ctypes": lambda u: u.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
    "by a masked array": lambda u: np.ma.MaskedArray(u, mask=u > 9, copy=False),
    "by a subclass": lambda u: u.view(np.recarray),
    "by numpy's interface": lambda u: np.asarray(Interface(u)),
}


class Interface:
    """What another library hands to numpy."""

    def __init__(self, u: NDArray[Any]) -> None:
        self.u, self.__array_interface__ = u, u.__array_interface__


LOST: dict[str, Held] = {
    "another array": lambda u: u * 1.01,
    "a copy": lambda u: u[3:5].copy(),
    "a copy by an index": lambda u: u[[1, 2]],
    "an element": lambda u: u[0],
    "nothing": lambda u: None,
    "a list": lambda u: u.tolist(),
    "a converted array": lambda u: u.astype("f4"),
}


def declare(ckpt: mpickpt.Session, how: str, name: str = "u") -> NDArray[Any]:
    """Declare an array, as the program may have it."""
    if how == "array":
        return ckpt.array(name, 10)
    if how == "protect":
        return ckpt.protect(name, np.zeros(10))
    if how == "protect a part":
        return ckpt.protect(name, np.zeros((4, 10))[1])
    return ckpt.protect(name, np.zeros((10, 2), order="F"))[:, 0]


EACH_WAY = pytest.mark.parametrize("how", ["array", "protect", "protect a part", "protect in Fortran order"])


@EACH_WAY
def test_what_is_held_is_cut_and_what_is_lost_is_an_error(tmp_path: Path, how: str) -> None:
    held, lost = list(HELD), list(LOST)
    with mpickpt.open(tmp_path, every=1) as ckpt:
        things = [HELD[way](declare(ckpt, how, f"held-by-{place}")[:]) for place, way in enumerate(held)]
        arrays: list[Any] = [declare(ckpt, how, f"lost-by-{place}") for place in range(len(lost))]
        for _ in range(4):
            ckpt.step()
        for place, way in enumerate(lost):
            arrays[place] = LOST[way](arrays[place])
            with pytest.raises(UsageError, match="^Rank 0: the program does not hold .* any more, .*u \\*= 2") as told:
                ckpt.step()
            assert re.findall(r"array '(\S*)'", str(told.value)) == [f"lost-by-{k}" for k in range(place + 1)], way
        assert ckpt.stats().cuts == 3
        assert len(things) == len(held)
    assert mpickpt.Checkpoint(tmp_path).step == 3


@pytest.mark.parametrize("lazy", [False, True])
@EACH_WAY
def test_after_a_restart(tmp_path: Path, how: str, lazy: bool) -> None:
    """What was read, and the memory that it was read into, is no holder."""
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = declare(ckpt, how)
        state = ckpt.object("state", {"n": 1})
        for _ in ckpt.range(2):
            u += 1
            state["n"] += 1
    with mpickpt.open(tmp_path, every=1, lazy=lazy) as ckpt:
        assert ckpt.restored is not None
        u = declare(ckpt, how)
        state = ckpt.object("state", {})
        ckpt.step()
        u, state = u + 1, dict(state)
        with pytest.raises(UsageError, match="does not hold array 'u', object 'state' any more"):
            ckpt.step()


def test_the_owner_of_the_memory_counts(tmp_path: Path) -> None:
    """Of several parts of one array each is held by whoever holds any of it."""
    with mpickpt.open(tmp_path, every=1) as ckpt:
        big = np.zeros((4, 10))
        for row in range(4):
            ckpt.protect(f"row{row}", big[row])
        for _ in range(3):
            ckpt.step()
        part, big = big[:1, :1], np.ones((4, 10))
        ckpt.step()
        part = part + 1
        with pytest.raises(UsageError, match="array 'row0', array 'row1', array 'row2', array 'row3'"):
            ckpt.step()
        for row in range(3):
            ckpt.drop(f"row{row}")
        with pytest.raises(UsageError, match="does not hold array 'row3' any more"):
            ckpt.step()
        ckpt.drop("row3")
        ckpt.step()


def test_one_object_under_two_names(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        log = ckpt.object("log", [])
        ckpt.object("again", log)
        u = ckpt.protect("u", np.zeros(3))
        ckpt.object("u as an object", u)
        for _ in range(3):
            ckpt.step()
        log, u = [], u + 1
        with pytest.raises(UsageError, match="object 'log', object 'again', array 'u', object 'u as an object'"):
            ckpt.step()


def test_an_error_that_was_caught_is_raised_again(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        ckpt.array("u", 3)
        ckpt.step()
        for _ in range(3):
            with pytest.raises(UsageError, match="does not hold array 'u'"):
                ckpt.step()
        assert ckpt.stats().cuts == 0


@pytest.mark.parametrize("place", ["name", "session", "environment"])
def test_warned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    if place == "environment":
        monkeypatch.setenv("MPICKPT_ON_REBIND", "warn")
    with mpickpt.open(tmp_path, every=1, on_rebind="warn" if place == "session" else None) as ckpt:
        ckpt.array("u", 3, on_rebind="warn" if place == "name" else None)
        ckpt.step()
        with pytest.warns(UserWarning, match="does not hold array 'u'") as told:
            ckpt.step()
        assert told[0].filename == __file__
        ckpt.step()
        ckpt.step()
        assert ckpt.stats().cuts == 3


def test_ignored(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1, on_rebind="ignore") as ckpt:
        ckpt.array("u", 3)
        ckpt.protect("v", np.zeros(3))
        ckpt.object("log", [])
        ckpt.object("count", 3)
        named = ckpt.array("w", 3, on_rebind="error")
        for _ in range(4):
            ckpt.step()
        del named
        with pytest.raises(UsageError, match="does not hold array 'w' any more"):
            ckpt.step()


def test_what_is_no_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        with pytest.raises(UsageError, match="Argument on_rebind= of 'u': 'maybe' is not 'error', 'warn' or 'ignore'"):
            ckpt.array("u", 3, on_rebind="maybe")  # type: ignore[arg-type]
        assert ckpt.array("u", 3).size == 3  # the name was not taken
    monkeypatch.setenv("MPICKPT_ON_REBIND", "never")
    with pytest.raises(UsageError, match="Environment variable MPICKPT_ON_REBIND: 'never' is not 'error'"):
        mpickpt.open(tmp_path)


# -- objects -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "held",
    [
        lambda value: value,
        lambda value: [value],
        lambda value: value.value,
        lambda value: value.value["log"],
        lambda value: vars(value),
        lambda value: value.value["rng"].random,
        lambda value: value.value["u"][1:],
    ],
    ids=["itself", "in a list", "its attribute", "what is in that", "its attributes", "a method", "a view"],
)
def test_an_object_is_held_by_any_part_of_it(tmp_path: Path, held: Callable[[Any], object]) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        state = {"log": [], "rng": np.random.default_rng(1), "u": np.zeros((3, 2)), "n": 3, "pair": (1, "text")}
        thing = held(ckpt.object("state", Box(state)))
        del state
        for _ in range(4):
            ckpt.step()
        assert ckpt.stats().cuts == 3
        del thing
        with pytest.raises(UsageError, match="does not hold object 'state'"):
            ckpt.step()


def test_a_number_or_a_class_in_an_object_is_no_part_of_it(tmp_path: Path) -> None:
    """Everybody holds those: they say nothing of the object around them."""
    u = None
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 3)
        text, kind = "a text that is nowhere else" * 3, np.dtype("f4")
        box = ckpt.object("box", Box([text, kind, Box, len, 10**9, u]))
        ckpt.step()
        ckpt.step()
        del box
        with pytest.raises(UsageError, match="does not hold object 'box'"):
            ckpt.step()
        assert text
        assert kind == np.float32


def test_set_object(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        ckpt.object("state", {"n": 0})
        ckpt.step()
        for n in range(3):  # a new one each time, which the program does not keep
            ckpt.set_object("state", {"n": n})
            ckpt.step()
        ckpt.step()  # and now it stays
        state = ckpt.set_object("state", {"n": 9})
        ckpt.step()
        state["n"] += 1
        ckpt.step()
        state = dict(state)  # forgotten to tell
        with pytest.raises(UsageError, match="does not hold object 'state'"):
            ckpt.step()


def test_a_value_that_cannot_change(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        ckpt.object("count", 3)
        ckpt.object("place", (0.5, "north"))
        ckpt.object("constant", np.float64(9.81), on_rebind="ignore")
        ckpt.object("told", 0)
        box = ckpt.object("box", (1, []))  # something in it can
        ckpt.step()
        ckpt.step()
        ckpt.set_object("told", 1)
        with pytest.warns(UserWarning, match=r"cannot change .*: 'count' \(int\), 'place' \(tuple\)\."):
            ckpt.step()
        ckpt.step()
        ckpt.drop("count")
        ckpt.object("count", 4)
        ckpt.step()
        with pytest.warns(UserWarning, match=r"by the second cut: 'count' \(int\)\."):
            ckpt.step()
        ckpt.step()
        del box


def test_an_object_in_a_circle_is_lost_when_it_is_collected(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 3)
        box = Looped(u)
        for _ in range(3):
            ckpt.step()
        del box, u
        gc.collect()
        with pytest.raises(UsageError, match="does not hold array 'u'"):
            ckpt.step()


# -- whose memory it is ------------------------------------------------------------------------------------------------


def test_owners() -> None:
    u = np.zeros((4, 5))
    assert owner_of(u[1:, ::2].T[::-1].view(np.recarray))[0] is u
    assert owner_of(u) == (u, True)
    mapped = mmap.mmap(-1, 80)
    assert owner_of(np.ndarray((10,), "f8", mapped)) == (mapped, True)
    numbers = plain_array.array("d", [0.0] * 5)
    assert owner_of(np.ndarray((5,), "f8", numbers)) == (numbers, True)
    room = (ctypes.c_double * 4)()
    assert not owner_of(np.frombuffer(room))[1]


def test_memory_without_an_owner_is_left_in_peace(tmp_path: Path) -> None:
    """As that of a Fortran module, of which f2py makes an array each time that it is asked."""
    room = (ctypes.c_double * 4)()
    make = ctypes.pythonapi.PyMemoryView_FromMemory
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
    foreign = np.frombuffer(make(ctypes.addressof(room), 32, 0x200))
    with mpickpt.open(tmp_path / "a", every=1) as ckpt:
        ckpt.protect("u", foreign)
        ckpt.step()
        ckpt.step()
        del foreign
        with pytest.warns(UserWarning, match="nothing in Python refers to array 'u' any more. The memory belongs to"):
            ckpt.step()
        ckpt.step()
        assert ckpt.stats().cuts == 3
    assert room[0] == 0.0


def test_a_library_that_has_no_object_for_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What owner_of says of f2py's arrays.
    monkeypatch.setattr("mpickpt.session.bindings.owner_of", lambda array: (None, False))
    with mpickpt.open(tmp_path, every=1) as ckpt:
        ckpt.protect("u", np.zeros(3))
        for _ in range(4):
            ckpt.step()
        assert ckpt.stats().cuts == 3


# -- counting ----------------------------------------------------------------------------------------------------------


def test_counting_agrees_with_a_model() -> None:
    """Declarations, drops and references in any order: what is lost is what has no reference of the program."""
    rng = random.Random(5)
    bindings = Bindings(0)
    held: dict[str, list[object]] = {}
    views: dict[str, NDArray[np.uint8]] = {}
    objects: dict[str, object] = {}
    for turn in range(2000):
        name = f"x{rng.randrange(30)}"
        match rng.randrange(5):
            case 0 if name not in held:
                array: NDArray[Any] = np.zeros(rng.randrange(3))
                views[name] = bindings.keep(name, array, "warn", is_ours=False)
                held[name] = [array]
            case 1 if name not in held:
                objects[name] = Box(turn)
                bindings.add_object(name, objects[name], "warn")
                held[name] = [objects[name]]
            case 2 if held.get(name):
                held[name].append(rng.choice(held[name]))
            case 3 if held.get(name):
                held[name].pop(rng.randrange(len(held[name])))
            case 4 if rng.random() < 0.3 and name in held:
                bindings.drop(name)
                for everything in (held, views, objects):
                    everything.pop(name, None)  # type: ignore[attr-defined]
        array = None  # type: ignore[assignment]
        if turn % 20 == 0:
            assert {watch.name for watch in bindings._lost()} == {name for name, refs in held.items() if not refs}


def test_no_version_of_python_has_to_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.14 on a count may leave out references that the interpreter has borrowed: here, all by one."""
    count = sys.getrefcount
    monkeypatch.setattr(sys, "getrefcount", lambda thing: count(thing) - 1)
    bindings = Bindings(0)
    kept, lost = np.zeros(3), np.zeros(3)
    views = [bindings.keep("kept", kept, "warn", is_ours=True), bindings.keep("lost", lost, "warn", is_ours=True)]
    del lost
    assert [watch.name for watch in bindings._lost()] == ["lost"]
    assert len(views) == 2


def test_what_is_dropped_is_let_go_of(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        for n in range(1, 6):  # an array that grows
            u = ckpt.array("u", n, fill=1.0)
            ckpt.step()
            ckpt.step()
            assert u.sum() == n
            ckpt.drop("u")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            u = u * 2
            ckpt.step()
            ckpt.step()


@pytest.mark.parametrize("stop", [6, 7])
def test_arrays_that_change_places_by_the_step(tmp_path: Path, stop: int) -> None:
    """The way that docs/limits.md shows; to swap the names themselves is what nobody can see."""

    def run(directory: Path, stop: int) -> NDArray[Any]:
        with mpickpt.open(directory, every=3) as ckpt:
            a, b = ckpt.array("a", 50, fill=np.sin(np.arange(50.0))), ckpt.array("b", 50)
            for step in ckpt.range(stop):
                u, v = (a, b) if step % 2 == 0 else (b, a)
                v[1:-1] = u[1:-1] + 0.25 * (u[:-2] - 2 * u[1:-1] + u[2:]) + step * 1e-3
            return np.array(v)

    straight = run(tmp_path / "straight", 9)
    run(tmp_path / "c", stop)
    np.testing.assert_array_equal(run(tmp_path / "c", 9), straight)
