"""A session of one rank, without mpirun: what is declared, cut and restored."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import mpickpt
from mpickpt.layout.arrays import RECORD
from mpickpt.messages.inflight import InFlight, Late
from mpickpt.session.driver import Driver
from mpickpt.session.outcome import told_stopped
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, slot_path, spill_path

BLOCK = 256 * 1024


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MPICKPT_")]:
        monkeypatch.delenv(name)


def complete(directory: Path) -> dict[int, int | None]:
    """Step of the complete epoch by slot."""
    return {slot.index: slot.step for slot in Store(directory, crc32c).slots()}


def flip(path: Path, offset: int) -> None:
    """Damage one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def run(directory: Path, stop: int = 25, **options: object) -> dict[str, Any]:
    """Run a small program to step `stop`; give its state."""
    options.setdefault("every", 10)
    with mpickpt.open(directory, **options) as ckpt:
        u = ckpt.array("u", (300, 1000), fill=1.0)
        odd = np.zeros(1000 * 33 + 1, np.uint8)[1:].view(np.int8)
        v = ckpt.protect("v", odd)
        log = ckpt.object("log", [])
        first = None
        for step in ckpt.range(stop):
            first = step if first is None else first
            u += step
            v += 1
            log.append(step)
        return {"u": u.copy(), "v": v.copy(), "log": list(log), "first": first, "restored": ckpt.restored}


# -- cut and restore ---------------------------------------------------------------------------------------------------


def test_goes_on_where_it_was_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "c", stop=25)
    assert capfd.readouterr().err == ""
    assert complete(tmp_path / "c") == {0: 10, 1: 20}
    again = run(tmp_path / "c", stop=33)
    straight = run(tmp_path / "straight", stop=33)
    assert again["first"] == 20
    assert again["restored"] == mpickpt.Restored(2, 20, tmp_path / "c" / "slot-1.h5", 1)
    assert capfd.readouterr().err == f"mpickpt: restored epoch 2 (step 20) of {tmp_path / 'c'} on 1 rank\n"
    assert again["log"] == straight["log"]
    assert np.array_equal(again["u"], straight["u"])
    assert np.array_equal(again["v"], straight["v"])
    assert complete(tmp_path / "c") == {0: 30, 1: 20}


def test_image_is_that_of_the_cut(tmp_path: Path) -> None:
    """What is written after the cut, while it drains, is not in the image."""
    with mpickpt.open(tmp_path, every=1, pool="100%") as ckpt:
        u = ckpt.array("u", 64 * BLOCK // 8)
        for step in ckpt.range(4):
            u[:] = step
    with mpickpt.open(tmp_path, restart=2) as ckpt:
        assert (ckpt.array("u", 64 * BLOCK // 8) == 1.0).all()
        assert ckpt.restored is not None
        assert ckpt.restored.step == 2


def test_no_slot_no_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    with mpickpt.open(tmp_path) as ckpt:
        assert ckpt.restored is None
    assert capfd.readouterr().err == ""


def test_never_begins_anew_and_keeps_the_old_epoch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, stop=25)
    result = run(tmp_path, stop=5, restart="never")
    assert result["first"] == 0
    assert "starts from the beginning; epoch 2 in" in capfd.readouterr().err
    assert complete(tmp_path) == {0: 10, 1: 20}
    run(tmp_path, stop=15, restart="never")
    assert {slot.index: slot.epoch for slot in Store(tmp_path, crc32c).slots()} == {0: 3, 1: 2}


def test_restart_from_a_given_epoch(tmp_path: Path) -> None:
    run(tmp_path, stop=25)
    assert run(tmp_path, stop=12, restart=1)["first"] == 10
    with pytest.raises(mpickpt.NothingToRestore, match=r"epoch 7 was asked for(.|\n)*slot-0.h5: epoch 1 .* is complet"):
        run(tmp_path, restart=7)
    with pytest.raises(mpickpt.NothingToRestore, match="there are no slots"):
        run(tmp_path / "empty", restart=7)
    assert complete(tmp_path) == {0: 10, 1: 20}


def test_after_a_roll_back_the_restored_epoch_is_protected(tmp_path: Path) -> None:
    run(tmp_path, stop=25)
    run(tmp_path, stop=15, restart=1, every=13)
    assert complete(tmp_path) == {0: 10, 1: 13}


def test_damaged_block_falls_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, stop=25)
    place = Store(tmp_path, crc32c).offsets(1)[0]
    flip(tmp_path / "slot-1.h5", place.arrays[0] + 5 * BLOCK + 17)
    result = run(tmp_path, stop=12)
    told = capfd.readouterr().err
    assert result["first"] == 10
    assert "slot-1.h5: epoch 2 is corrupt: rank 0, array 'u', block 5: wrong checksum" in told
    assert f"restored epoch 1 (step 10) of {tmp_path} on 1 rank; passed over slot-1.h5" in told


@pytest.mark.parametrize("what", ["objects", "record", "truncated", "checksums"])
def test_other_damage_falls_back(tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, stop=25)
    slot = tmp_path / "slot-1.h5"
    place = Store(tmp_path, crc32c).offsets(1)[0]
    if what == "truncated":
        os.truncate(slot, slot.stat().st_size // 2)
    else:
        flip(slot, {"objects": place.objects, "record": place.record + 60, "checksums": place.checksums[1]}[what])
    assert run(tmp_path, stop=12)["first"] == 10
    assert "passed over slot-1.h5" in capfd.readouterr().err


@pytest.mark.parametrize("corrupt", [False, True])
def test_damaged_messages_in_flight_fall_back(tmp_path: Path, corrupt: bool) -> None:
    run(tmp_path, stop=25)
    slot, message = tmp_path / "slot-1.h5", InFlight((Late("0", 0, 7, b"text"),)).to_bytes()
    at = Store(tmp_path, crc32c).offsets(1)[0].record
    record = np.fromfile(slot, RECORD, 1, offset=at)
    record["channels_bytes"], record["channels_crc"], record["channels_spilled"] = len(message), crc32c(message), 1
    record["crc"] = crc32c(record.tobytes()[:-4])
    with slot.open("r+b") as file:
        file.seek(at)
        file.write(record.tobytes())
    spill_path(slot, 0, "channels").write_bytes(message)
    if corrupt:
        flip(spill_path(slot, 0, "channels"), 4)
        assert run(tmp_path, stop=22)["first"] == 10
    else:
        with pytest.raises(mpickpt.LayoutError, match="holds messages in flight, but no rank takes ckpt.comm"):
            run(tmp_path, stop=22)


def test_all_damaged_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, stop=25)
    for index in (0, 1):
        place = Store(tmp_path, crc32c).offsets(index)[0]
        flip(tmp_path / f"slot-{index}.h5", place.arrays[0])
    before = [(tmp_path / f"slot-{i}.h5").read_bytes() for i in (0, 1)]
    with pytest.raises(mpickpt.NothingToRestore, match="epoch 2 is corrupt(.|\n)*epoch 1 is corrupt"):
        run(tmp_path)
    assert before == [(tmp_path / f"slot-{i}.h5").read_bytes() for i in (0, 1)]
    assert run(tmp_path, stop=5, restart="never")["first"] == 0


def test_a_foreign_slot_is_no_reason_to_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "slot-0.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(5000))
    with pytest.raises(mpickpt.NothingToRestore, match="slot-0.h5.*cannot be read as a slot"):
        run(tmp_path)


def test_died_before_the_first_epoch_was_complete(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, stop=15)
    slot = tmp_path / "slot-0.h5"
    at = Store(tmp_path, crc32c).offsets(0)[0].record
    with slot.open("r+b") as file:
        file.seek(at)
        record = np.frombuffer(bytearray(file.read(RECORD.itemsize)), RECORD)
        record["state"] = 1
        raw = record.tobytes()[:-4]
        file.seek(at)
        file.write(raw + crc32c(raw).to_bytes(4, "little"))
    result = run(tmp_path, stop=15)
    assert result["first"] == 0
    assert "begins from the start, as no epoch in" in capfd.readouterr().err
    flip(slot, at + 60)  # a corrupt record, on the other hand, may have been that of a complete epoch
    with pytest.raises(mpickpt.NothingToRestore, match="The record of rank 0 is corrupt"):
        run(tmp_path)


def test_epoch_numbers_go_on(tmp_path: Path) -> None:
    run(tmp_path, stop=25)
    run(tmp_path, stop=45)
    assert {slot.epoch for slot in Store(tmp_path, crc32c).slots()} == {3, 4}


def test_three_slots(tmp_path: Path) -> None:
    run(tmp_path, stop=45, keep=3)
    assert complete(tmp_path) == {0: 40, 1: 20, 2: 30}


def test_slots_are_private(tmp_path: Path) -> None:
    run(tmp_path, stop=15)
    assert slot_path(tmp_path, 0).stat().st_mode & 0o777 == 0o600


def test_one_program_at_a_time(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path), pytest.raises(mpickpt.InUseError, match="in use by process"):
        mpickpt.open(tmp_path)
    mpickpt.open(tmp_path).close()


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_fill(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        assert (ckpt.array("zeros", (3, 4)) == 0).all()
        assert ckpt.array("zeros2", 5).shape == (5,)
        scalar = ckpt.array("scalar", (3, 4), np.int16, fill=7)
        assert scalar.dtype == np.int16
        assert (scalar == 7).all()
        assert (ckpt.array("row", (3, 4), fill=np.arange(4)) == np.arange(4)).all()
        assert (ckpt.array("called", (3, 4), fill=lambda a: a.fill(2)) == 2).all()
        with pytest.raises(mpickpt.UsageError, match="must fill the array that it gets"):
            ckpt.array("returned", (3, 4), fill=lambda a: a + 1)
        assert ckpt.array("page", (3, 4)).ctypes.data % 4096 == 0
        assert ckpt.array("none", (0, 4)).shape == (0, 4)


def many(ckpt: mpickpt.Session, seed: int) -> dict[str, np.ndarray]:
    """Arrays of all sorts, filled at random; what is restored wins."""
    rng = np.random.default_rng(seed)
    kind = np.dtype([("a", "<f4"), ("b", ">i8"), ("c", "S3")])
    room = rng.integers(0, 255, 700_001, dtype=np.uint8)
    arrays = {
        "fortran": np.asfortranarray(rng.random((37, 53))),
        "scalar": np.array(rng.random()),
        "unaligned": room[1:],
        "structured": np.zeros(1000, kind),
        "complex": rng.random((5, 6, 7)) + 1j,
        "flags": rng.random(33) > 0.5,
        "time": rng.integers(0, 10**9, 12).astype("datetime64[s]"),
        "big-endian": rng.integers(0, 9, 7).astype(">u2"),
        "empty": np.zeros((0, 3)),
    }
    arrays["structured"]["b"] = rng.integers(0, 10**9, 1000)
    for name, array in arrays.items():
        assert ckpt.protect(name, array) is array
    return arrays


def test_protect_any_array(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        arrays = many(ckpt, 1)
        saved = {name: array.copy() for name, array in arrays.items()}
        for _ in ckpt.range(2):
            pass
    with mpickpt.open(tmp_path) as ckpt:
        restored = many(ckpt, 2)
        assert ckpt.restored is not None
        for name, array in saved.items():
            assert np.array_equal(array, restored[name]), name


def test_what_cannot_be_protected(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        with pytest.raises(mpickpt.LayoutError, match="'a' is not contiguous"):
            ckpt.protect("a", np.zeros((4, 4))[:, 1])
        constant = np.zeros(4)
        constant.flags.writeable = False
        with pytest.raises(mpickpt.LayoutError, match="'b' is not writable"):
            ckpt.protect("b", constant)
        with pytest.raises(mpickpt.LayoutError, match="needs a numpy array, not list"):
            ckpt.protect("c", [1, 2])  # type: ignore[type-var]
        with pytest.raises(mpickpt.LayoutError, match="cannot be saved as raw bytes"):
            ckpt.protect("d", np.array([object()]))
        with pytest.raises(mpickpt.LayoutError, match="The name 'a/b' will not do"):
            ckpt.array("a/b", 3)
        ckpt.array("e", 3)
        with pytest.raises(mpickpt.LayoutError, match="'e' is taken already"):
            ckpt.object("e", 3)


def test_overlapping_arrays(tmp_path: Path) -> None:
    """They are refused where they are declared, and what is apart on one page is not."""
    both = np.zeros(1000)
    with mpickpt.open(tmp_path, every=1) as ckpt:
        ckpt.protect("middle", both[200:500])
        for name, view, common, of in (
            ("same", both[200:500], "0 to 2399", "0 to 2399"),
            ("half", both[499:], "0 to 7", "2392 to 2399"),
            ("bytes", both.view(np.uint8)[1500:1603], "100 to 102", "0 to 2"),
            ("all", both, "1600 to 3999", "0 to 2399"),
            ("one", both[300:301], "0 to 7", "800 to 807"),
        ):
            told = f"Array '{name}' overlaps array 'middle': bytes {common} of '{name}' are bytes {of} of 'middle'"
            with pytest.raises(mpickpt.LayoutError, match=told):
                ckpt.protect(name, view)
        ckpt.protect("half", both[500:])  # the name is free yet
        ckpt.protect("nothing", both[300:300])
        own = ckpt.array("own", (20, 30))
        with pytest.raises(mpickpt.LayoutError, match="overlaps array 'own': bytes 0 to 239 of 'row' are bytes 960 to"):
            ckpt.protect("row", own[4])
        ckpt.drop("middle")
        ckpt.protect("one", both[300:301])
        for _ in ckpt.range(2):
            both[:] = 7
    with mpickpt.open(tmp_path) as ckpt:
        half, one = np.zeros(500), np.zeros(1)
        ckpt.protect("half", half)
        with pytest.raises(mpickpt.LayoutError, match="'one' overlaps array 'half'"):
            ckpt.protect("one", half[:1])
        assert (half == 7).all()  # it was not restored into the other
        assert ckpt.protect("one", one)[0] == 7


def test_many_arrays_side_by_side(tmp_path: Path) -> None:
    """An array is compared with all others, whatever the order in which they were declared."""
    memory = np.zeros(4000, np.uint8)
    rng = np.random.default_rng(18)
    there: dict[str, tuple[int, int]] = {}
    with mpickpt.open(tmp_path) as ckpt:
        for number in range(400):
            begin = int(rng.integers(0, 3990))
            end = begin + int(rng.integers(1, 10))
            clash = {name for name, (low, high) in there.items() if low < end and begin < high}
            if clash:
                with pytest.raises(mpickpt.LayoutError, match=f"overlaps array '({'|'.join(clash)})'"):
                    ckpt.protect(f"a{number}", memory[begin:end])
            else:
                ckpt.protect(f"a{number}", memory[begin:end])
                there[f"a{number}"] = begin, end
            if number % 3 == 0 and there:
                gone = str(rng.choice(list(there)))
                ckpt.drop(gone)
                del there[gone]
    assert len(there) > 100


def test_changed_program(tmp_path: Path) -> None:
    run(tmp_path, stop=15)
    with mpickpt.open(tmp_path) as ckpt:
        with pytest.raises(mpickpt.LayoutError, match=r"'u' is now float64 \(300, 999\), but epoch 1 of "):
            ckpt.array("u", (300, 999))
        with pytest.raises(mpickpt.LayoutError, match="is now int8"):
            ckpt.protect("v", np.zeros(33000, np.uint8).view(np.int8)[:-1].copy())
        with pytest.raises(mpickpt.LayoutError, match="There is no array 'w' in epoch 1 of .* restart='never'"):
            ckpt.array("w", 3)
        with pytest.raises(mpickpt.LayoutError, match="There is no object 'counter' in epoch 1"):
            ckpt.object("counter", 3)


def test_unclaimed_arrays_are_named(tmp_path: Path) -> None:
    run(tmp_path, stop=15)
    with mpickpt.open(tmp_path, every=10) as ckpt:
        _log = ckpt.object("log", [])
        with pytest.warns(UserWarning, match="Epoch 1 of .* holds u, v, which the program did not ask for") as told:
            next(ckpt.range(1000))
        assert told[0].filename == __file__
        with pytest.raises(mpickpt.LayoutError, match="'u' is in epoch 1, .* Declare it earlier"):
            ckpt.array("u", (300, 1000))


def test_late_dropped_and_resized_arrays(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 100_000, fill=1.0)
        ckpt.object("old", 1, on_rebind="ignore")
        ckpt.step()
        ckpt.step()  # epoch 1
        late = ckpt.array("late", 50, fill=5.0)
        u += 1
        ckpt.step()  # epoch 2
        ckpt.drop("u")
        ckpt.drop("old")
        with pytest.raises(mpickpt.LayoutError, match="There is no array, object or file 'u' to drop"):
            ckpt.drop("u")
        bigger = ckpt.array("u", 200_000, fill=u[0])
        late += 1
        ckpt.step()  # epoch 3
        bigger += 1  # not in the image
        ckpt.step()  # epoch 4 overwrites epoch 2
    with mpickpt.open(tmp_path, restart=3) as ckpt:
        assert (ckpt.array("u", 200_000) == 2).all()
        assert (ckpt.array("late", 50) == 6).all()


def test_session_without_arrays(tmp_path: Path) -> None:
    for _ in range(2):
        with mpickpt.open(tmp_path, every=3) as ckpt:
            done = ckpt.object("done", [])
            for step in ckpt.range(10):
                done.append(step)
            assert done == list(range(10))


# -- objects -----------------------------------------------------------------------------------------------------------


def test_objects(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        rng = ckpt.object("rng", np.random.default_rng(3))
        ckpt.object("count", 0)
        rng.random(7)
        ckpt.step()
        ckpt.set_object("count", 5)
        ckpt.step()
        expected = rng.random(4)
        with pytest.raises(mpickpt.LayoutError, match="There is no object 'counter': declare it"):
            ckpt.set_object("counter", 5)
    with mpickpt.open(tmp_path) as ckpt:
        assert np.array_equal(ckpt.object("rng", np.random.default_rng(99)).random(4), expected)
        assert ckpt.object("count", 0) == 5


def test_objects_that_outgrow_their_room(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        log = ckpt.object("log", [])
        for _ in ckpt.range(4):
            log.append(os.urandom(100_000))
        saved = log[:3]
    assert spill_path(tmp_path / "slot-0.h5", 0).exists()
    with mpickpt.open(tmp_path) as ckpt:
        assert ckpt.object("log", []) == saved


def test_object_that_cannot_be_pickled(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        _u = ckpt.array("u", 1000)
        box: list[Any] = ckpt.object("box", [])
        ckpt.object("good", 1, on_rebind="ignore")
        ckpt.step()
        ckpt.step()
        box.append(threading.Lock())
        with pytest.raises(mpickpt.LayoutError, match="Object 'box' cannot be pickled: .*lock"):
            ckpt.step()
        box.clear()
        ckpt.step()
    assert complete(tmp_path) == {0: 1, 1: 3}


def test_objects_of_another_user_are_not_unpickled(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    run(tmp_path, stop=15)
    os.chown(tmp_path / "slot-0.h5", 12345, -1)
    with mpickpt.open(tmp_path) as ckpt, pytest.raises(mpickpt.StoreError, match="belongs to another user"):
        ckpt.object("log", [])


class Fickle:
    """Unpickles only where it is allowed to."""

    allowed = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not Fickle.allowed:
            raise RuntimeError("not today")

    def __getstate__(self) -> dict[str, Any]:
        return {"a": 1}


def test_object_that_cannot_be_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        _fickle = ckpt.object("fickle", Fickle())
        for _ in ckpt.range(2):
            pass
    monkeypatch.setattr(Fickle, "allowed", False)
    with mpickpt.open(tmp_path) as ckpt, pytest.raises(mpickpt.StoreError, match="cannot be unpickled .*not today"):
        ckpt.object("fickle", None)


# -- steps -------------------------------------------------------------------------------------------------------------


def test_range_is_like_the_builtin(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        assert list(ckpt.range(3)) == [0, 1, 2]
        assert list(ckpt.range(3, 20, 5)) == [3, 8, 13, 18]
        assert list(ckpt.range(30, 20)) == []
        assert ckpt.step() == 19
        with pytest.raises(mpickpt.UsageError, match=r"range\(0, 100\) starts at or below step 19"):
            ckpt.range(100)
        for bad in ((10, 0, -1), (-5, 5)):
            with pytest.raises(mpickpt.UsageError, match="does not count upwards"):
                ckpt.range(*bad)


def test_loops_that_follow_each_other(tmp_path: Path) -> None:
    def program(first: int, second: int) -> list[int]:
        with mpickpt.open(tmp_path, every=10) as ckpt:
            seen = ckpt.object("seen", [])
            for step in ckpt.range(first):
                seen.append(step)
            for step in ckpt.range(first, first + second):
                seen.append(step)
            return seen

    assert program(15, 10) == list(range(25))  # epoch 2 is in the second loop
    assert program(15, 20) == list(range(35))


def test_restored_step_must_be_in_the_range(tmp_path: Path) -> None:
    run(tmp_path, stop=15)
    with mpickpt.open(tmp_path) as ckpt, pytest.raises(mpickpt.UsageError, match="step 10 is not one of range"):
        ckpt.range(0, 100, 3)


def test_step_goes_on_too(tmp_path: Path) -> None:
    for stop, begin in ((25, 0), (40, 20)):
        with mpickpt.open(tmp_path, every=10) as ckpt:
            total = ckpt.protect("total", np.zeros(1))
            steps = [ckpt.step()]
            while steps[-1] < stop:
                total += steps[-1]
                steps.append(ckpt.step())
            assert steps[0] == begin
            assert total[0] == sum(range(stop))


def test_interval(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, interval=0.2) as ckpt:
        _u = ckpt.array("u", 1000)
        begun = time.monotonic()
        for _ in ckpt.range(100):
            time.sleep(0.01)
        intervals = (time.monotonic() - begun) / 0.2
        assert intervals / 3 <= ckpt.stats().cuts <= intervals


def test_environment_wins_over_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPICKPT_DIR", str(tmp_path / "there"))
    monkeypatch.setenv("MPICKPT_EVERY", "7")
    run(tmp_path / "here", stop=10)
    assert complete(tmp_path / "there") == {0: 7, 1: None}
    assert not (tmp_path / "here").exists()


def test_safe_point_with_nothing_to_do_is_cheap(tmp_path: Path) -> None:
    def seconds_of(steps: Iterator[int] | range) -> float:
        began = time.process_time()
        for _ in steps:
            pass
        return time.process_time() - began

    count = 200_000
    with mpickpt.open(tmp_path, every=10**9) as ckpt:
        _u = ckpt.array("u", 1000)
        per_step = min(seconds_of(ckpt.range(k * count, (k + 1) * count)) for k in range(5)) / count
        began = time.process_time()
        for _ in range(count):
            ckpt.step()
        per_call = (time.process_time() - began) / count
    assert per_step < 1e-6
    assert per_call < 2e-6


# -- figures, failures and the end -------------------------------------------------------------------------------------


def test_stats(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 8 * BLOCK // 8)
        assert ckpt.stats() == mpickpt.Stats()
        for _ in ckpt.range(3):
            u += 1
    stats = ckpt.stats()
    assert (stats.cuts, stats.complete, stats.failed, stats.last_complete) == (2, 2, 0, 2)
    assert stats.bytes_written >= 2 * 8 * BLOCK
    assert 0 < stats.blocked_seconds
    assert 0 < stats.drain_seconds


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    """No file may become larger than `nbytes`: the kernel refuses, as a full disk would."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_no_room_at_the_start(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        _u = ckpt.array("u", 8 * BLOCK // 8)
        with (
            largest_file(BLOCK),
            pytest.raises(mpickpt.StoreError, match="slot-0.h5 .* cannot be created: File too large"),
        ):
            ckpt.step()
    assert not list(tmp_path.glob("slot-*"))


def test_no_room_later_fails_the_epoch_and_the_program_goes_on(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        _u = ckpt.array("u", 8 * BLOCK // 8, fill=1.0)
        ckpt.step()
        ckpt.step()  # epoch 1
        while complete(tmp_path)[0] is None:
            time.sleep(0.01)
        ckpt.drop("u")
        _other = ckpt.array("other", 8 * BLOCK // 8, fill=1.0)  # so that slot 1 has to be made again
        with (
            largest_file(BLOCK),
            pytest.warns(RuntimeWarning, match=r"Epoch 2 \(step 2\) failed: .*slot-1.h5.* File too large"),
        ):
            ckpt.step()
        assert complete(tmp_path) == {0: 1, 1: None}
        ckpt.step()  # epoch 3
    stats = ckpt.stats()
    assert (stats.cuts, stats.complete, stats.failed) == (2, 2, 1)
    assert complete(tmp_path) == {0: 1, 1: 3}


def test_failed_drain_fails_the_epoch_and_its_slot_is_used_again(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 8 * BLOCK // 8, fill=1.0)
        for _ in ckpt.range(3):  # epochs 1 and 2
            u += 1
        slot = tmp_path / "slot-0.h5"
        slot.rename(tmp_path / "away.h5")
        with pytest.warns(
            RuntimeWarning, match=r"Epoch 3 \(step 3\) failed on rank 0: .*slot-0.h5: somebody has del.*Epoch 2 stays"
        ) as told:
            ckpt.step()
            ckpt.close()
        assert [warning.filename for warning in told] == [__file__], "it points at the program, not into mpickpt"
        (tmp_path / "away.h5").rename(slot)
    assert ckpt.stats().failed == 1
    assert complete(tmp_path)[1] == 2


def test_a_part_is_a_part(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt, pytest.raises(mpickpt.LayoutError, match=r"'u': part= takes an mpickpt.Part"):
        ckpt.array("u", (4, 5), part=(8, 5))  # type: ignore[arg-type]


def test_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPICKPT_DIR", raising=False)
    with pytest.raises(mpickpt.UsageError, match="No checkpoint directory is given"):
        mpickpt.open(None)  # type: ignore[arg-type]


def test_who_goes_on_after_being_stopped_is_told_again(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        _u = ckpt.array("u", 1000)
        ckpt.step()
        ckpt.request(stop=True)
        for _ in range(2):
            with pytest.raises(mpickpt.Stopped):
                end = time.monotonic() + 20
                while time.monotonic() < end:
                    ckpt.step()
    assert complete(tmp_path)[0] == 1


def test_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(mpickpt.StoreError, match="A file is in the way"):
        mpickpt.open(tmp_path / "file")
    with pytest.raises(mpickpt.UsageError, match="Argument every="):
        mpickpt.open(tmp_path, every=-1)


def test_bad_communicator(tmp_path: Path) -> None:
    for bad in (7, MPI.COMM_NULL):
        with pytest.raises(mpickpt.UsageError, match="comm must be an intracommunicator"):
            mpickpt.open(tmp_path, bad)  # type: ignore[arg-type]


def test_a_closed_session_lets_go_of_the_memory(tmp_path: Path) -> None:
    ckpt = mpickpt.open(tmp_path, every=1)
    u = ckpt.array("u", 100_000)
    protected = ckpt.protect("v", np.ones(100_000))
    memory = [weakref.ref(u.base), weakref.ref(protected)]
    for _ in ckpt.range(3):
        u += 1
    ckpt.close()
    gc.disable()  # whoever opens the next session needs the memory now
    try:
        del u, protected
        assert [ref() for ref in memory] == [None, None]
    finally:
        gc.enable()


def test_closed_session(tmp_path: Path) -> None:
    ckpt = mpickpt.open(tmp_path, every=1)
    u = ckpt.array("u", 1000)
    ckpt.step()
    ckpt.step()
    ckpt.close()
    ckpt.close()
    u += 1
    for call in (
        ckpt.step,
        lambda: ckpt.range(10, 20),
        lambda: ckpt.range(1),
        lambda: ckpt.array("v", 3),
        lambda: ckpt.set_object("o", 1),
        ckpt.__enter__,
    ):
        with pytest.raises(mpickpt.UsageError, match="The session is closed"):
            call()
    assert complete(tmp_path) == {0: 1, 1: None}


def test_a_loop_over_steps_inside_another_one(tmp_path: Path) -> None:
    """The number of a step would not tell the progress any more: a restart would leave steps out."""
    seen = []
    with mpickpt.open(tmp_path, every=100) as ckpt:
        _u = ckpt.array("u", 10)
        with pytest.raises(mpickpt.UsageError, match="Step 1 of a loop comes after step 4 of another one inside it"):
            for outer in ckpt.range(3):
                for inner in ckpt.range(3, 5):
                    seen.append((outer, inner))
        for step in ckpt.range(5, 7):  # one behind the other is as it was
            seen.append((step, step))
    assert seen == [(0, 3), (0, 4), (5, 5), (6, 6)]


def test_what_is_told_at_the_end_when_the_slots_were_deleted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(RuntimeWarning, match="Epoch 1 is gone with slot-0.h5, too"):
        with mpickpt.open(tmp_path, every=1) as ckpt:
            u = ckpt.array("u", 1000)
            for step in ckpt.range(3):
                u += 1
                if step == 1:
                    ckpt.wait()
                    for slot in tmp_path.glob("slot-*.h5"):
                        slot.unlink()
    told, slot = capfd.readouterr().err, tmp_path / "slot-0.h5"
    assert f"Epoch 1, the newest complete one, is gone with {slot}, which somebody has deleted." in told
    assert "goes on" not in told


def test_what_is_told_of_a_stop_when_the_slot_was_deleted(tmp_path: Path) -> None:
    newest = mpickpt.Outcome(3, 30, complete=True, path=tmp_path / "slot-1.h5")
    assert f"epoch 3 is gone with {newest.path}, which somebody has deleted" in told_stopped(False, newest, 3, tmp_path)
    newest.path.touch()
    assert told_stopped(False, newest, 3, tmp_path).endswith(f"epoch 3 of {tmp_path} stays")
    assert "run the same command again to continue" in told_stopped(True, newest, 3, tmp_path)


def test_exception_in_the_block_passes_and_the_drain_is_finished(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 32 * BLOCK // 8)
        ckpt.step()
        ckpt.step()
        u += 1 / 0
    assert complete(tmp_path) == {0: 1, 1: None}
    u += 1


def test_interrupt_while_waiting(tmp_path: Path) -> None:
    """Ctrl-C at a cut that waits for the last drain: the program may go on, and the epochs stay sound."""
    in_step = False

    def interrupt(*_: object) -> None:
        if in_step:
            raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    caught = 0
    try:
        with mpickpt.open(tmp_path, every=1, pool="100%") as ckpt:
            u = ckpt.array("u", 512 * BLOCK // 8)
            for turn in range(12):
                signal.setitimer(signal.ITIMER_REAL, 0.005 if turn % 2 else 0)
                try:
                    in_step = True
                    ckpt.step()
                    in_step = False
                except KeyboardInterrupt:
                    in_step = False
                    caught += 1
                u += 1
            in_step = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    stats = ckpt.stats()
    assert caught > 0
    assert stats.failed == 0
    assert stats.complete >= 5
    assert stats.complete + caught >= 11  # each step but the first was cut or interrupted


def test_a_drain_is_seen_to_while_nothing_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(saved: float, elapsed: float, left: float) -> bool:
        seen.append((saved, elapsed, left))
        return False

    monkeypatch.setattr("mpickpt.session.epochs.should_boost", watch)
    with mpickpt.open(tmp_path, interval=600) as ckpt:
        _u = ckpt.array("u", 1 << 25, fill=1.0)  # more than a disk takes between two polls
        for step in ckpt.range(10**6):
            time.sleep(0.001)
            if step == 40:
                ckpt.request()
            if ckpt.stats().complete:
                break
    assert seen
    assert len(seen) > 1, "at the cut, and at a look thereafter"
    for saved, elapsed, left in seen:
        assert 0 <= saved <= 1 and elapsed + left == pytest.approx(600)


def test_looks_keep_up_with_steps_that_become_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first comes after as many steps as fitted between two; soon after, they are as rare as before."""
    polls: list[float] = []
    fast_path = Driver.fast_path

    def poll(driver: Driver, step: int) -> bool:
        polls.append(time.perf_counter())
        return fast_path(driver, step)

    monkeypatch.setattr(Driver, "fast_path", poll)
    with mpickpt.open(tmp_path, interval=600) as ckpt:
        steps = iter(ckpt.range(10**6))
        for _ in range(60):
            next(steps)
            time.sleep(0.02)
        count = len(polls)
        while len(polls) == count:  # the quick ones begin right after a look
            next(steps)
            time.sleep(0.02)
        begin = time.perf_counter()
        polls.clear()
        while time.perf_counter() < begin + 2:
            next(steps)
            time.sleep(0.0005)
    assert polls[0] - begin < 0.05, "half of what goes by between two polls in slow steps"
    assert len(polls) < 60, "three times as many as in slow steps; if the pace were not found out again, hundreds"


def test_forked_child_is_inert(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 8 * BLOCK // 8, fill=1.0)
        ckpt.step()
        ckpt.step()  # a drain is under way
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads, since Python 3.12
            child = os.fork()
        if child == 0:
            code = 1
            try:
                u[:] = 9
                ckpt.step()
                ckpt.close()
                code = int(ckpt.stats().cuts != 1)
            finally:
                os._exit(code)
        u += 1
        ckpt.step()
        assert os.waitpid(child, 0)[1] == 0
    assert complete(tmp_path) == {0: 1, 1: 2}
    with mpickpt.open(tmp_path) as ckpt:
        assert (ckpt.array("u", 8 * BLOCK // 8) == 2.0).all()


def test_program_that_forgets_to_close(tmp_path: Path) -> None:
    program = (
        "import mpickpt\n"
        f"ckpt = mpickpt.open({str(tmp_path / 'c')!r}, every=1)\n"
        "u = ckpt.array('u', 10**6, fill=3.0)\n"
        "ckpt.step(); ckpt.step()\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=150, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert complete(tmp_path / "c") == {0: 1, 1: None}


def test_two_sessions_at_once_in_one_process(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path / "a", every=1) as one:
        _u = one.array("u", 100)
        one.step()
        with pytest.raises(mpickpt.UsageError, match="another session open in this process"):
            mpickpt.open(tmp_path / "b", every=1)
        one.step()
