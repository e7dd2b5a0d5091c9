"""A slot that mpickpt wrote with format version 1 is read, verified, and written to again."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from prefaces import drop_preface

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, slot_path

DATA = Path(__file__).parent / "data/slot-version-1.h5.xz"
STRUCT = np.dtype([("a", "i1"), ("b", "f8", (2,))])


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    path = slot_path(tmp_path, 0)
    path.write_bytes(lzma.decompress(DATA.read_bytes()))
    return path


@pytest.mark.parametrize("preface", [True, False])
def test_everything_in_it_is_read(preface: bool, slot: Path) -> None:
    if not preface:  # as the oldest ones
        drop_preface(slot)
    checkpoint = mpickpt.Checkpoint(slot)
    assert (checkpoint.epoch, checkpoint.step, checkpoint.world_size) == (1, 10, 2)
    assert checkpoint.verify() == []
    for r, rank in enumerate([checkpoint.rank(r) for r in range(2)]):
        assert list(rank) == ["u", "ut", "when", "none", "s"]
        np.testing.assert_array_equal(rank["u"][...], np.arange(40.0).reshape(5, 8) + 100 * r)
        np.testing.assert_array_equal(rank["ut"][...], np.arange(24, dtype="f4").reshape(8, 3) + 100 * r)
        np.testing.assert_array_equal(rank["when"][...], np.arange(2 + r).astype("M8[s]"))
        assert rank["s"][...] == np.array((7 + r, (1.5, 2.5)), STRUCT)
    np.testing.assert_array_equal(checkpoint["u"][3:, 0], 100.0 + 8 * np.arange(1, 4))
    np.testing.assert_array_equal(checkpoint["ut"][0], [0, 1, 2, 100, 101, 102])
    assert [image.read_channels() for image in checkpoint.images] == [(b"", []), (b"to rank 1", [])]


def test_the_layout_is_the_one_of_a_new_slot_with_the_same_arrays(slot: Path) -> None:
    """So that a run that goes on from it writes to it as it is."""
    store = Store(slot.parent, crc32c)
    store.create(1, store.layout(0))
    old, new = (store.inspect(slot_path(slot.parent, index)) for index in range(2))
    assert old.digest == new.digest
    assert store.layout(1) == store.layout(0)
