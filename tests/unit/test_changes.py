"""Only changes are written to a slot: what a session saves over cuts, failures and restarts."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import mpickpt
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, slot_path

BLOCK = 256 * 1024
BLOCKS = 16


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MPICKPT_")]:
        monkeypatch.delenv(name)


class Run:
    """A program of one array of 16 blocks, which is cut on demand and then waits for its epoch."""

    def __init__(self, directory: Path, *, unaligned: bool = False) -> None:
        self.directory = directory
        self.session = mpickpt.open(directory, every=10**6)
        if unaligned:
            raw = np.zeros(BLOCKS * BLOCK + 4096 + 24, np.uint8)
            begin = -raw.ctypes.data % 4096 + 24
            self.u = self.session.protect("u", raw[begin : begin + BLOCKS * BLOCK].view(np.float64))
        else:
            self.u = self.session.array("u", BLOCKS * BLOCK // 8)

    def change(self, *blocks: int) -> None:
        for block in blocks:
            self.u[block * BLOCK // 8 + 5] += 1

    def cut(self) -> int:
        """Be cut; give the number of blocks that were written, after comparing all of them with memory."""
        before = self.session.stats()
        self.session.request()
        image = self.u.copy()
        while self.session.stats().complete + self.session.stats().failed == before.complete + before.failed:
            self.session.step()
        checkpoint = mpickpt.Checkpoint(self.directory)
        assert checkpoint.epoch == self.session.stats().last_complete
        assert checkpoint.verify() == []
        assert checkpoint.rank(0)["u"][...].tobytes() == image.tobytes()  # a writer may leave what is no number
        written = self.session.stats().bytes_written - before.bytes_written
        assert written % BLOCK < BLOCK // 2, "objects are small"
        return written // BLOCK


def test_what_changed_since_the_slot_was_written(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert [run.cut(), run.cut()] == [BLOCKS, BLOCKS]
    assert run.cut() == 0
    run.change(1, 2)
    assert run.cut() == 2
    run.change(2, 15)
    assert run.cut() == 3, "what changed for the epoch before, too"
    run.change(2)
    assert run.cut() == 2
    run.session.close()


def test_after_a_restart(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert [run.cut(), run.cut()] == [BLOCKS, BLOCKS]
    run.session.close()
    again = Run(tmp_path)
    again.change(3)  # before the first safe point, so that nobody sees it
    again.session.step()
    again.change(4)
    assert again.cut() == BLOCKS, "the other slot holds nothing that is known"
    again.change(5)
    assert again.cut() == 3, "the restored one does"
    assert again.cut() == 1
    again.session.close()


def test_after_a_restart_from_the_older_slot(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.cut()
    run.change(1)
    run.cut()
    run.session.close()
    with slot_path(tmp_path, 1).open("r+b") as file:
        file.seek(Store(tmp_path, crc32c).offsets(1)[0].arrays[0])
        file.write(b"damage")
    again = Run(tmp_path)
    assert again.session.restored is not None
    assert again.session.restored.epoch == 1
    assert [again.cut(), again.cut(), again.cut()] == [BLOCKS, 0, 0]
    again.session.close()


def test_another_layout_begins_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.cut()
    run.cut()
    v = run.session.array("v", BLOCK // 8)
    assert [run.cut(), run.cut(), run.cut()] == [BLOCKS + 1, BLOCKS + 1, 0]
    v[:] = 7
    assert run.cut() == 1
    assert (mpickpt.Checkpoint(tmp_path).rank(0)["v"][...] == 7).all()
    run.session.close()


def test_a_slot_that_somebody_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.cut()
    run.cut()
    slot = slot_path(tmp_path, 0)
    slot.rename(tmp_path / "kept")
    slot.write_bytes((tmp_path / "kept").read_bytes())
    with pytest.warns(RuntimeWarning, match="not as this rank left it"):
        run.session.request()
        while not run.session.stats().failed:
            run.session.step()
    assert [run.cut(), run.cut(), run.cut()] == [BLOCKS, 0, 0]
    run.session.close()


def test_memory_that_is_not_aligned(tmp_path: Path) -> None:
    """Its blocks in memory are not those of the file, and are not recognised after a restart."""
    run = Run(tmp_path, unaligned=True)
    run.cut()
    run.cut()
    run.change(7)
    assert run.cut() in (1, 2)
    run.session.close()
    again = Run(tmp_path, unaligned=True)
    again.cut()
    assert again.cut() >= BLOCKS - 1
    again.change(9)
    assert again.cut() in (1, 2)
    again.session.close()


def test_a_writer_that_nobody_sees_while_blocks_are_saved(tmp_path: Path) -> None:
    """An epoch fails by name, the one before can be restored, and so can what is saved when the writer has gone."""
    run = Run(tmp_path)
    run.cut()
    stop = threading.Event()

    def write() -> None:
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:  # which no protection of a page keeps out
            while not stop.is_set():
                for block in range(BLOCKS):
                    os.pwrite(memory.fileno(), os.urandom(8), run.u.ctypes.data + block * BLOCK + 800)

    with pytest.warns(RuntimeWarning) as told, ExitStack() as ends:
        writer = threading.Thread(target=write)
        ends.callback(writer.join)
        ends.callback(stop.set)
        writer.start()
        while not run.session.stats().failed:  # an epoch that it did not come into is complete
            run.u += 1
            before = run.session.stats()
            run.session.request()
            while run.session.stats().complete + run.session.stats().failed == before.complete + before.failed:
                run.session.step()
                time.sleep(0.0001)  # the writer is to have the interpreter, too
        saved = mpickpt.Checkpoint(tmp_path)
        assert (saved.epoch, saved.verify()) == (run.session.stats().last_complete, [])
        stop.set()
        writer.join()
        run.u += 1
        run.cut()  # it may be told of once more
    assert any("was written to by something that mpickpt cannot see while it was saved" in str(w.message) for w in told)
    assert run.cut() == BLOCKS, "the other slot holds nothing that is known"
    run.session.close()


def test_a_writer_that_nobody_sees(tmp_path: Path) -> None:
    """It is found out, told of, and its data are saved in the end."""
    libc = ctypes.CDLL(None)
    run = Run(tmp_path)
    run.cut()
    run.cut()
    address = run.u.ctypes.data + 3 * BLOCK
    libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 3)
    run.u[3 * BLOCK // 8] = -1.0
    libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 1)
    image = run.u.copy()
    with pytest.warns(RuntimeWarning, match=f"Rank 0: array 'u', in the block at byte {3 * BLOCK} was written"):
        for _ in range(10 * BLOCKS):
            before = run.session.stats().complete
            run.session.request()
            while run.session.stats().complete == before:
                run.session.step()
            time.sleep(0.01)
            if (mpickpt.Checkpoint(tmp_path).rank(0)["u"][...] == image).all():
                break
    assert (mpickpt.Checkpoint(tmp_path).rank(0)["u"][...] == image).all()
    run.session.close()
