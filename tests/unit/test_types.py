"""Types of cells: stored with numpy's own description, with or without a type in HDF5, or refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mpickpt
from mpickpt.errors import LayoutError

NAMES = [f"a_field_with_quite_a_long_name_number_{i:05d}" for i in range(1500)]
TYPES: dict[str, Any] = {
    "many fields": [(name, "f8") for name in NAMES],
    "many fields in a field": [("t", "m8[s]"), ("all", [(name, "f4") for name in NAMES], (2,))],
    "a type just beyond an attribute": [(f"{i:05d}" + "x" * 95, "u1") for i in range(600)],
    "a long subarray": [("a", "u1", (70_000,)), ("b", "f8")],
    "a long void": "V70000",
    "gaps": {"names": ["a", "b"], "formats": ["f8", "i4"], "offsets": [1, 20], "itemsize": 40},
    "times": [("at", "M8[ns]"), ("x", ">f4")],
    "names that are not ASCII": [("größe", "f8"), ("名前", "i4"), ("a/b", "i2")],
    "long double": "g",
}


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_all_bytes_come_back(tmp_path: Path, kind: Any) -> None:  # noqa: ANN401  (whatever makes a dtype)
    """Cells, and what lies between their fields, by a restart and by a reader."""
    dtype = np.dtype(kind)
    values = np.random.default_rng(3).integers(0, 256, 6 * dtype.itemsize, np.uint8)

    def run(stop: int) -> bytes:
        with mpickpt.open(tmp_path / "c", every=2) as ckpt:
            u = ckpt.array("u", (2, 3), dtype, part=mpickpt.Part((2, 3), (0, 0)))
            assert u.dtype == dtype
            if not ckpt.restored:
                u.reshape(-1).view(np.uint8)[:] = values
            for _ in ckpt.range(stop):
                pass
            return u.tobytes()

    run(3)
    assert run(3) == values.tobytes()
    checkpoint = mpickpt.Checkpoint(tmp_path / "c")
    cells = values.reshape(2, 3, dtype.itemsize)
    for array in (checkpoint["u"], checkpoint.rank(0)["u"]):
        assert array.dtype == dtype
        assert array[:].tobytes() == values.tobytes()
        assert array[:, 1:2].tobytes() == cells[:, 1:2].tobytes()
        assert array[:, ::2].tobytes() == cells[:, ::2].tobytes()
    assert checkpoint.verify() == []
    with h5py.File(checkpoint.path) as file:
        stored = file["ranks/00000/u"]
        assert (stored.shape, stored.id.get_type().get_size()) == ((2, 3), dtype.itemsize)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ([("a", "O")], "cannot be saved as raw bytes; save such values by object"),
        ("S0", "cannot be saved as raw bytes"),
        ([], "cannot be saved as raw bytes"),
        ({"names": ["a", "b"], "formats": ["f8", "i4"], "offsets": [0, 4]}, r"no lossless description.*view\('ui"),
    ],
    ids=["objects", "nothing", "no field", "overlapping fields"],
)
def test_what_cannot_be_described_is_refused_at_the_declaration(tmp_path: Path, kind: Any, told: str) -> None:  # noqa: ANN401
    with mpickpt.open(tmp_path) as ckpt, pytest.raises(LayoutError, match=f"Array 'u': .*{told}"):
        ckpt.array("u", 3, np.dtype(kind))
