"""A checkpoint directory that other users can write to: no link redirects a write, and their files do no harm.

Each test creates links or files as another user of the machine could, and checks a file elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_epoch import write_epoch

import mpickpt
from mpickpt.cli.main import main
from mpickpt.errors import StoreError
from mpickpt.layout.arrays import ArraySpec, Layout, RankLayout
from mpickpt.report.files import notes_path, run_name
from mpickpt.report.pictures import draw_svg
from mpickpt.session.triggers import Triggers, leave_file
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, slot_path, spill_path
from mpickpt.texts import visible

draw_svg("", lambda figure: figure.suptitle("x"))  # opens the fonts, so that they are no test's leak

MINE = "nobody but me writes here"


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text(MINE)
    return path


def test_the_lock_is_not_taken_through_a_link(tmp_path: Path, precious: Path) -> None:
    store = Store(tmp_path / "c", crc32c)
    store.directory.mkdir()
    (store.directory / "lock").symlink_to(precious)
    with pytest.raises(StoreError, match=r"cannot be used: Too many .* Nothing is written through a symbolic link"):
        store.lock()
    assert store.holder() is None
    assert precious.read_text() == MINE


def test_what_is_no_file_is_no_lock_and_not_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path, crc32c)
    os.mkfifo(tmp_path / "lock")
    assert store.holder() is None
    with pytest.raises(StoreError, match="A file is in the way"):
        store.lock()


def test_new_files_take_the_place_of_links(tmp_path: Path, precious: Path) -> None:
    directory = tmp_path / "c"
    directory.mkdir()
    for name in ("slot-0.h5.new", "slot-1.h5.new", "slot-0.objects-00000", "slot-1.objects-00000", "epoch-2.h5.new"):
        (directory / name).symlink_to(precious)
    (directory / "epoch-2.objects-00000.new").symlink_to(precious)
    with mpickpt.open(directory, every=1) as ckpt:
        log = ckpt.object("log", [])
        for _ in ckpt.range(3):
            log.append(bytes(100_000))
    assert main(["archive", str(directory)]) == 0
    assert precious.read_text() == MINE
    for path in (spill_path(slot_path(directory, 0), 0), spill_path(directory / "epoch-2.h5", 0)):
        assert path.stat().st_mode & 0o777 == 0o600
        assert not path.is_symlink()


def test_a_slot_that_is_a_link_is_replaced_in_its_turn(tmp_path: Path) -> None:
    def run(steps: int) -> None:
        with mpickpt.open(tmp_path / "c", every=1) as ckpt:
            u = ckpt.array("u", 1000, fill=0.0)
            assert not ckpt.restored or (u == ckpt.restored.step).all()
            for _ in ckpt.range(steps):
                u += 1

    run(3)
    slots = [slot_path(tmp_path / "c", index) for index in range(2)]
    elsewhere = [tmp_path / path.name for path in slots]
    for path, target in zip(slots, elsewhere, strict=True):
        path.rename(target)
        path.symlink_to(target)
    saved = [target.read_bytes() for target in elsewhere]
    run(6)
    assert [target.read_bytes() for target in elsewhere] == saved
    assert not any(path.is_symlink() for path in slots)
    run(8)


def test_a_link_that_comes_while_the_program_runs(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path / "c", every=1) as ckpt:
        u = ckpt.array("u", 1000, fill=0.0)
        for step in ckpt.range(4):
            u += 1
            if step == 2:
                assert ckpt.stats().complete >= 1
                path, target = slot_path(tmp_path / "c", 0), tmp_path / "elsewhere"
                path.rename(target)
                path.symlink_to(target)
                saved = target.read_bytes()
        with pytest.warns(RuntimeWarning, match="a symbolic link in its place, through which nothing is written"):
            ckpt.close()
    assert target.read_bytes() == saved


def test_the_file_of_a_trigger(tmp_path: Path, precious: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_file(tmp_path, stop=True)
    assert (tmp_path / "trigger").stat().st_mode & 0o777 == 0o600
    (tmp_path / "trigger").unlink()
    triggers = Triggers(tmp_path, None, signals=False)
    (tmp_path / "trigger").symlink_to(precious)
    assert triggers.take(1.0) is None
    assert not (tmp_path / "trigger").is_symlink()
    assert "trigger is ignored: only the user of the program, or root" in capsys.readouterr().err
    if os.geteuid() == 0:
        leave_file(tmp_path, stop=True)
        os.chown(tmp_path / "trigger", 12345, 12345)
        assert triggers.take(2.0) is None
    assert capsys.readouterr().err == ""  # it is told once
    leave_file(tmp_path, stop=True)
    assert triggers.take(3.0) is True
    triggers.close()
    assert {path.name for path in tmp_path.iterdir()} == {"precious"}


@pytest.mark.parametrize(("mode", "group", "told"), [(0o757, 0, True), (0o775, 12345, True), (0o755, 12345, False)])
def test_a_directory_that_others_may_write_to(tmp_path: Path, mode: int, group: int, told: bool) -> None:
    directory = tmp_path / "c"
    directory.mkdir()
    if group and os.geteuid() == 0:
        os.chown(directory, -1, group)
    directory.chmod(mode)
    code = "import sys, mpickpt\nfor _ in range(2): mpickpt.open(sys.argv[1]).close()"
    command = [sys.executable, "-c", code, directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    sentence = f"Others may write to the checkpoint directory {directory} (mode {mode:04o}), and so"
    assert done.stderr.count(sentence) == told


WILD = "\x1b[2J\u202egnp.\x07\n<b>"
TAME = r"\x1b[2J\u202egnp.\x07\n<b>"


def test_control_characters_are_visible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visible(WILD) == TAME
    assert visible("Größe in µm: 漢字") == "Größe in µm: 漢字"
    layout = Layout.of([RankLayout((ArraySpec("u", (3,), np.dtype("f8")),))])
    store = Store(tmp_path, crc32c)
    path = write_epoch(store, 0, layout, [{"u": np.zeros(3)}], objects=[{WILD: 1}])
    assert main(["show", str(path)]) == 0
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, f"{WILD} (process 7 on node-7)".encode(), 0)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert main(["ls", str(tmp_path)]) == 0
    with pytest.raises(StoreError, match="2J") as caught:
        store.lock()
    os.close(fd)
    shown = capsys.readouterr().out
    assert shown.count(r"\x1b[2J") == 2
    for text in (shown, str(caught.value)):
        assert not set("\x1b\u202e\x07") & set(text)


HEADER = {
    "note": "run", "format": 1, "rank": 0, "ranks": 1, "host": "node-1", "started_ns": 10**18, "every": 5,
    "interval": "", "mtbf": 1.0, "restored": None, "restart_seconds": 0.5, "state_bytes": 9, "block_bytes": 9,
}  # fmt: skip
EPOCH = {
    "note": "epoch", "epoch": 1, "step": 5, "slot": 0, "cut": 1.0, "drained": 2.0, "errno": 0, "waits": [[1.0, 0.5]],
    "blocked": 0.1, "waited": 0.5, "drain": 1.0, "stall": 0.0, "faults": 1, "fault_seconds": 0.1, "late_faults": 0,
    "late_fault_seconds": 0.0, "bytes_written": 9, "bytes_waiting": 1, "bytes_urgent": 1, "blocks_due": 9,
    "blocks_copied": 1,
}  # fmt: skip


def report(tmp_path: Path, header: dict[str, object], epochs: list[dict[str, object]]) -> int:
    path = notes_path(tmp_path, run_name(1, 10**18), 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(note) + "\n" for note in (header, *epochs)))
    return main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")])


def test_a_page_shows_what_a_node_calls_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(tmp_path, HEADER | {"host": WILD}, [EPOCH]) == 0
    text = (tmp_path / "page.html").read_text()
    assert r"\x1b[2J\u202egnp.\x07\n&lt;b&gt;" in text
    assert not set("\x1b\u202e\x07") & set(text)


FLOATS = [name for name, value in (HEADER | EPOCH).items() if isinstance(value, float)]
COUNTS = [name for name, value in (HEADER | EPOCH).items() if type(value) is int and name not in ("format", "rank")]


EXTREME = (-1, -(2**53), 2**53, 10**18, 10**25, 10**400, 1e308, float("nan"), float("inf"), "x")


@pytest.mark.parametrize("value", EXTREME)
def test_impossible_notes_end_in_a_sentence(tmp_path: Path, value: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Each value in each place, and in all places of a kind at once: a page, or a sentence that names file and line."""
    for names in (FLOATS, COUNTS):
        for changed in [[name] for name in names] + [names]:
            values = dict.fromkeys(changed, value)
            notes = [{name: values.get(name, old) for name, old in note.items()} for note in (HEADER, EPOCH)]
            path = notes_path(tmp_path, run_name(1, 10**18), 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(note) + "\n" for note in notes))
            pictures = [] if changed is names else ["--json"]
            status = main(["report", str(tmp_path), "-o", str(tmp_path / "page.html"), *pictures])
            told = capsys.readouterr().err
            assert status == 0 or (status == 1 and "rank-00000.jsonl is corrupt" in told and told.count("\n") == 1)


def test_notes_without_end_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = notes_path(tmp_path, run_name(1, 10**18), 0)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # as long as a file may be, without a block of its own
    assert main(["report", str(tmp_path)]) == 1
    assert "notes do not become longer than 4194304 bytes." in capsys.readouterr().err
    for header in ({"host": "x" * 256}, {"rank": 3}, {"ranks": 0}):
        assert report(tmp_path, HEADER | header, [EPOCH]) == 1
        assert "rank-00000.jsonl is corrupt" in capsys.readouterr().err
