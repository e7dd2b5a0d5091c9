"""A lazy restart of one rank, without mpirun: the arrays are there at once, and no data are trusted unchecked."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpickpt
from mpickpt.restart.lazy import Loading
from mpickpt.snapshot import Loader, crc32c
from mpickpt.store import Store

BLOCK = 256 * 1024
ROWS, COLS = 64, BLOCK // 8  # a row is a block
NEVER = 1_000_000


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MPICKPT_")]:
        monkeypatch.delenv(name)


def declare(ckpt: mpickpt.Session) -> dict[str, Any]:
    """Declare arrays of all kinds, and an object."""
    return {
        "u": ckpt.array("u", (ROWS, COLS), fill=lambda a: np.copyto(a, np.arange(a.size).reshape(a.shape))),
        "short": ckpt.array("short", 1000, np.int16, fill=7),
        "empty": ckpt.array("empty", (3, 0)),
        "odd": ckpt.protect("odd", np.ones(3 * BLOCK + 5, np.uint8)[5:]),
        "columns": ckpt.protect("columns", np.asfortranarray(np.arange(60.0).reshape(5, 12))),
        "log": ckpt.object("log", []),
    }


def advance(state: dict[str, Any], step: int) -> None:
    """Do a step: some of each array is rewritten, most of it is not."""
    state["u"][step % ROWS] *= 1.0 + 1.0 / (step + 3)
    state["short"] += 1
    state["odd"][step::100] += 1
    state["columns"][1] += step
    state["log"].append(step)


def run(directory: Path, stop: int, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Run to step `stop`; give the state."""
    with mpickpt.open(directory, every=10, **options) as ckpt:
        state = declare(ckpt)
        for step in ckpt.range(stop):
            advance(state, step)
        return {name: value.copy() for name, value in state.items()}


def expect(found: dict[str, Any], stop: int) -> None:
    """Compare with the same steps without a checkpoint in them."""
    with mpickpt.open("unused", restart="never", interval="1d") as ckpt:
        wanted = declare(ckpt)
        for step in range(stop):
            advance(wanted, step)
        for name, value in wanted.items():
            assert np.array_equal(found[name], value), name


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def flip(path: Path, offset: int) -> None:
    """Damage one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def damage(directory: Path, array: int, block: int) -> None:
    """Flip a bit in the newest epoch, in slot 1."""
    flip(directory / "slot-1.h5", Store(directory, crc32c).offsets(1)[0].arrays[array] + block * BLOCK + 99)


def epochs(directory: Path) -> list[int | None]:
    """Give the complete epochs by slot."""
    return [slot.epoch if slot.complete else None for slot in Store(directory, crc32c).slots()]


def test_goes_on_to_the_same_result(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three lazy starts in a row, and an eager one: what each of them saved was right."""
    run(tmp_path / "c", 25)
    for stop in (42, 43, 65):  # the second one ends before its first cut
        expect(run(tmp_path / "c", stop, lazy=True), stop)
    told = capfd.readouterr().err
    assert f"restored epoch 2 (step 20) of {tmp_path / 'c'} on 1 rank, to be read and checked while it runs\n" in told
    assert "restored epoch 4 (step 40)" in told
    assert epochs(tmp_path / "c") == [5, 6]
    expect(run(tmp_path / "c", 66), 66)
    assert "restored epoch 6 (step 60) of" in capfd.readouterr().err


def test_arrays_are_there_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `array` gives needs no loader; what `protect` restores is read by then."""
    run(tmp_path / "c", 25)
    monkeypatch.setattr(Loading, "finish", lambda self: None)
    with mpickpt.open(tmp_path / "c", every=NEVER, lazy=True) as ckpt:
        state = declare(ckpt)
        assert state["log"] == list(range(20))
        for step in ckpt.range(21):
            assert step == 20
    expect(state, 20)


@pytest.mark.parametrize("every", [NEVER, 1], ids=["no cut", "cuts"])
@pytest.mark.parametrize(("array", "block"), [(0, 0), (0, ROWS - 1), (1, 0)])
def test_damage_is_told_and_nothing_is_saved_after_it(tmp_path: Path, array: int, block: int, every: int) -> None:
    directory = tmp_path / "c"
    run(directory, 25)
    damage(directory, array, block)
    name = ["u", "short"][array]
    with (
        pytest.raises(mpickpt.CorruptionError, match=rf"rank 0, array '{name}', block {block}: .*--no-lazy") as found,
        mpickpt.open(directory, every=every, lazy=True) as ckpt,
    ):
        state = declare(ckpt)
        for step in ckpt.range(60):
            advance(state, step)
    error = found.value
    assert (error.rank, error.array, error.block, error.epoch) == (0, name, block, 2)
    assert error.path == directory / "slot-1.h5"
    assert epochs(directory) == [1, 2]
    expect(run(directory, 30), 30)  # eagerly: from the older epoch
    assert epochs(directory) == [1, 3]


def test_damage_is_told_while_the_program_runs(tmp_path: Path) -> None:
    """At a safe point, long before a cut or the end."""
    run(tmp_path / "c", 25)
    damage(tmp_path / "c", 0, 40)
    ckpt = mpickpt.open(tmp_path / "c", every=NEVER, lazy=True)
    declare(ckpt)
    limit = time.monotonic() + 60
    with pytest.raises(mpickpt.CorruptionError, match="array 'u', block 40"), ckpt:
        for _ in ckpt.range(NEVER):
            time.sleep(0.01)
            assert time.monotonic() < limit, "nothing was told in a minute"


def test_damage_in_what_is_read_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An array to protect is checked when it is restored; objects are before anything is agreed on."""
    run(tmp_path / "c", 25)
    damage(tmp_path / "c", 3, 1)
    with (
        pytest.raises(mpickpt.CorruptionError, match="array 'odd', block 1"),
        mpickpt.open(tmp_path / "c", every=1, lazy=True) as ckpt,
    ):
        declare(ckpt)
    flip(tmp_path / "c" / "slot-1.h5", Store(tmp_path / "c", crc32c).offsets(1)[0].objects)
    expect(run(tmp_path / "c", 15, lazy=True), 15)
    assert "restored epoch 1 (step 10)" in capfd.readouterr().err


def test_arrays_stay_when_the_block_was_left(tmp_path: Path) -> None:
    """Whoever writes to the slot after that: all is in memory of its own."""
    run(tmp_path / "c", 25)
    with pytest.raises(KeyError), mpickpt.open(tmp_path / "c", every=NEVER, lazy=True) as ckpt:
        state = declare(ckpt)
        ckpt.step()
        raise KeyError
    place = Store(tmp_path / "c", crc32c).offsets(1)[0]
    with (tmp_path / "c" / "slot-1.h5").open("r+b") as file:
        file.seek(place.arrays[0])
        file.write(bytes(ROWS * BLOCK))
    expect(state, 20)


def test_late_dropped_and_resized_arrays(tmp_path: Path) -> None:
    run(tmp_path / "c", 25)
    with mpickpt.open(tmp_path / "c", every=10, lazy=True) as ckpt:
        state = declare(ckpt)
        for step in ckpt.range(45):
            advance(state, step)
            if step == 22:
                ckpt.drop("short")
                state["short"] = ckpt.array("short", 50, np.int16)
    expect({**state, "short": np.full(1000, 7 + 45, np.int16)}, 45)
    assert epochs(tmp_path / "c") == [3, 4]
    with mpickpt.open(tmp_path / "c", every=10) as ckpt:
        assert np.array_equal(ckpt.array("short", 50, np.int16), np.full(50, 40 - 23))


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPICKPT_LAZY", "yes")
    with mpickpt.open(tmp_path / "c", lazy=False) as ckpt:
        assert ckpt.options.lazy
    monkeypatch.delenv("MPICKPT_LAZY")
    with mpickpt.open(tmp_path / "c") as ckpt:
        assert not ckpt.options.lazy


def test_loader(tmp_path: Path) -> None:
    """What sessions do not come across."""
    path = tmp_path / "file"
    content = np.random.default_rng(1).bytes(10 * 4096 + 7)
    path.write_bytes(content)
    sums = np.array([crc32c(content[at : at + 4096]) for at in range(0, len(content), 4096)], np.uint32)
    loader = Loader(path, 4096)
    with pytest.raises(OSError) as found:
        Loader(path, 4096)
    assert found.value.errno == errno.EBUSY
    with pytest.raises(OSError) as found:
        loader.map(4096, len(content), sums)
    assert found.value.errno == errno.ENODATA
    with pytest.raises(ValueError, match="fewer checksums"):
        loader.map(0, len(content), sums[:-1])
    memory = loader.map(0, len(content), sums)
    loader.boost(True)
    assert loader.wait(150)
    now = loader.progress()
    assert (now.nbytes, now.nbytes_loaded, now.corrupt, now.errno) == (len(content), len(content), None, 0)
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        loader.progress()
    assert memory.tobytes() == content
