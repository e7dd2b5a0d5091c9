"""The output of --json is correct: the fields of each verb are compared with known files and figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpickpt
from mpickpt.cli.main import main
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

UNITS = {"ms": 1e-3, "s": 1.0, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Epochs 1 and 2, cut at the steps 10 and 20, of an array of 100 x 200."""
    with mpickpt.open(tmp_path / "c", every=10) as ckpt:
        part = mpickpt.Part((100, 200), (0, 0), local=np.s_[1:-1, :])
        u = ckpt.array("u", (102, 200), fill=1.0, part=part)
        _own = ckpt.array("own", 7)
        for step in ckpt.range(25):
            u += step
    return tmp_path / "c"


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(word) for word in arguments] + ["--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_ls(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "ls", directory)
    assert (found["directory"], found["holder"], found["progress"]) == (str(directory), None, None)
    for number, epoch in enumerate(found["epochs"]):
        path = directory / f"slot-{number}.h5"
        assert (epoch["file"], epoch["epoch"], epoch["step"]) == (path.name, number + 1, 10 * (number + 1))
        assert (epoch["state"], epoch["why"], epoch["ranks"], epoch["archived"]) == ("complete", None, 1, False)
        assert epoch["bytes"] == path.stat().st_size
        assert abs(path.stat().st_mtime_ns - epoch["cut_time_ns"]) < 600e9  # the file system tells it less exactly


def test_show(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "show", f"{directory}:1")
    assert (found["file"], found["epoch"], found["step"]) == (str(directory / "slot-0.h5"), 1, 10)
    assert (found["complete"], found["why"], found["packed"], found["block_bytes"]) == (True, None, False, 256 << 10)
    (rank,) = found["ranks"]
    u, own = rank["arrays"]
    assert (u["name"], u["dtype"], u["shape"], u["order"]) == ("u", "float64", [102, 200], "C")
    assert (u["global_shape"], u["global_start"]) == ([100, 200], [0, 0])
    assert (own["global_shape"], own["global_start"]) == (None, None)
    assert (rank["record"]["epoch"], rank["record"]["step"], rank["record"]["rank"]) == (1, 10, 0)


def test_show_tells_times_in_their_units(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = told(capsys, "show", directory)["ranks"][0]["record"]
    assert main(["show", str(directory)]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    shown = [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) (m?s)\b", row)]
    expected = [record[name] / 1e9 for name in ("drain_ns", "blocked_ns", "stall_ns")]
    assert shown == pytest.approx(expected, rel=0.06, abs=6e-5)
    assert expected[0] > expected[1] > 0


def test_verify(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "verify", directory)["files"]
    assert [(file["file"], file["epoch"], file["damage"]) for file in found] == [
        (str(directory / f"slot-{number}.h5"), number + 1, []) for number in (0, 1)
    ]
    arrays = 8 * (102 * 200 + 7)
    assert all(arrays <= file["bytes"] < arrays + 1000 for file in found)
    assert main(["verify", str(directory)]) == 0
    for line in capsys.readouterr().out.splitlines():
        figures = [float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+) ([a-zA-Z]+)", line)[-3:]]
        nbytes, seconds, rate = figures
        assert rate == pytest.approx(nbytes / seconds, rel=0.2), line


def test_diff(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "diff", f"{directory}:1", f"{directory}:2", status=1)
    assert (found["a"], found["b"]) == (str(directory / "slot-0.h5"), str(directory / "slot-1.h5"))
    by_name = {array["name"]: array for array in found["arrays"]}
    assert (by_name["u"]["differs"], by_name["own"]["differs"]) == (True, False)
    assert by_name["u"]["largest"] == sum(range(10, 20))
    only = told(capsys, "diff", f"{directory}:1", f"{directory}:1")
    assert (only["differ"], only["objects"], only["channels"]) == (False, [], [])


def test_export_and_archive(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "u.npy"
    found = told(capsys, "export", directory, out)
    assert (found["file"], found["arrays"], found["bytes"]) == (str(out), ["u"], out.stat().st_size)
    assert (found["epoch"], found["step"]) == (2, 20)
    found = told(capsys, "archive", f"{directory}:1", "--compress")
    made = directory / "epoch-1.h5"
    assert found == {"file": str(made), "epoch": 1, "bytes": made.stat().st_size, "how": "compressed"}


def test_archive_wants_a_directory_that_exists(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name, reason in (("nothing", "There is no file or directory"), ("file", "is not a directory.")):
        assert main(["archive", str(directory), "--to", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err
    (tmp_path / "kept").mkdir()
    found = told(capsys, "archive", directory, "--to", tmp_path / "kept")
    assert found["file"] == str(tmp_path / "kept" / "epoch-2.h5")


def test_prune(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = (directory / "slot-0.h5").stat().st_blocks * 512
    for dry in (True, False):
        found = told(capsys, "prune", directory, "--keep", "1", *(["--dry-run"] if dry else []))
        assert found == {
            "deleted": [{"file": str(directory / "slot-0.h5"), "epoch": 1}],
            "kept": [2],
            "bytes": taken,
            "dry_run": dry,
        }
        assert (directory / "slot-0.h5").exists() == dry


@pytest.mark.parametrize("stop", [False, True])
def test_trigger(tmp_path: Path, capsys: pytest.CaptureFixture[str], stop: bool) -> None:
    with mpickpt.open(tmp_path, every=10):
        found = told(capsys, "trigger", tmp_path, *(["--stop"] if stop else []))
        assert found["stop"] is stop
        assert found["asked"].startswith("process ")
        assert (tmp_path / "trigger").read_text() == ("stop" if stop else "cut")


def test_a_damaged_record_makes_the_verbs_fail(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(directory, crc32c)
    with (directory / "slot-1.h5").open("r+b") as file:
        file.seek(store.offsets(1)[0].record + 16)
        file.write(b"\xff")
    for arguments in (["ls", directory], ["show", directory / "slot-1.h5"], ["verify", directory]):
        found = told(capsys, *arguments, status=1)
        assert "The record of rank 0 is corrupt." in json.dumps(found), arguments
    assert told(capsys, "show", directory)["epoch"] == 1  # the newest complete one


def test_show_of_an_epoch_that_is_not_in_the_slot(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", f"{directory}/slot-0.h5:99"]) == 1
    assert "There is no epoch 99 in" in capsys.readouterr().err


def test_diff_tells_a_from_b(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("float64", "float32"):
        with mpickpt.open(tmp_path / dtype, every=1) as ckpt:
            _u = ckpt.array("u", 10, dtype)
            for _ in ckpt.range(2):
                pass
    assert main(["diff", str(tmp_path / "float64"), str(tmp_path / "float32")]) == 1
    assert "u: float64 here, float32 there" in capsys.readouterr().out
