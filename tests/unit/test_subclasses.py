"""Subclasses of numpy's array: saved if they are only a buffer, refused by name if they have more state."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpickpt
from mpickpt.errors import LayoutError
from mpickpt.layout.subclasses import check_plain, check_values


class Plain(np.ndarray[Any, Any]):
    """An array with methods of its own, and nothing else."""


class Measured(np.ndarray[Any, Any]):
    """An array that carries a unit about."""

    unit: str


class Slotted(np.ndarray[Any, Any]):
    """The same, in a slot."""

    __slots__ = ("unit",)
    unit: str


class Pickled(np.ndarray[Any, Any]):
    """An array that has more to save than its buffer, as astropy's quantities."""

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401  (numpy's own)
        super().__setstate__(state[0])


def measured(kind: type[Any]) -> NDArray[Any]:
    array: NDArray[Any] = np.zeros(3).view(kind)
    array.unit = "m"  # type: ignore[attr-defined]
    return array


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3),
        np.zeros((2, 2)).view(np.matrix),
        np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.zeros(3).view(Plain),
    ],
    ids=lambda array: type(array).__name__,
)
def test_a_view_of_a_buffer_is_saved_as_it_is(array: NDArray[Any]) -> None:
    check_plain("u", array)


def test_a_memory_mapped_array_is_one(tmp_path: Path) -> None:
    check_plain("u", np.memmap(tmp_path / "file", "f8", "w+", shape=(5,)))


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.ma.MaskedArray(np.arange(3.0), [0, 1, 0]), r"Array 'u' is a masked array.*MaskedArray\(data, mask="),
        (np.ma.MaskedArray(np.arange(3.0)), "is a masked array"),  # the mask may come later
        (measured(Measured), r"Array 'u' is a Measured, .* \(unit\).* object\(\)"),
        (measured(Slotted), r"Array 'u' is a Slotted, .* \(unit\)"),
        (np.zeros(3).view(Pickled), r"Array 'u' is a Pickled, .* \(a state of its own\)"),
    ],
    ids=["mask", "no mask yet", "attribute", "slot", "pickled"],
)
def test_an_array_with_more_to_it_is_refused(tmp_path: Path, array: NDArray[Any], told: str) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        with pytest.raises(LayoutError, match=told):
            ckpt.protect("u", array)


def test_a_mask_is_not_lost_while_an_array_is_filled(tmp_path: Path) -> None:
    masked = np.ma.MaskedArray(np.arange(3.0), [0, 1, 0])
    with mpickpt.open(tmp_path) as ckpt, pytest.raises(LayoutError, match=r"its mask would be lost.*filled"):
        ckpt.array("u", 3, fill=masked)
    with pytest.raises(LayoutError, match="its mask would be lost"):
        check_values("u", np.ma.MaskedArray([1, 2], [1, 0]))
    check_values("u", np.ma.MaskedArray([1, 2], [0, 0]))
    check_values("u", datetime.date(2026, 1, 1))


def test_data_and_mask_as_two_arrays(tmp_path: Path) -> None:
    """What the message and docs/limits.md advise goes on after a restart with the same values and the same mask."""

    def run(directory: Path, stop: int) -> np.ma.MaskedArray[Any, Any]:
        with mpickpt.open(directory, every=3) as ckpt:
            data = ckpt.array("m.data", 6, fill=np.arange(6.0))
            mask = ckpt.array("m.mask", 6, bool)
            m = np.ma.MaskedArray(data, mask=mask, copy=False)
            for step in ckpt.range(stop):
                m += 1
                m[step % 6] = np.ma.masked if step % 2 else 10.0 + step
            return m.copy()

    straight = run(tmp_path / "straight", 7)
    run(tmp_path / "c", 5)
    resumed = run(tmp_path / "c", 7)
    assert straight.mask.any()
    assert not straight.mask.all()
    np.testing.assert_array_equal(resumed.mask, straight.mask)
    np.testing.assert_array_equal(resumed.data, straight.data)


@pytest.mark.parametrize("kind", [np.matrix, np.recarray, Plain])
def test_a_view_comes_back_in_place(tmp_path: Path, kind: type[Any]) -> None:
    def run(stop: int) -> NDArray[Any]:
        dtype = [("a", "i4"), ("b", "f8")] if kind is np.recarray else "f8"
        array = np.zeros((2, 2), dtype).view(kind)
        plain = np.asarray(array)["b"] if kind is np.recarray else np.asarray(array)
        with mpickpt.open(tmp_path, every=2) as ckpt:
            assert ckpt.protect("u", array) is array
            for _ in ckpt.range(stop):
                plain += 1
        return array

    run(3)
    resumed = run(5)
    assert type(resumed) is kind
    assert np.asarray(resumed.b if isinstance(resumed, np.recarray) else resumed).max() == 5.0
