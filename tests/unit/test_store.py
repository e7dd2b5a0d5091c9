"""Slots: creation, records, locks, and files that are not slots."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
from make_epoch import record, rows, spans, write_epoch
from prefaces import drop_preface, renew_preface

from mpickpt.errors import InUseError, StoreError
from mpickpt.layout.arrays import PAGE_BYTES, ArraySpec, Layout, RankLayout, RecordState, blocks_in
from mpickpt.snapshot import crc32c
from mpickpt.store import PayloadKind, SlotInfo, Store, read_slot, read_structure, slot_path, spill_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, crc32c)


def test_replacing_a_slot_leaves_no_debris_and_no_old_spill(store: Store) -> None:
    path = write_epoch(
        store, 0, rows(2), [{s.name: np.zeros(s.shape, s.dtype) for s in r.arrays} for r in rows(2).ranks]
    )
    spill_path(path, 1).write_bytes(b"old")
    spill_path(path, 0, "channels").write_bytes(b"old")
    path.with_name("slot-0.h5.new").write_bytes(b"left by a crash")
    others = [spill_path(slot_path(store.directory, 10), 1, kind) for kind in get_args(PayloadKind)]
    for other in others:
        other.write_bytes(b"of another slot")
    store.create(0, rows(3))
    assert {path.name for path in store.directory.iterdir()} == {"slot-0.h5", *(other.name for other in others)}
    assert store.slots()[0].world_size == 3


def complete(store: Store, index: int = 0, epoch: int = 5) -> tuple[Layout, Path]:
    layout = rows(3)
    arrays = [{s.name: np.ones(s.shape, s.dtype) for s in rank.arrays} for rank in layout.ranks]
    return layout, write_epoch(store, index, layout, arrays, epoch=epoch, step=50)


def only(store: Store) -> SlotInfo:
    (slot,) = store.slots()
    return slot


def test_slots_tell_epoch_and_step(store: Store) -> None:
    assert store.slots() == []
    layout, _ = complete(store, 1, epoch=6)
    complete(store, 0, epoch=5)
    store.create(2, layout)
    first, second, third = store.slots()
    assert (first.index, first.epoch, first.step, first.complete, first.why_not) == (0, 5, 50, True, "")
    assert (second.index, second.epoch) == (1, 6)
    assert (third.epoch, third.complete, third.why_not) == (None, False, "Rank 0 has written nothing yet.")
    assert first.digest == layout.digest
    assert (first.world_size, first.block_bytes) == (3, layout.block_bytes)
    assert [slot.newest for slot in (first, second, third)] == [5, 6, 0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"state": RecordState.WRITING, "epoch": 9}, "Rank 1 has not finished epoch 9."),
        ({"state": RecordState.FAILED, "errno": 28}, "Rank 1 could not write epoch 5: No space left on device."),
        ({"state": 8}, "record of rank 1 has the state 8"),
        ({"epoch": 9}, "Rank 0 holds epoch 5 .* and rank 1 epoch 9"),
        ({"run": 8}, "Rank 0 holds epoch 5"),
        ({"step": 51}, "step 50.* and rank 1 epoch 5 .step 51"),
        ({"rank": 2}, "record of rank 1 belongs to another slot"),
        ({"digest": bytes(32)}, "record of rank 1 belongs to another slot"),
    ],
)
def test_an_epoch_is_complete_only_if_all_records_agree(store: Store, change: dict[str, Any], why: str) -> None:
    layout, path = complete(store)
    fields = {"state": RecordState.COMPLETE, "rank": 1, "epoch": 5, "step": 50, "run": 7, "digest": layout.digest}
    with path.open("r+b") as file:
        file.seek(store.offsets(0)[1].record)
        file.write(record(**fields))
        assert only(store).complete
        file.seek(store.offsets(0)[1].record)
        file.write(record(**fields | change))
        file.flush()
        slot = only(store)
        assert not slot.complete
        assert slot.epoch is None
        assert slot.readable
        assert not slot.corrupt
        assert re.search(why, slot.why_not)
    assert only(store).newest == change.get("epoch", 5)


def test_any_flipped_bit_of_a_record_is_noticed(store: Store) -> None:
    _, path = complete(store)
    at = store.offsets(0)[2].record
    rng = np.random.default_rng(3)
    content = path.read_bytes()
    for bit in [0, 8 * PAGE_BYTES - 1, *rng.integers(0, 8 * PAGE_BYTES, 50).tolist()]:
        corrupt = bytearray(content)
        corrupt[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(corrupt)
        slot = only(store)
        assert slot.why_not == "The record of rank 2 is corrupt."
        assert slot.corrupt
        assert slot.newest == 5
        assert int(slot.records["epoch"][2]) == 0


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def newer(path: Path, _: bytes) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 3
        file.attrs["version"] = "9.9"
    renew_preface(path)


def foreign(path: Path, _: bytes) -> None:
    with h5py.File(path, "w") as file:
        file["records"] = np.arange(3)


def without_world_size(path: Path, _: bytes) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["world_size"]
    renew_preface(path)


def other_world_size(path: Path, _: bytes) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["world_size"] = 2**40
    renew_preface(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path, _: put(path, b""), "cannot be read as a slot"),
        (lambda path, _: put(path, b"hello"), "cannot be read as a slot"),
        (lambda path, _: put(path, np.random.default_rng(4).bytes(100_000)), "cannot be read as a slot"),
        (lambda path, content: put(path, content[: len(content) // 2]), "truncated"),
        (lambda path, content: put(path, content[:2000]), "truncated"),
        (lambda path, content: put(path, bytes(1000) + content[1000:]), "cannot be read as a slot"),
        (newer, "newer mpickpt 9.9"),
        (foreign, "another program"),
        (without_world_size, "world_size"),
        (other_world_size, "records do not fit"),
        (lambda path, _: (path.unlink(), path.mkdir()), "cannot be read as a slot: Is a directory"),
        (lambda path, _: (path.unlink(), path.symlink_to("nowhere")), "No such file"),
    ],
)  # fmt: skip
def test_files_that_are_no_slots_say_why(store: Store, spoil: Callable[[Path, bytes], object], why: str) -> None:
    _, path = complete(store, 1)
    complete(store, 0)
    spoil(path, path.read_bytes())
    good, bad = store.slots()
    assert good.complete
    assert not bad.complete
    assert not bad.readable
    assert bad.newest == 0
    assert str(path) in bad.why_not
    assert why in bad.why_not
    assert good.newest == 5
    with pytest.raises(StoreError, match="cannot be read as a slot"):
        store.layout(1)
    if not path.is_dir():
        store.create(1, rows(2))
        assert store.slots()[1].readable


def test_no_flipped_byte_of_the_structure_ends_in_a_traceback(store: Store) -> None:
    """Without a preface, damage in HDF5's own bytes is refused, or does no harm; never taken for another layout."""
    layout, path = complete(store)
    drop_preface(path)
    content = path.read_bytes()
    raw = {page for start, nbytes, _ in spans(path) for page in range(start // 4096, (start + nbytes - 1) // 4096 + 1)}
    own = [n for n in range(len(content)) if n // 4096 not in raw and content[n]]
    refused = 0
    for n in np.random.default_rng(5).choice(own, 300, replace=False).tolist():
        corrupt = bytearray(content)
        corrupt[n] ^= 0x41
        path.write_bytes(corrupt)
        slot = read_slot(path, crc32c)
        assert slot.complete == (not slot.why_not)
        try:
            back, _ = read_structure(path, crc32c)
        except StoreError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert back.digest == layout.digest
    assert refused > 100


def test_other_names_are_not_slots(store: Store) -> None:
    for name in ("slot-x.h5", "slot-1.h5.new", "slot-0.objects-00001", "slot-0.channels-00001", "lock", "other.h5"):
        (store.directory / name).write_bytes(b"")
    assert store.slots() == []


def test_a_directory_serves_one_process_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b", crc32c)
    store.lock()
    store.lock()
    code = (
        "import sys; from pathlib import Path; from mpickpt.store import Store; from mpickpt.snapshot import crc32c\n"
        "try: Store(Path(sys.argv[1]), crc32c).lock()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(store.directory)], capture_output=True, text=True, check=True, timeout=150
        ).stdout

    assert f"InUseError The checkpoint directory {store.directory} is in use by process {os.getpid()} on" in other()
    with pytest.raises(InUseError):
        Store(store.directory, crc32c).lock()
    store.unlock()
    assert other() == ""
    store.lock()
    store.unlock()
    store.unlock()


def in_use_by(store: Store, holder: str) -> int:
    """Lock the directory as another process would; closing the file that it gives lets go."""
    fd = os.open(store.directory / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.pwrite(fd, f"{holder}\n".encode(), 0)
    return fd


OF_A_PROCESS_THAT_DIES = """
import os, subprocess, sys
from pathlib import Path
from mpickpt.snapshot import crc32c
from mpickpt.store import Store
fd = Store(Path(sys.argv[1]), crc32c).lock()
subprocess.Popen(["sleep", "0.7"], pass_fds=[fd])
os._exit(0)
"""


def test_the_lock_of_a_process_that_has_died(store: Store) -> None:
    """A process that it had started has the lock, too, and ends soon after it."""
    subprocess.run([sys.executable, "-c", OF_A_PROCESS_THAT_DIES, store.directory], check=True)
    began = time.monotonic()
    store.lock()
    assert time.monotonic() - began < 8
    store.unlock()


@pytest.mark.parametrize("holder", ["process 7 on node-7", "job 17_3 (process 7 on node-7)"])
def test_the_lock_of_a_machine_that_may_have_died_is_waited_for(
    store: Store, holder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = in_use_by(store, holder)
    timer = threading.Timer(1.0, os.close, [fd])
    timer.start()
    store.lock(patience=60.0)
    timer.join()
    told = capsys.readouterr().err
    assert f"the checkpoint directory {store.directory} is in use by {holder}. If that machine died" in told
    assert "waiting for up to 60 s" in told
    with pytest.raises(InUseError, match=f"is in use by process {os.getpid()} on"):
        Store(store.directory, crc32c).lock()
    store.unlock()


@pytest.mark.parametrize(
    ("holder", "patience", "waits"),
    [
        ("process 7 on node-7", 0.5, True),
        ("process 7 on node-7", 0.0, False),
        (f"process {os.getppid()} on {socket.gethostname()}", 60.0, False),
        (f"job 17_3 (process {os.getppid()} on {socket.gethostname()})", 60.0, False),
        ("", 60.0, False),
    ],
)
def test_a_lock_that_stays_is_an_error(
    store: Store, holder: str, patience: float, waits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = in_use_by(store, holder)
    with pytest.raises(InUseError, match=re.escape(holder or "a process that gives no name")):
        store.lock(patience=patience)
    assert ("waiting" in capsys.readouterr().err) == waits
    os.close(fd)
    store.lock()
    store.unlock()


def test_a_file_in_the_way_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file", crc32c)
    for act in (store.lock, store.slots, lambda: store.create(0, rows(1))):
        with pytest.raises(StoreError, match="file is in the way|Not a directory"):
            act()


@pytest.mark.parametrize(
    "rank", [RankLayout((ArraySpec("u", (2**52,), np.dtype("f8")),)), RankLayout((), channels_room=2**55)]
)
def test_more_bytes_than_the_disk_has(store: Store, rank: RankLayout) -> None:
    huge = Layout.of([rank])
    assert all(blocks_in(spec.nbytes, huge.block_bytes) <= 16_384 for spec in rank.arrays)
    with pytest.raises(
        StoreError, match=r"slot-0.h5 of \d+ bytes.* No space left .*\d+ bytes are needed, \d+ are free.*Make room"
    ) as caught:
        store.create(0, huge)
    assert caught.value.errno == 28
    assert caught.value.path == slot_path(store.directory, 0)
    assert list(store.directory.iterdir()) == []


def test_a_disk_that_ends_anywhere_in_the_file_leaves_no_debris(store: Store) -> None:
    """Whether HDF5's own bytes have no room or the reserved space has none: a limit of the file size acts like both."""
    code = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from mpickpt.errors import StoreError
from mpickpt.layout.arrays import ArraySpec, Layout, RankLayout
from mpickpt.snapshot import crc32c
from mpickpt.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path(sys.argv[1]), crc32c)
layout = Layout(tuple(RankLayout((ArraySpec("u", (1, 8), np.dtype("f8")),)) for _ in range(50)))
open_files = len(os.listdir("/proc/self/fd"))
for limit in (0, 1000, 100_000, 1 << 20, 3 << 20, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        store.create(0, layout)
        outcome = "made"
    except StoreError as error:
        outcome = os.strerror(error.errno)
    print(outcome, os.listdir(sys.argv[1]), len(os.listdir("/proc/self/fd")) - open_files, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.directory)], stdout=subprocess.PIPE, text=True, timeout=150, check=True
    )
    assert done.stdout.splitlines() == ["File too large [] 0"] * 5 + ["made ['slot-0.h5'] 0"]
    assert store.slots()[0].world_size == 50
