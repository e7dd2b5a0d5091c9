"""Archives that are made beside the program, and deleted by themselves: real sessions, with copies held up at will."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpickpt
from mpickpt.cli.main import main
from mpickpt.errors import InUseError, StoreError, UsageError
from mpickpt.options import resolve
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.session import archiver
from mpickpt.session.session import Session
from mpickpt.signals.forks import inherit_descriptor
from mpickpt.snapshot import Copier, crc32c
from mpickpt.store import Store, clones
from mpickpt.store.retention import Retention

CELLS = 100_000


def archives(directory: Path) -> list[int]:
    """List the archived epochs, each of which has to be valid and to hold what the program had at its cut."""
    found = []
    for path in sorted(directory.glob("epoch-*.h5"), key=lambda path: int(path.stem.removeprefix("epoch-"))):
        checkpoint = Checkpoint(path)
        assert checkpoint.verify() == []
        assert path.stat().st_mode & 0o777 == 0o600
        assert np.unique(checkpoint.rank(0)["u"][...]) == [checkpoint.step]
        found.append(checkpoint.epoch)
    return found


def opened(directory: Path, **options: Any) -> Session:  # noqa: ANN401
    return mpickpt.open(directory, **({"every": 1, "archive_every": 1e-6, "record": False} | options))


def steps(session: Session, number: int, then: Callable[[int], object] = lambda step: None) -> None:
    """Take steps, each epoch of which is decided before the next one, and call `then` inside each."""
    u = session.array("u", CELLS, fill=0.0)
    for step in session.range(number):
        session.wait()
        then(step)
        u[:] = step + 1


def settle(session: Session) -> None:
    """Wait for the archive in progress, if there is one."""
    made = session._ending._archiver
    assert made is not None
    if made._thread is not None:
        made._thread.join(60)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold copies up until the event is set, and have none cloned."""
    event, copy = threading.Event(), archiver._copy

    def copy_when_set(copier: Copier, source: Path, target: Path) -> None:
        assert event.wait(60)
        copy(copier, source, target)

    monkeypatch.setattr(archiver, "_copy", copy_when_set)
    monkeypatch.setattr(mpickpt.store.archive, "_clone", lambda source, target: False)
    yield event
    event.set()


def test_archives_come_and_go(tmp_path: Path) -> None:
    """Those that were made by hand stay, and so do the slots: neither are counted."""
    c = tmp_path / "c"
    with opened(c, keep_archives=2) as ckpt:

        def then(step: int) -> None:
            settle(ckpt)
            if step == 3:
                (c / "archives").unlink()  # as if they had been made by hand

        steps(ckpt, 8, then)
        assert len(list(c.glob("slot-*.h5"))) == 3
    assert archives(c) == [2, 3, 6, 7]
    assert (c / "archives").read_text() == "epoch-5.h5\nepoch-6.h5\nepoch-7.h5\n"
    assert not list(c.glob("*.new"))
    with opened(c, restart=2) as ckpt:
        assert ckpt.restored is not None
        assert ckpt.restored.path.name == "epoch-2.h5"


def test_one_is_due_at_first_and_then_by_the_time_of_the_newest(tmp_path: Path) -> None:
    """Over the runs of a program, each of which may be shorter than the time between two archives."""
    c = tmp_path / "c"
    for last in (3, 5):
        with opened(c, archive_every="1h") as ckpt:
            steps(ckpt, last, lambda _: settle(ckpt))
        assert archives(c) == [1]
    os.utime(c / "epoch-1.h5", (time.time() - 3300,) * 2)  # the next one may come late
    with opened(c, archive_every="1h") as ckpt:
        steps(ckpt, 8, lambda _: settle(ckpt))
    assert archives(c) == [1, 5]
    os.utime(c / "epoch-5.h5", (time.time() + 1e6,) * 2)  # by a clock that was wrong
    with opened(c, archive_every="1h") as ckpt:
        steps(ckpt, 10, lambda _: settle(ckpt))
    assert archives(c) == [1, 5]


def test_a_late_copy_holds_up_no_epoch(tmp_path: Path, held: threading.Event) -> None:
    """Its slot is pinned meanwhile, and the archive that is due is skipped with a sentence, once."""
    c = tmp_path / "c"
    with opened(c) as ckpt:

        def then(step: int) -> None:
            if step == 12:
                held.set()
                settle(ckpt)

        with pytest.warns(RuntimeWarning) as told:
            steps(ckpt, 13, then)
        stats = ckpt.stats()
        assert (stats.complete, stats.failed) == (12, 0)
    assert len(told) == 1
    assert "Epoch 2 (step 2) is not archived: epoch 1 is still being copied to" in str(told[0].message)
    assert archives(c) == [1]
    slots = [slot.epoch for slot in Store(c, crc32c).slots()]
    assert sorted(epoch or 0 for epoch in slots) == [1, 11, 12]


def test_with_two_slots_a_late_copy_is_given_up(
    tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There they are cloned, as a rule; where that fails, the slot is needed."""
    monkeypatch.setattr(archiver, "clones", lambda *_: True)
    with opened(tmp_path / "c", keep=2, archive_every="1h") as ckpt:

        def then(step: int) -> None:
            if step == 2:
                held.set()
                settle(ckpt)

        with pytest.warns(
            RuntimeWarning, match=r"Epoch 1 \(step 1\) is not archived: its copy was late, and with keep=2"
        ):
            steps(ckpt, 5, then)
        assert ckpt.stats().failed == 0
    assert archives(tmp_path / "c") == []
    assert not list((tmp_path / "c").glob("*.new"))


def test_how_many_slots_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve({"dir": "c", "archive_every": "1h"}, {}).keep == 3
    assert resolve({"dir": "c", "archive_every": "1h", "keep": 2}, {}).keep == 2
    assert resolve({"dir": "c"}, {"MPICKPT_KEEP_ARCHIVES": "4", "MPICKPT_ARCHIVE_TO": "a"}).keep == 2
    found = resolve({"dir": "c"}, {"MPICKPT_KEEP_ARCHIVES": "4"}, {"archive_to": "a"}, base=tmp_path)
    assert (found.keep_archives, found.archive_to, found.archive_every) == (4, tmp_path / "a", None)
    for name, value in (("archive_every", "often"), ("keep_archives", 0), ("archive_to", "")):
        with pytest.raises(UsageError, match=name):
            resolve({"dir": "c", name: value}, {})
    if clones(tmp_path):
        monkeypatch.setattr(archiver, "clones", lambda *_: False)
    with pytest.raises(UsageError, match="archive_every needs at least 3 slots here, and keep is 2"):
        opened(tmp_path / "c", keep=2)
    assert not list((tmp_path / "c").glob("clone*"))
    with mpickpt.open(tmp_path / "c"):
        pass  # nothing is locked


def test_the_end_waits_for_no_copy(tmp_path: Path, held: threading.Event, capsys: pytest.CaptureFixture[str]) -> None:
    c = tmp_path / "c"
    with opened(c, archive_every="1h") as ckpt:
        threading.Timer(0.5, held.set).start()
        steps(ckpt, 3)
    assert "the archive of epoch 1 was not finished before the session ended" in capsys.readouterr().err
    assert archives(c) == []
    assert not list(c.glob("*.new"))


def test_storage_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its directory stays locked until the process ends, as something may still be written there."""
    monkeypatch.setattr(archiver, "END_SECONDS", 0.1)
    with opened(tmp_path / "c", archive_every="1h", archive_to=tmp_path / "to") as ckpt:
        steps(ckpt, 3)
        made = ckpt._ending._archiver
        assert made is not None
        thread, fd = made._thread, made._store.lock_descriptor
    assert "the archive of epoch 1 was not finished before the session ended" in capsys.readouterr().err
    with pytest.raises(InUseError):
        Store(tmp_path / "to", crc32c).lock()
    held.set()
    assert thread is not None
    assert fd is not None
    thread.join(60)
    inherit_descriptor(fd)
    os.close(fd)


def test_another_directory(tmp_path: Path) -> None:
    c, to = tmp_path / "c", tmp_path / "far" / "archives"
    with opened(c, archive_to=to, keep_archives=1) as ckpt:
        steps(ckpt, 4, lambda _: settle(ckpt))
        with pytest.raises(InUseError, match="archives of"):
            Store(to, crc32c).lock()
    assert archives(to) == [3]
    assert not list(c.glob("epoch-*"))
    assert main(["verify", str(to / "epoch-3.h5")]) == 0
    with opened(tmp_path / "other", archive_to=to) as ckpt, pytest.warns(RuntimeWarning, match="is of another run"):
        steps(ckpt, 5, lambda _: settle(ckpt))
    assert Checkpoint(to / "epoch-3.h5").verify() == []


def test_what_cannot_be_archived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, the slot was overwritten, the directory is none: a sentence each, and the program goes on."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        opened(tmp_path / "c", archive_to=tmp_path / "file")
    with opened(tmp_path / "c", archive_every="1h") as ckpt:
        monkeypatch.setattr(archiver, "free_bytes", lambda _: 5 << 10)
        with pytest.warns(RuntimeWarning, match=r"Epoch 1 .* has room for 5.0 KiB, and .* are needed. Make room"):
            steps(ckpt, 4, lambda _: settle(ckpt))
        monkeypatch.undo()
        assert ckpt.stats().failed == 0
    with opened(tmp_path / "d", archive_every="1h") as ckpt:
        monkeypatch.setattr(archiver, "is_unchanged", lambda *_: False)
        with pytest.warns(RuntimeWarning, match="slot-0.h5 was overwritten while it was copied. The program goes on"):
            steps(ckpt, 4, lambda _: settle(ckpt))
    for name in "cd":
        assert archives(tmp_path / name) == []
        assert not list((tmp_path / name).glob("*.new"))


def test_a_crash_leaves_no_half_archive(tmp_path: Path) -> None:
    """The process is killed while it copies; the next run deletes what is left, and only that."""
    program = (
        "import sys, time, mpickpt\n"
        "from mpickpt import store\n"
        "store.archive._clone = lambda *_: False\n"
        "with mpickpt.open('c', every=1, archive_every=1e-6, keep_archives=2, record=False) as ckpt:\n"
        "    u = ckpt.array('u', 4 << 20, fill=0.0)\n"
        "    for step in ckpt.range(10**9):\n"
        "        ckpt.wait()\n"
        "        u[:] = step + 1\n"
    )
    (tmp_path / "app.py").write_text(program)
    c = tmp_path / "c"
    (tmp_path / "c").mkdir()
    (c / "epoch-99.h5.9.new").write_text("somebody else's")
    caught = 0
    for _ in range(20):
        with subprocess.Popen([sys.executable, "app.py"], cwd=tmp_path, stderr=subprocess.DEVNULL) as run:
            deadline = time.monotonic() + 60
            while not list(c.glob("epoch-*.h5.[1-9][0-9]*.new")):
                assert time.monotonic() < deadline
                assert run.poll() is None
            run.send_signal(signal.SIGKILL)
        caught += len(list(c.glob("epoch-*.h5.[1-9][0-9]*.new")))
        archives(c)
        if caught >= 3:
            break
    assert caught, "no copy was under way when the process was killed"
    with opened(c) as ckpt:
        u = ckpt.array("u", 4 << 20)
        for step in ckpt.range(ckpt.restored.step + 3 if ckpt.restored else 3):
            ckpt.wait()
            settle(ckpt)
            u[:] = step + 1
    assert [path.name for path in c.glob("*.new")] == ["epoch-99.h5.9.new"]


def test_names_in_the_list_lead_nowhere_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "c", crc32c)
    for name in ("c", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "epoch-1.h5").write_text("")
    (tmp_path / "c" / "slot-0.h5").write_text("")
    (tmp_path / "c" / "archives").write_text("../d/epoch-1.h5\nslot-0.h5\n* epoch-1.h5\nepoch-x.h5\nepoch-7.h5 \x00\n")
    retention = Retention(store, 1)
    assert retention.expect(2).name == "epoch-2.h5"
    (tmp_path / "c" / "epoch-2.h5").write_text("")
    retention.prune()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["archives", "epoch-2.h5", "slot-0.h5"]
    assert list((tmp_path / "d").iterdir())
    (tmp_path / "c" / "archives").unlink()
    os.mkfifo(tmp_path / "c" / "archives")
    with pytest.raises(OSError, match="FIFO"):
        retention.expect(3)
