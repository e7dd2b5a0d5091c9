"""Slots that a process of its own creates while the program goes on: when it is late, fails, or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import mpickpt
from mpickpt.session import creation, slots
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, slot_path

ARRAYS, BYTES = 4, 1 << 18
WAIT_SECONDS = 60.0


class Creator:
    """The last process that creates slots, which was stopped before it did anything."""

    def __init__(self) -> None:
        self.started: list[int] = []

    @property
    def pid(self) -> int:
        return self.started[-1]

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def is_gone(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False


@pytest.fixture
def creator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Creator]:
    """Have all slots created beside the program, by a process that waits for the test."""
    found, start = Creator(), creation._start

    def start_stopped(*args: object) -> subprocess.Popen[bytes]:
        process = start(*args)  # type: ignore[arg-type]
        os.kill(process.pid, signal.SIGSTOP)
        found.started.append(process.pid)
        return process

    monkeypatch.setattr(creation, "_start", start_stopped)
    monkeypatch.setattr(slots, "MANY_ARRAYS", 0)
    yield found
    for pid in found.started:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            pytest.fail("a process that creates slots is left")


def declare(ckpt: mpickpt.Session) -> list[np.ndarray]:
    return [ckpt.array(f"u{k}", BYTES // 8, fill=float(k)) for k in range(ARRAYS)]


def change(arrays: list[np.ndarray]) -> None:
    for u in arrays:
        u += 1


def poll_until(ckpt: mpickpt.Session, done: Callable[[], bool]) -> None:
    """Go on with the program, which has nothing to do."""
    end = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < end
        ckpt.step()
        time.sleep(0.001)


@contextmanager
def told(*expected: str) -> Iterator[None]:
    """Expect warnings, each of which has one of these texts, and each text is in one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(one.message) for one in caught]
    assert all(any(part in text for text in texts) for part in expected), texts
    assert all(any(part in text for part in expected) for text in texts), texts


def check_values(directory: Path, epoch: int, value: float) -> None:
    """All arrays are as they were at the cut of `epoch`, at which so much had been added to each."""
    checkpoint = mpickpt.Checkpoint(directory)
    assert checkpoint.epoch == epoch
    assert checkpoint.verify() == []
    for k in range(ARRAYS):
        assert (checkpoint.rank(0)[f"u{k}"][...] == k + value).all()


def test_a_cut_does_not_wait_for_its_slot(tmp_path: Path, creator: Creator) -> None:
    """The image is the one of the cut, though all of it is overwritten before there is a slot."""
    with mpickpt.open(tmp_path, record=False) as ckpt:
        arrays = declare(ckpt)
        ckpt.step()
        assert not slot_path(tmp_path, 0).exists()
        change(arrays)
        ckpt.request()
        poll_until(ckpt, lambda: ckpt.stats().cuts == 1)
        for _ in range(3):
            change(arrays)
            ckpt.step()
        assert ckpt.stats().complete == 0
        assert not list(tmp_path.glob("slot-*"))
        creator.go_on()
        poll_until(ckpt, lambda: ckpt.stats().complete == 1)
        check_values(tmp_path, 1, 1)
        assert ckpt.stats().blocks_copied == ARRAYS
        for _ in range(3):
            assert ckpt.save()
        poll_until(ckpt, lambda: creator.is_gone)  # nothing is left to do
    check_values(tmp_path, 4, 4)
    assert len(creator.started) == 1
    with mpickpt.open(tmp_path, record=False) as ckpt:
        assert (declare(ckpt)[2] == 2 + 4).all()
        ckpt.step()
    assert len(creator.started) == 1  # the slots fit


def test_progress_is_told(
    tmp_path: Path, creator: Creator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(creation, "SAY_AFTER", 0.05)
    told = ""

    def tells(text: str) -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return text in told

    with mpickpt.open(tmp_path, record=False, progress=True) as ckpt:
        state = np.zeros(15_000)
        for k in range(state.size):
            ckpt.protect(f"u{k}", state[k : k + 1])
        ckpt.step()
        poll_until(ckpt, lambda: tells("mpickpt: slot 0 is being created beside the program: 0 % of its arrays"))
        assert ckpt._checkpointer.slots.share == 0.0
        creator.go_on()
        poll_until(ckpt, lambda: 0.0 < (ckpt._checkpointer.slots.share or 0.0) < 1.0)
        poll_until(ckpt, lambda: tells("mpickpt: the slots were created beside the program in"))
        assert ckpt._checkpointer.slots.share is None
        assert told.count("is being created") == 1
    assert tells("mpickpt: step 0; slot: 0% created; no epoch yet")


def test_the_slots_are_as_if_all_had_waited(tmp_path: Path, creator: Creator, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = []
    for name, many in (("beside", 0), ("waiting", 100)):
        monkeypatch.setattr(slots, "MANY_ARRAYS", many)
        with mpickpt.open(tmp_path / name, record=False) as ckpt:
            _arrays = declare(ckpt)
            ckpt.step()
            if not many:
                creator.go_on()
            assert ckpt.save()
            assert ckpt.save()
        stores.append(Store(tmp_path / name, crc32c))
    assert len(creator.started) == 1
    for index in range(2):
        assert stores[0].structure(slot_path(stores[0].directory, index)) == stores[1].structure(
            slot_path(stores[1].directory, index)
        )


@pytest.mark.parametrize("way", ["save", "close", "wait"])
def test_who_waits_for_the_epoch_waits_for_the_slot(tmp_path: Path, creator: Creator, way: str) -> None:
    with mpickpt.open(tmp_path, record=False) as ckpt:
        arrays = declare(ckpt)
        ckpt.step()
        later = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; kill -CONT {creator.pid}"])
        if way == "save":
            assert ckpt.save()
        else:
            ckpt.request()
            poll_until(ckpt, lambda: ckpt.stats().cuts == 1)
            change(arrays)
        if way == "wait":
            assert ckpt.wait()
    assert later.wait() == 0
    check_values(tmp_path, 1, 0)


def test_a_stop_waits_for_the_slot(tmp_path: Path, creator: Creator) -> None:
    with pytest.raises(mpickpt.Stopped), mpickpt.open(tmp_path, record=False) as ckpt:
        _arrays = declare(ckpt)
        ckpt.step()
        os.kill(os.getpid(), signal.SIGTERM)
        later = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; kill -CONT {creator.pid}"])
        poll_until(ckpt, lambda: False)
    assert later.wait() == 0
    check_values(tmp_path, 1, 0)


def test_a_pool_that_is_full(tmp_path: Path, creator: Creator) -> None:
    """Waiting for room could last for ever, as it is this thread that brings the slot: the epoch fails instead."""
    with mpickpt.open(tmp_path, pool=f"{BYTES}", record=False) as ckpt:
        arrays = declare(ckpt)
        ckpt.step()
        ckpt.request()
        poll_until(ckpt, lambda: ckpt.stats().cuts == 1)
        with told("still being created, and the pool has no room"):
            change(arrays)
            poll_until(ckpt, lambda: ckpt.stats().failed == 1)
        creator.go_on()
        assert ckpt.save()
    check_values(tmp_path, 2, 1)


def test_the_process_is_killed(tmp_path: Path, creator: Creator) -> None:
    """Its epoch fails, and the next one's slot is created while all wait."""
    with mpickpt.open(tmp_path, record=False) as ckpt:
        arrays = declare(ckpt)
        ckpt.step()
        ckpt.request()
        poll_until(ckpt, lambda: ckpt.stats().cuts == 1)
        change(arrays)
        creator.end()
        not_created = [f"slot-{k}.h5 was not created: the process that was to create it has ended" for k in range(2)]
        with told(*not_created, "slot-0.h5: it could not be created, and rank 0 says why"):
            poll_until(ckpt, lambda: ckpt.stats().failed == 1)
        assert ckpt.save()
    check_values(tmp_path, 2, 1)


def test_the_process_is_killed_before_a_cut(tmp_path: Path, creator: Creator) -> None:
    with mpickpt.open(tmp_path, record=False) as ckpt:
        _arrays = declare(ckpt)
        ckpt.step()
        creator.end()
        with told("slot-0.h5 was not created", "slot-1.h5 was not created"):
            poll_until(ckpt, lambda: creator.is_gone)
        with told("it could not be created"):
            assert not ckpt.save()
            assert ckpt.save()
            assert not ckpt.save()  # into the other slot
        assert ckpt.save()
        assert ckpt.save()
    check_values(tmp_path, 5, 0)


def test_the_storage_hangs_meanwhile(tmp_path: Path, creator: Creator) -> None:
    """The process does not answer for as long as storage may take; a new one is not begun beside it."""
    with mpickpt.open(tmp_path, stall_limit=0.5, record=False) as ckpt:
        _arrays = declare(ckpt)
        ckpt.step()
        with told("the storage hangs, nothing has been written for 0.5 s", "it could not be created"):
            assert not ckpt.save()
        assert creator.is_gone
        assert ckpt.save()
    check_values(tmp_path, 2, 0)


def test_a_process_that_is_slow_does_not_hang(
    tmp_path: Path, creator: Creator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes for longer than storage may take for a call, and says nothing meanwhile."""
    late = tmp_path / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text("import time\nwhile time.process_time() < 2.5: pass\n")
    monkeypatch.setenv("PYTHONPATH", str(late))
    with mpickpt.open(tmp_path, stall_limit=1.0, record=False) as ckpt:
        _arrays = declare(ckpt)
        ckpt.step()
        creator.go_on()
        assert ckpt.save()
    check_values(tmp_path, 1, 0)


def test_a_session_that_ends_by_an_exception(tmp_path: Path, creator: Creator) -> None:
    """Nobody is left who writes to the directory, and the older epoch is as it was."""
    with mpickpt.open(tmp_path, record=False) as ckpt:
        (u,) = [ckpt.array("u0", BYTES // 8)]
        ckpt.step()
        creator.go_on()
        assert ckpt.save()
        poll_until(ckpt, lambda: creator.is_gone)  # both slots are there
    lost = told("slot-0.h5: the session ended before it was created")
    with lost, pytest.raises(ZeroDivisionError), mpickpt.open(tmp_path, record=False) as ckpt:
        arrays = [ckpt.array("u0", BYTES // 8)]
        ckpt.step()
        assert ckpt.save()
        arrays.append(ckpt.array("new", 100))
        ckpt.request()
        poll_until(ckpt, lambda: ckpt.stats().cuts == 2)
        change(arrays)
        _ = 1 / 0
    assert len(creator.started) == 2
    assert creator.is_gone
    assert Store(tmp_path, crc32c).holder() is None
    assert mpickpt.Checkpoint(tmp_path).epoch == 2
    assert list(mpickpt.Checkpoint(tmp_path).arrays) == ["u0"]
    assert u.size


def test_a_session_that_has_no_cut(tmp_path: Path, creator: Creator) -> None:
    with mpickpt.open(tmp_path, record=False) as ckpt:
        _arrays = declare(ckpt)
        ckpt.step()
    assert creator.is_gone
    assert not list(tmp_path.glob("slot-*.h5"))


def test_arrays_that_come_meanwhile(tmp_path: Path, creator: Creator) -> None:
    """The slots that are being created do not fit any more: others are, by another process."""
    with mpickpt.open(tmp_path, record=False) as ckpt:
        arrays = declare(ckpt)
        ckpt.step()
        first = creator.pid
        more = ckpt.array("more", 100, fill=7.0)
        ckpt.request()
        poll_until(ckpt, lambda: ckpt.stats().cuts == 1)
        change(arrays)
        assert creator.pid != first
        creator.go_on()
        poll_until(ckpt, lambda: ckpt.stats().complete == 1)
        check_values(tmp_path, 1, 0)
        assert (mpickpt.Checkpoint(tmp_path).rank(0)["more"][...] == more).all()
        ckpt.drop("more")
        del more
        change(arrays)
        ckpt.request()
        poll_until(ckpt, lambda: len(creator.started) == 3)
        creator.go_on()
        assert ckpt.save()
    check_values(tmp_path, 3, 2)


def test_what_can_be_known_at_once_is_an_error_at_once(tmp_path: Path, creator: Creator) -> None:
    with mpickpt.open(tmp_path, record=False) as ckpt:
        ckpt.array("u", 8)
        ckpt._checkpointer.slots._store.check_room = lambda *_: (_ for _ in ()).throw(  # type: ignore[method-assign]
            mpickpt.StoreError("no room")
        )
        with pytest.raises(mpickpt.StoreError, match="no room"):
            ckpt.step()
    assert not creator.started


def test_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MANY_ARRAYS", 0)
    monkeypatch.setattr(sys, "executable", "")
    with mpickpt.open(tmp_path, record=False) as ckpt:
        _arrays = declare(ckpt)
        with told("while all ranks wait, as no process can be started"):
            ckpt.step()
        assert ckpt.save()
    check_values(tmp_path, 1, 0)


PROGRAM = """
import os, signal, sys, mpickpt
from mpickpt.session import slots
slots.MANY_ARRAYS = 0
with mpickpt.open(sys.argv[1], record=False) as ckpt:
    arrays = [ckpt.array(f"u{k}", 1) for k in range(3000)]
    ckpt.step()
    process = ckpt._checkpointer.slots._creation._process
    while not os.path.exists(f"{sys.argv[1]}/slot-0.h5.new"):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGSTOP)
    print(process.pid, flush=True)
    signal.pause()
"""


def test_it_ends_with_the_program(tmp_path: Path) -> None:
    """However the program ends: otherwise it would put a slot into the place of one that the next run uses."""
    directory = tmp_path / "c"
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, directory], stdout=subprocess.PIPE)
    assert program.stdout is not None
    found = Creator()
    found.started.append(int(program.stdout.readline()))
    program.stdout.close()
    assert not slot_path(directory, 0).exists()
    program.kill()
    assert program.wait() == -signal.SIGKILL
    end = time.monotonic() + WAIT_SECONDS
    while not found.is_gone:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not slot_path(directory, 0).exists()
    with mpickpt.open(directory, record=False) as ckpt:
        u = ckpt.array("u", 100)
        assert ckpt.save()
        assert u.size
