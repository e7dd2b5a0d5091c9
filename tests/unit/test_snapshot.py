"""The Python interface of the snapshotter: messages in flight after a cut, and epochs that are given up."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mpickpt import _native
from mpickpt.layout.arrays import PAGE_BYTES, RECORD_FIELDS, ArraySpec, Layout, RankLayout, RecordState
from mpickpt.reading.image import RankImage, images_of
from mpickpt.snapshot import CutPlan, DrainState, Progress, Snapshotter, Target, crc32c
from mpickpt.store import SlotInfo, Store, read_slot, slot_path, spill_path

BLOCK = 64 * 1024


class Rank:
    """One rank with an array, a slot and a sealed snapshotter."""

    def __init__(self, folder: Path) -> None:
        spec = ArraySpec("u", (8 * BLOCK,), np.dtype("u1"))
        self.layout = Layout((RankLayout((spec,), channels_room=PAGE_BYTES),), BLOCK)
        self.store = Store(folder, crc32c)
        self.store.create(0, self.layout)
        self.path = slot_path(folder, 0)
        self.spill = spill_path(self.path, 0, "channels")
        self.region = Snapshotter.allocate(spec.nbytes)
        self.snapshotter = Snapshotter()
        self.snapshotter.add(self.region, owned=True)
        self.snapshotter.seal(BLOCK, 2 * BLOCK)

    def cut(self, epoch: int, *, follow: bool = True, spill: Path | None = None) -> None:
        """Cut with the number of the epoch in each byte of the array."""
        self.region[:] = epoch
        target = Target(
            self.path,
            self.store.offsets(0)[0],
            rank=0,
            run=1,
            digest=self.layout.digest,
            channels_follow=follow,
            channels_spill=spill or self.spill,
        )
        self.snapshotter.cut(CutPlan(target, epoch, step=10 * epoch, objects=b"objects"))

    def wait_for_blocks(self) -> Progress:
        """Wait until nothing but the channels is missing."""
        while (now := self.snapshotter.progress()).blocks_saved < now.blocks_dirty:
            assert not self.snapshotter.wait(0.01)
        return now

    @property
    def slot(self) -> SlotInfo:
        """What the slot says now."""
        return read_slot(self.path, crc32c)

    @property
    def image(self) -> RankImage:
        """The epoch in the slot, which is complete."""
        assert self.slot.complete, self.slot.why_not
        return images_of(self.path, self.layout, self.store.offsets(0), self.slot.records)[0]


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    it = Rank(tmp_path)
    yield it
    it.snapshotter.close()


def test_native_code_writes_the_same_record() -> None:
    assert _native.RECORD_BYTES == PAGE_BYTES
    assert _native.RECORD_OFFSETS == {name: offset for name, _, offset in RECORD_FIELDS}


@pytest.mark.parametrize("nbytes", [0, 1, PAGE_BYTES, PAGE_BYTES + 1, 300_000])
@pytest.mark.parametrize("late", [False, True])
def test_epoch_is_complete_when_its_messages_are_there(rank: Rank, nbytes: int, late: bool) -> None:
    messages = os.urandom(nbytes)
    rank.cut(1)
    if late:
        now = rank.wait_for_blocks()
        assert (now.state, now.channels_pending) == (DrainState.DRAINING, True)
        assert not rank.snapshotter.wait(0.05)
        assert rank.slot.why_not == "Rank 0 has not finished epoch 1."
    rank.snapshotter.add_channels(messages)
    assert rank.snapshotter.wait(150)
    now = rank.snapshotter.progress()
    assert (now.state, now.channels_pending, now.blocks_saved) == (DrainState.COMPLETE, False, 8)
    assert rank.spill.exists() == (nbytes > PAGE_BYTES)
    assert rank.image.read_channels() == (messages, [])
    assert rank.image.read_objects() == (b"objects", [])
    assert (rank.image.load(0) == 1).all()


def test_messages_of_an_older_epoch_do_not_stay(rank: Rank) -> None:
    for epoch, messages in ((1, b"x" * 5000), (2, b""), (3, b"yz")):
        rank.cut(epoch)
        rank.snapshotter.add_channels(messages)
        assert rank.snapshotter.wait(150)
        assert rank.image.read_channels() == (messages, [])
    rank.cut(4, follow=False)
    assert rank.snapshotter.wait(150)
    assert rank.image.read_channels() == (b"", [])


def refused(error: pytest.ExceptionInfo[OSError]) -> bool:
    """Whether it is EINVAL."""
    return error.value.errno == errno.EINVAL


def test_messages_that_nobody_expects(rank: Rank) -> None:
    with pytest.raises(OSError) as error:
        rank.snapshotter.add_channels(b"")
    assert refused(error)
    rank.cut(1)
    rank.snapshotter.add_channels(b"first")
    with pytest.raises(OSError) as error:
        rank.snapshotter.add_channels(b"second")
    assert refused(error)
    assert rank.snapshotter.wait(150)
    assert rank.image.read_channels() == (b"first", [])
    rank.cut(2, follow=False)
    with pytest.raises(OSError) as error:
        rank.snapshotter.add_channels(b"")
    assert refused(error)
    assert rank.snapshotter.wait(150)
    with pytest.raises(ValueError, match="give channels_spill"):
        target = Target(rank.path, rank.store.offsets(0)[0], rank=0, run=1, digest=bytes(32), channels_follow=True)
        rank.snapshotter.cut(CutPlan(target, epoch=3, step=0, objects=b""))


def test_epoch_that_is_given_up(rank: Rank) -> None:
    rank.cut(1)
    rank.wait_for_blocks()
    rank.snapshotter.fail(errno.EPROTO)
    assert rank.snapshotter.wait(150)
    now = rank.snapshotter.progress()
    assert (now.state, now.errno, now.channels_pending) == (DrainState.FAILED, errno.EPROTO, False)
    assert rank.slot.why_not == f"Rank 0 could not write epoch 1: {os.strerror(errno.EPROTO)}."
    rank.snapshotter.add_channels(b"too late")
    for number in (errno.EPROTO, 0, -1):
        with pytest.raises(OSError) as error:
            rank.snapshotter.fail(number)
        assert refused(error)
    rank.cut(2)
    rank.snapshotter.add_channels(b"in time")
    assert rank.snapshotter.wait(150)
    assert rank.image.read_channels() == (b"in time", [])
    assert (rank.image.load(0) == 2).all()


def test_messages_that_the_storage_refuses(rank: Rank, tmp_path: Path) -> None:
    rank.cut(1, spill=tmp_path / "missing" / "spill")
    rank.snapshotter.add_channels(bytes(PAGE_BYTES + 1))
    assert rank.snapshotter.wait(150)
    now = rank.snapshotter.progress()
    assert (now.state, now.errno) == (DrainState.FAILED, errno.ENOENT)
    assert not rank.slot.complete


@pytest.mark.parametrize("saved", [False, True])
def test_closing_gives_up_what_still_waits_for_messages(rank: Rank, saved: bool) -> None:
    rank.cut(1)
    if saved:
        rank.wait_for_blocks()
    rank.snapshotter.close()
    record = rank.slot.records[0]
    assert (int(record["state"]), int(record["errno"])) == (RecordState.FAILED, errno.ECANCELED)
