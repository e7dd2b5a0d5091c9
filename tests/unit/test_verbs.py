"""Every verb in every situation ends with a message and the right exit status, never with a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from warm import warm

import mpickpt
from mpickpt.cli import main as main_module
from mpickpt.cli.main import VERBS, main
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

UNPRIVILEGED = Path(__file__).parents[1] / "faults" / "unprivileged.py"
APP = """
import sys, mpickpt
with mpickpt.open("{directory}", every=2) as ckpt:
    u = ckpt.array("u", (60, 70), fill=1.0, part=mpickpt.Part((60, 70), (0, 0)))
    _log = ckpt.object("log", ["x"])
    for step in ckpt.range(7):
        u += 1
        if step == 5 and {wait}:
            ckpt.step  # epochs 1 and 2 were cut
            print("ready", flush=True)
            sys.stdin.read()
"""
SITUATIONS = ("good", "empty", "running", "corrupt", "newer", "random file", "no permission", "missing")
BATCH = {"sbatch", "requeue"}  # what they do is in test_slurm.py

# What each verb is given for a path, and its exit status in each situation, in the order of SITUATIONS.
CASES: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "ls": (["PATH"], (0, 0, 0, 0, 1, 2, 2, 2)),
    "show": (["PATH"], (0, 1, 0, 0, 1, 1, 2, 2)),
    "report": (["PATH", "-o", "OUT.html"], (0, 1, 0, 0, 0, 2, 2, 2)),
    "verify": (["PATH"], (0, 1, 0, 1, 1, 1, 2, 2)),
    "diff": (["PATH", "PATH"], (0, 1, 0, 1, 1, 1, 2, 2)),
    "export": (["PATH", "OUT.h5"], (0, 1, 0, 1, 1, 1, 2, 2)),
    "prune": (["PATH", "--keep", "1"], (0, 1, 2, 0, 1, 2, 2, 2)),
    "archive": (["PATH", "--compress"], (0, 1, 0, 1, 1, 1, 2, 2)),
    "trigger": (["PATH"], (2, 2, 0, 2, 2, 2, 2, 2)),
    "doctor": (["PATH"], (0, 0, 0, 0, 0, 2, 2, 2)),
    "sbatch": (["--dir", "PATH", "APP"], (0, 0, 0, 0, 0, 0, 0, 0)),
    "requeue": (["75", "--dir", "PATH"], (75, 75, 75, 75, 75, 2, 2, 75)),
    "run": (["--dir", "PATH", "APP"], (0, 0, 4, 6, 6, 3, 3, 0)),
}


@dataclass
class Place:
    """A path, and how Python has to be started to look at it."""

    path: Path
    python: tuple[str, ...] = (sys.executable,)


def save(folder: Path, *, wait: bool = False) -> subprocess.Popen[str]:
    """Start the program in a process of its own; it saves epochs 1 to 3 at the steps 2, 4 and 6."""
    text = APP.format(directory=folder, wait=wait)
    return subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder.parent
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with three epochs, to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "c"
    process = save(folder)
    process.communicate(timeout=150)
    assert process.returncode == 0
    return folder


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Make the situation that the test asks for."""
    situation = request.param
    path = tmp_path / "c"
    if situation == "running":
        process = save(path, wait=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Place(path)
        process.communicate(timeout=150)
        assert process.returncode == 0
        return
    if situation in ("good", "corrupt", "newer", "no permission"):
        shutil.copytree(request.getfixturevalue("saved"), path)
    if situation == "empty":
        path.mkdir()
    elif situation == "corrupt":
        for slot in Store(path, crc32c).slots():
            offset = Store(path, crc32c).offsets(slot.index)[0].arrays[0]
            with slot.path.open("r+b") as file:
                file.seek(offset + 100)
                file.write(b"damage")
    elif situation == "newer":
        for slot_file in path.glob("slot-*.h5"):
            with h5py.File(slot_file, "r+") as opened:
                opened.attrs["format_version"] = 99
                opened.attrs["version"] = "9.9"
    elif situation == "random file":
        path.write_bytes(np.random.default_rng(0).bytes(10_000))
    elif situation == "no permission":
        path.chmod(0)
        yield Place(path, (sys.executable, str(UNPRIVILEGED)))
        path.chmod(0o700)
        return
    yield Place(path)


@pytest.mark.parametrize("place", SITUATIONS, indirect=True)
def test_verbs_in_a_situation(place: Place, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each verb in turn, as making a situation takes longer than looking at it; those that change it last."""
    situation = SITUATIONS.index(request.node.callspec.params["place"])
    assert set(CASES) == set(VERBS)
    (tmp_path / "app.py").write_text(APP.format(directory="elsewhere", wait=False))
    names = {"PATH": str(place.path), "OUT.h5": str(tmp_path / "out.h5"), "OUT.html": str(tmp_path / "out.html")}
    names["APP"] = str(tmp_path / "app.py")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MPICKPT_", "SLURM_"))}
    with warm(tmp_path, place.python) as python:
        for verb, (arguments, statuses) in CASES.items():
            given = [verb, *(names.get(word, word) for word in arguments)]
            env = clean | ({"SLURM_JOB_ID": "32", "PATH": str(tmp_path)} if verb == "requeue" else {})
            run = python.run(given, tmp_path, env, patience=150)
            told = f"{given}\n{run.stdout}\n{run.stderr}"
            assert run.returncode == statuses[situation], told
            assert "Traceback" not in told
            assert "�" not in told
            assert "\x1b" not in run.stdout, "colour in a pipe"
            if run.returncode:
                lines = (run.stderr or run.stdout).strip()
                assert lines.endswith((".", ")", "differ", "complete")) or verb == "verify", told
                assert str(place.path) in told or place.path.name in told
            (tmp_path / "out.h5").unlink(missing_ok=True)


def test_tables_fit_into_80_columns(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(saved, tmp_path / "c")
    for given in (["ls"], ["show"], ["verify"], ["doctor"]):
        main([*given, str(tmp_path / "c")])
        text = capsys.readouterr().out.replace(str(tmp_path), "")
        assert max(map(len, text.splitlines())) <= 80, text
        assert "…" not in text


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"run"} - BATCH))
def test_json_is_json(verb: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(saved, tmp_path / "c")
    names = {"PATH": str(tmp_path / "c"), "OUT.h5": str(tmp_path / "out.h5"), "OUT.html": str(tmp_path / "out.html")}
    status = main([verb, "--json", *(names.get(word, word) for word in CASES[verb][0])])
    assert status == CASES[verb][1][0]
    text = capsys.readouterr().out
    assert verb == "trigger" or isinstance(json.loads(text), dict)


def test_no_verb_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["nonsense"], ["prune", "c"], ["prune", "c", "--keep", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(given)
        assert caught.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_exit_statuses() -> None:
    for error, status in (
        (mpickpt.UsageError("x"), 2),
        (mpickpt.InUseError("x"), 2),
        (mpickpt.StoreError("x", errno=13), 2),
        (mpickpt.StoreError("x", errno=5), 1),
        (mpickpt.StoreError("x"), 1),
        (mpickpt.CorruptionError("x"), 1),
        (mpickpt.EpochError("x"), 1),
    ):
        assert main_module.exit_status(error) == status
