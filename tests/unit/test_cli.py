"""The command line: programs run as under Python, tables, and errors of one sentence."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from make_epoch import write_epoch

import mpickpt
from mpickpt.cli import ls
from mpickpt.cli.main import VERBS, main, parser, verb_module
from mpickpt.cli.pickles import types_in
from mpickpt.layout.arrays import RECORD, Layout, RankLayout
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, Store
from mpickpt.units import human_bytes, human_seconds

REPORT = """
import json, sys
print(json.dumps({"argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__}))
"""
STEPS = """
import sys
import mpickpt
with mpickpt.open("code", every=4, keep=2) as ckpt:
    u = ckpt.array("u", (100, 200), fill=1.0)
    for step in ckpt.range(int(sys.argv[1])):
        u += 1
print(ckpt.stats().cuts, ckpt.options.directory.name, ckpt.options.keep, ckpt.restored and ckpt.restored.step)
"""


def mpickpt_command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m mpickpt`` in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MPICKPT_", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-m", "mpickpt", *arguments],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=150,
    )


# -- run ---------------------------------------------------------------------------------------------------------------


def test_program_finds_what_python_would_give_it(tmp_path: Path) -> None:
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "report.py").write_text("import helper\n" + REPORT)
    (tmp_path / "apps" / "helper.py").write_text("")
    found = mpickpt_command("run", "apps/report.py", "--every", "3", "-x", "--", "y", cwd=tmp_path)
    assert found.stderr == ""
    assert json.loads(found.stdout) == {
        "argv": ["apps/report.py", "--every", "3", "-x", "--", "y"],
        "path": str(tmp_path / "apps"),
        "name": "__main__",
        "file": "apps/report.py",
    }


def test_module(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "report.py").write_text(REPORT)
    found = mpickpt_command("run", "--keep", "3", "-m", "pack.report", "a", "--keep", cwd=tmp_path)
    told = json.loads(found.stdout)
    assert told["argv"] == [str(tmp_path / "pack" / "report.py"), "a", "--keep"]
    assert (told["name"], told["path"]) == ("__main__", str(tmp_path))


def test_command_line_over_environment_over_code(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(STEPS)
    assert mpickpt_command("run", "app.py", "10", cwd=tmp_path).stdout == "2 code 2 None\n"
    found = mpickpt_command("run", "app.py", "10", cwd=tmp_path, MPICKPT_DIR="env", MPICKPT_KEEP="3")
    assert found.stdout == "2 env 3 None\n"
    options = ("--dir", "typed", "--every", "3", "--restart", "auto", "--pool", "1MiB")
    found = mpickpt_command("run", *options, "app.py", "10", cwd=tmp_path, MPICKPT_DIR="env", MPICKPT_KEEP="3")
    assert found.stdout == "3 typed 3 None\n"
    found = mpickpt_command("run", "--dir", "typed", "--restart", "2", "app.py", "10", cwd=tmp_path)
    assert found.stdout == "1 typed 2 6\n"
    assert found.stderr == f"mpickpt: restored epoch 2 (step 6) of {tmp_path / 'typed'} on 1 rank\n"


def test_uncaught_exception(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f():\n    return 1 / 0\n\nf()\n")
    found = mpickpt_command("run", "app.py", cwd=tmp_path)
    assert found.returncode == 1
    lines = found.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert 'File "app.py", line 4, in <module>' in lines[1]  # no frames of runpy before it
    assert lines[-2:] == [
        "ZeroDivisionError: division by zero",
        "mpickpt: rank 0 of 1 ended by an uncaught ZeroDivisionError, and so all ranks end",
    ]


@pytest.mark.parametrize(
    ("statement", "code", "told"),
    [("sys.exit()", 0, ""), ("sys.exit(0)", 0, ""), ("sys.exit(7)", 7, ""), ("sys.exit('no input')", 1, "no input\n")],
)
def test_exit_code_is_kept(tmp_path: Path, statement: str, code: int, told: str) -> None:
    (tmp_path / "app.py").write_text(f"import sys\n{statement}\n")
    found = mpickpt_command("run", "app.py", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (code, told)


def test_interrupted_program(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("raise KeyboardInterrupt\n")
    found = mpickpt_command("run", "app.py", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (130, "mpickpt: rank 0 of 1 was interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("run", "nothing.py"), 2, "mpickpt: There is no program nothing.py.\n"),
        (("run", "-m", "no.thing"), 2, "mpickpt: There is no module no.thing: No module named 'no'.\n"),
        (("run", "-m", "nothing"), 2, "mpickpt: There is no module nothing.\n"),
        (
            ("run", "--every", "x", "app.py", "1"),
            2,
            "mpickpt: Option --every: 'x' is not a whole number of at least 1.\n",
        ),
        (("run", "--restart", "3", "app.py", "1"), 6, None),
        (("run", "--dir", "app.py", "app.py", "1"), 3, None),
        (("ls", "nothing"), 2, "mpickpt: There is no file or directory nothing.\n"),
        (("ls", "app.py"), 2, "mpickpt: app.py is not a directory.\n"),
        (("show", "app.py"), 1, None),
        (("show", "."), 1, "mpickpt: There is no complete epoch in .. It holds no slots.\n"),
    ],
)
def test_errors_are_sentences(tmp_path: Path, arguments: tuple[str, ...], code: int, told: str | None) -> None:
    (tmp_path / "app.py").write_text(STEPS)
    found = mpickpt_command(*arguments, cwd=tmp_path)
    assert found.returncode == code
    assert found.stderr.startswith("mpickpt: ")
    assert "Traceback" not in found.stderr
    if told is not None:
        assert found.stderr == told


def test_complaint_about_a_call_shows_the_call(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import mpickpt\nckpt = mpickpt.open('c')\nckpt.array('a/b', 3)\n")
    found = mpickpt_command("run", "app.py", cwd=tmp_path)
    assert found.returncode == 1
    assert 'File "app.py", line 3' in found.stderr
    assert str(Path(mpickpt.__file__).parent) not in found.stderr
    assert "The name 'a/b' will not do" in found.stderr


# -- ls and show -------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two epochs of a small program."""
    with mpickpt.open(tmp_path / "c", every=10) as ckpt:
        u = ckpt.array("u", (100, 200), fill=1.0, part=mpickpt.Part((100, 200), (0, 0)))
        _log = ckpt.object("log", ["x"])
        for _ in ckpt.range(25):
            u += 1
    return tmp_path / "c"


def cells(text: str, head: str) -> list[list[str]]:
    """Split the table under the line that begins with `head` into its cells."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(head):
            break
    return [re.split(r"\s{2,}", row.strip()) for row in takewhile(str.strip, lines)]


def test_ls(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "slot-2.h5").write_bytes(b"nonsense")
    assert main(["ls", str(directory)]) == 1
    text = capsys.readouterr().out
    rows = cells(text, "file")
    assert [row[:4] for row in rows[:2]] == [["slot-0.h5", "1", "10", "complete"], ["slot-1.h5", "2", "20", "complete"]]
    assert all(row[5].endswith("ago") and row[6] == "1" for row in rows[:2])
    assert rows[2][:4] == ["slot-2.h5", "-", "-", "unreadable"]
    assert "slot-2.h5: " in text
    assert "cannot be read as a slot" in text


def test_ls_of_an_empty_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"There are no epochs in {tmp_path}.\n"


def test_show(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (directory, directory / "slot-1.h5"):
        assert main(["show", str(path)]) == 0
        text = capsys.readouterr().out
        assert "slot-1.h5: epoch 2, step 20" in text
        assert "u: float64 (100, 200), 156.2 KiB, on 1 rank" in text
        assert "u: float64 (100, 200), 156.2 KiB, cells from (0, 0)" in text
        assert "objects: log (list)" in text
        assert cells(text, "rank")[0][:2] == ["0", "complete"]
    assert main(["show", str(directory / "slot-0.h5")]) == 0
    assert "slot-0.h5: epoch 1, step 10" in capsys.readouterr().out


def test_show_tells_of_messages_in_flight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = Layout(tuple(RankLayout((), channels_room=4096) for _ in range(2)))
    store = Store(tmp_path, crc32c)
    write_epoch(store, 0, layout, [{}, {}])
    write_epoch(store, 1, layout, [{}, {}], epoch=2, channels=[b"", bytes(1536)])
    for slot, told in ((0, None), (1, ["0 B", "1.5 KiB"])):
        assert main(["show", str(tmp_path / f"slot-{slot}.h5")]) == 0
        text = capsys.readouterr().out
        assert ("flight" in text) == (told is not None)
        assert told is None or [row[-1] for row in cells(text, "rank ")] == told


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"mpickpt {version('mpickpt')}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_the_docstring_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = verb_module(verb).__doc__
    assert text is not None
    assert text.partition("\n")[0] == VERBS[verb]
    with pytest.raises(SystemExit) as caught:
        parser(verb).parse_args([verb, "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert text.strip() in told
    assert re.search(rf"^    (mpirun -n \d )?mpickpt {verb} ", told, re.MULTILINE)


def test_every_module_of_a_verb_is_a_verb() -> None:
    folder = Path(main.__code__.co_filename).parent
    verbs = {path.stem for path in folder.glob("*.py") if "def execute(" in path.read_text()}
    assert verbs == set(VERBS)


def test_types_of_objects_are_told_without_unpickling(tmp_path: Path) -> None:
    class Own:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    things = {"rng": np.random.default_rng(1), "array": np.arange(3), "z": 1 + 2j, "own": Own(), "f": np.linalg.norm}
    things |= {"path": Path("x"), "list": [1], "none": None, "error": ValueError("x"), "scalar": np.float32(1)}
    assert types_in(pickle.dumps(things, protocol=5)) == {
        "rng": "numpy.random.Generator",
        "array": "numpy.ndarray",
        "z": "complex",
        "own": f"{os.mkdir.__module__}.mkdir",
        "f": "a reference to numpy.linalg.norm",
        "path": "pathlib.PosixPath" if sys.version_info < (3, 13) else "pathlib._local.PosixPath",
        "list": "list",
        "none": "NoneType",
        "error": "ValueError",
        "scalar": f"{np.float32(1).__reduce__()[0].__module__}.scalar",
    }
    assert not (tmp_path / "made").exists()
    assert types_in(b"") == {}
    for payload in (b"nonsense", pickle.dumps(3), pickle.dumps(things)[:-9]):
        with pytest.raises(ValueError, match="no pickled dictionary"):
            types_in(payload)


def test_human_figures() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40)] == [
        *("0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"),
    ]
    assert [human_seconds(s) for s in (0.0015, 2, 90, 5400, 172800)] == ["1.5 ms", "2.0 s", "1.5 min", "1.5 h", "2.0 d"]


def test_ls_tells_how_far_each_rank_is() -> None:
    records = np.zeros(6, RECORD)
    records["epoch"] = [7, 7, 7, 6, 7, 6]
    records["state"] = [2, 1, 1, 2, 3, 2]
    slot = SlotInfo(Path("slot-0.h5"), 0, world_size=6, records=records)
    assert ls._sentence(slot) == (
        "epoch 7 in progress, of 6 ranks: 2 not cut yet (ranks 3, 5), 2 draining (ranks 1-2), 1 complete (rank 0), "
        "1 failed (rank 4)"
    )


def test_ls_of_a_running_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        _u = ckpt.array("u", 10)
        ckpt.step()
        assert main(["ls", str(tmp_path)]) == 0
        assert "in use by process" in capsys.readouterr().out
    assert main(["ls", str(tmp_path)]) == 0
    assert "in use" not in capsys.readouterr().out
