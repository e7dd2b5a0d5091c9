"""Files that a program appends to: what is in an epoch, and what a restart leaves of them."""

from __future__ import annotations

import csv
import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import mpickpt


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MPICKPT_")]:
        monkeypatch.delenv(name)


def run(stop: int, **options: object) -> str:
    """Log each step, up to the one before `stop`; give what is in the log."""
    with mpickpt.open("c", **{"every": 10, **options}) as ckpt, ckpt.append("log.txt") as log:
        for step in ckpt.range(stop):
            print("step", step, file=log)
    return Path("log.txt").read_text()


def lines(stop: int, start: int = 0) -> str:
    return "".join(f"step {step}\n" for step in range(start, stop))


def test_a_restart_cuts_back_and_keeps_what_is_cut_off(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(25) == lines(25)
    assert capfd.readouterr().err == ""
    assert run(33) == lines(33)
    assert Path("log.txt.cut-2").read_text() == lines(25, 20)
    assert "mpickpt: rank 0: log.txt: 40 bytes behind the cut of epoch 2 are in log.txt.cut-2 now\n" in (
        capfd.readouterr().err
    )
    assert mpickpt.Checkpoint("c").objects(0) == {"log.txt": {"file": "log.txt", "nbytes": len(lines(30))}}


def test_what_was_kept_is_never_overwritten() -> None:
    run(15)
    for _ in range(3):
        run(18, every=100)
    kept = {path.name: path.read_text() for path in Path().glob("log.txt.cut-*")}
    assert kept == {
        "log.txt.cut-1": lines(15, 10),
        "log.txt.cut-1-2": lines(18, 10),
        "log.txt.cut-1-3": lines(18, 10),
    }


def test_a_fresh_start_begins_with_an_empty_file() -> None:
    """So a run that died before its first epoch leaves nothing in it."""
    Path("log.txt").write_text("of somebody else\n")
    assert run(5) == lines(5)
    assert Path("log.txt.cut-0").read_text() == "of somebody else\n"
    assert run(12, restart="never") == lines(12)


def test_goes_back_to_an_older_epoch() -> None:
    run(35)
    assert run(25, restart=2) == lines(25)
    assert Path("log.txt.cut-2").read_text() == lines(35, 20)


def test_a_file_that_is_too_short_is_an_error() -> None:
    run(25)
    Path("log.txt").write_text(lines(20)[:-1])
    with pytest.raises(mpickpt.StoreError, match=r"Rank 0: log.txt has 149 bytes, but had 150 at the cut of epoch 2"):
        run(30)
    assert Path("log.txt").read_text() == lines(20)[:-1]
    Path("log.txt").unlink()
    with pytest.raises(mpickpt.StoreError, match="has 0 bytes, but had 150"):
        run(30)
    Path("log.txt").write_text(lines(20))
    assert run(30) == lines(30)


def test_files_of_bytes_and_what_the_standard_library_writes() -> None:
    def write(stop: int) -> list[bytes]:
        with mpickpt.open("c", every=4) as ckpt:
            data = ckpt.append("data.bin", "ab")
            table = ckpt.append(Path("table.csv"), encoding="utf-16-le", name="the table")
            handler = logging.StreamHandler(ckpt.append("messages"))
            logger = logging.Logger("test")
            logger.addHandler(handler)
            for step in ckpt.range(stop):
                data.write(np.full(step, step).tobytes())
                csv.writer(table).writerow([step, "é", step**2])
                logger.warning("at %d", step)
            data.close()
            table.close()
            handler.stream.close()
        return [Path(name).read_bytes() for name in ("data.bin", "table.csv", "messages")]

    write(10)
    assert mpickpt.Checkpoint("c").objects(0)["the table"]["file"] == "table.csv"
    resumed = write(20)
    shutil.rmtree("c")
    assert resumed == write(20)


def test_a_file_may_be_closed_dropped_and_declared_again() -> None:
    for stop in (25, 45):
        with mpickpt.open("c", every=10) as ckpt:
            once, log = ckpt.append("once.txt"), ckpt.append("log.txt")
            for step in ckpt.range(stop):
                if step == 3:
                    once.write("done\n")
                    once.close()
                if step == 31:
                    ckpt.drop("log.txt")
                    log.close()
                    Path("log.txt").unlink()
                    log = ckpt.append("log.txt")
                print(step, file=log, flush=True)
            log.close()
            once.close()
    assert Path("once.txt").read_text() == "done\n"
    assert Path("log.txt").read_text() == "".join(f"{step}\n" for step in range(31, 45))
    assert mpickpt.Checkpoint("c").objects(0)["log.txt"]["nbytes"] == 27
    with mpickpt.open("c") as ckpt, pytest.raises(mpickpt.LayoutError, match="no array, object or file 'x' to drop"):
        ckpt.drop("x")


def test_a_full_disk_fails_the_epoch_and_nothing_is_lost() -> None:
    """What cannot be flushed at a cut stays in the buffer, and is in the file when there is room again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with mpickpt.open("c", every=10, record=False) as ckpt:
            log = ckpt.append("log.txt")
            with (
                log,
                pytest.warns(RuntimeWarning, match=r"Epoch 2 \(step 20\) .*: log.txt cannot be flushed: File too larg"),
            ):
                for step in ckpt.range(32):
                    if step == 19:
                        ckpt.wait()
                        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
                    if step == 21:
                        resource.setrlimit(resource.RLIMIT_FSIZE, before)
                    print("step", step, file=log)
            ckpt.wait()
            assert ckpt.stats().failed == 1 and ckpt.stats().complete == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, action)
    assert run(33) == lines(33)


def test_what_cannot_be_appended_to_is_refused() -> None:
    with mpickpt.open("c", every=10) as ckpt:
        with pytest.raises(mpickpt.UsageError, match="'a', or of bytes, 'ab', and not 'w'"):
            ckpt.append("log.txt", "w")  # type: ignore[call-overload]
        with pytest.raises(mpickpt.StoreError, match="no-folder/log.txt cannot be appended to: No such file"):
            ckpt.append("no-folder/log.txt")
        with pytest.raises(mpickpt.StoreError, match="/dev/null cannot be appended to: Invalid argument"):
            ckpt.append("/dev/null")
        ckpt.append("log.txt").close()
        with pytest.raises(mpickpt.LayoutError, match=r"'log.txt' is taken"):
            ckpt.append("log.txt")
        with pytest.raises(mpickpt.LayoutError, match=r"log.txt is appended to more than once, by rank 0: each"):
            ckpt.append("./log.txt", name="other").close()
            next(ckpt.range(1))


def test_an_object_is_no_file(capfd: pytest.CaptureFixture[str]) -> None:
    with mpickpt.open("c", every=1) as ckpt:
        value = ckpt.object("log.txt", [1])
        for _ in ckpt.range(2):
            value.append(2)
    with mpickpt.open("c") as ckpt, pytest.raises(mpickpt.LayoutError, match="'log.txt' was saved as an object"):
        ckpt.append("log.txt")
    with mpickpt.open("c") as ckpt, pytest.raises(mpickpt.LayoutError, match=r"There is no object 'new.txt' in epoch"):
        ckpt.append("new.txt")
    assert not Path("log.txt").exists() and not Path("new.txt").exists()
