"""The documents are correct: their programs run, their commands and messages exist, their links have targets.

A block of Python continues the last one of its page, unless a comment on the line before it says otherwise:

    <!-- run in a session of its own -->    `ckpt` is a new session
    <!-- tests/unit/test_x.py runs these lines -->
    <!-- not run: why -->
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
from handed_out import handed_out
from make_epoch import rows, write_epoch
from messages import messages
from mpi4py import MPI

import mpickpt
from mpickpt import errors
from mpickpt.cli.main import VERBS, parser
from mpickpt.layout.arrays import RECORD
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("jobs/*.md")]
EACH_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

PYTHON = re.compile(r"^(?:<!-- ([^>]*) -->\n)?```py\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN_SESSION = "run in a session of its own"
LAUNCHED = r"(?:\$ )?(?:\w+=\S+ )*(?:(?:mpirun|mpiexec|srun)(?: -\w+ \S+)* )?(?:python -m )?mpickpt ([a-z].*)"


class Done:
    """A condition that comes true when it was looked at three times."""

    looks = 0

    def __bool__(self) -> bool:
        self.looks += 1
        return self.looks > 3


def known() -> dict[str, object]:
    """What the pages take as known."""
    names: dict[str, object] = {"np": np, "mpickpt": mpickpt, "comm": MPI.COMM_WORLD, "directory": "some.ckpt"}
    names |= {"rows": 6, "cols": 5, "low": 0, "high": 6, "v": np.zeros(7), "done": Done()}
    return {**names, "load_initial": lambda array: array.fill(1.0)}


def python_blocks(document: Path) -> list[str]:
    """Give the blocks that are to be run here, each as a program or the next piece of one."""
    found = []
    for note, text in PYTHON.findall(document.read_text()):
        if note == OWN_SESSION:
            found.append(f'with mpickpt.open("own-{len(found)}.ckpt") as ckpt:\n{indent(text, "    ")}')
        elif not note:
            found.append(text)
        elif test := re.fullmatch(r"(tests/\S+\.py) runs these lines", note):
            assert document.name in (ROOT / test[1]).read_text()
        else:
            assert re.fullmatch(r"not run: .+", note), f"{document}: what is <!-- {note} -->?"
    return found


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if python_blocks(path)], ids=lambda path: path.name)
def test_programs_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = rows(4)
    arrays = [{spec.name: np.zeros(spec.shape, spec.dtype) for spec in rank.arrays} for rank in layout.ranks]
    (tmp_path / "walk.ckpt").mkdir()
    write_epoch(Store(tmp_path / "walk.ckpt", crc32c), 0, layout, arrays, epoch=7)
    program = "".join(python_blocks(document)).replace("100_000", "25")
    exec(compile(program, document, "exec"), known())


def test_a_program_by_hand_and_its_checkpointed_twins_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hand, twin, taken_over, export = python_blocks(ROOT / "docs" / "from-dumps.md")
    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    results = []
    for program in (by_hand, twin, taken_over, by_hand, twin, taken_over):  # the second time each goes on from its end
        exec(compile(program, "docs/from-dumps.md", "exec"), variables)
        results.append(variables["u"])
    assert isinstance(results[0], np.ndarray) and results[0].any()
    for result in results[1:]:
        np.testing.assert_array_equal(results[0], result)
    assert variables["ckpt"].restored.step == 950  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.glob("*-0.h5")) == ["dump-000900-0.h5", "dump-000950-0.h5"]
    exec(compile(export, "docs/from-dumps.md", "exec"), variables)
    np.testing.assert_array_equal(np.load("drift-0.npy"), mpickpt.Checkpoint("drift.ckpt").rank(0)["u"][:])


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Make the parser of one verb."""
    parser = argparse.ArgumentParser(f"mpickpt {verb}", allow_abbrev=False)
    import_module(f"mpickpt.cli.{verb}").add_arguments(parser)
    return parser


def shell_lines(text: str) -> Iterator[str]:
    """Go through the lines of all blocks of code that are not Python."""
    text = PYTHON.sub("", text).replace("\\\n", " ")
    for fenced in re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from fenced.splitlines()
    yield from re.findall(r"^ {4}(.*)$", text, re.MULTILINE)


@EACH_DOCUMENT
def test_commands_exist(document: Path) -> None:
    text = document.read_text()
    for line in shell_lines(text):
        if found := re.match(LAUNCHED, line.strip()):
            verb, *arguments = shlex.split(re.split(r" [|;&>]", found[1])[0], comments=True)
            assert verb in VERBS, line
            verb_parser(verb).parse_args([argument.replace("$?", "75") for argument in arguments])
    for span in re.findall(r"`([^`\n]+)`", PYTHON.sub("", text)):  # in a sentence, where arguments are left out
        if found := re.match(LAUNCHED, span):
            verb, *arguments = found[1].split()
            assert verb in VERBS, span
            options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
            assert set(options) <= set(re.findall(r"--[a-z-]+", verb_parser(verb).format_help())), span


def texts() -> Iterator[str]:
    """Go through all texts in the sources, with an ellipsis for what is put in."""
    for source in (ROOT / "mpickpt").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                yield re.sub("…+", "…", text)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for source in (ROOT / "native" / "src").glob("*.c"):
        for literals in re.findall(r'(?:"(?:[^"\\\n]|\\.)*"\s*)+', source.read_text()):
            yield "".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', literals))


def troubleshooting() -> list[str]:
    """Give the messages that the page explains, as they stand in its first columns."""
    cells = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    return [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]


def test_the_messages_in_troubleshooting_exist() -> None:
    beginnings = troubleshooting()
    assert len(beginnings) > 150
    assert len(set(beginnings)) == len(beginnings)
    sources = list(texts())
    missing = [text for text in beginnings if not any(m.startswith(re.sub("(: )?…$", "", text)) for m in sources)]
    assert missing == []


def test_each_message_is_in_troubleshooting() -> None:
    rows = [".*".join(map(re.escape, text.removeprefix("mpickpt: ").split("…"))) for text in troubleshooting()]
    for row in rows:
        assert re.search(r"\w{3}", row), f"{row!r} would do for any message"
    missing = {text: where for text, where in messages().items() if not any(re.match(row, text) for row in rows)}
    assert missing == {}, "each message needs a row in docs/troubleshooting.md"


def test_the_messages_are_found_in_the_sources() -> None:
    found = messages()
    assert len(found) > 150
    for text, where in (
        ("… is not a directory.", "cli/places.py"),  # raised
        ("Epoch … (step …) failed: …", "session/epochs.py"),  # warned of
        ("stopped as asked, but no epoch in … became complete", "session/performer.py"),  # what a function returns
        ("starts from the beginning; epoch … in … stays until a new epoch is complete", "restart/choose.py"),
        ("restored epoch … (step …) of … on …", "restart/choose.py"),  # what a function returns
        ("Rank … has written nothing yet.", ""),  # what a property returns, in the parts of a text without words
    ):
        assert found[text].startswith(where)


def test_the_api_page_names_all_that_is_public() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    told = re.findall(r"^\.\. auto\w+:: (\w+)(?:\(\))?$", text, re.MULTILINE)
    assert sorted(told) == sorted(mpickpt.__all__)


def entries() -> set[object]:
    """Give the classes and functions that have an entry in the reference."""
    found: set[object] = set()
    for path in re.findall(r"^\.\. auto\w+:: ([\w.]+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE):
        module, _, name = path.rpartition(".")
        found.add(getattr(import_module(module or "mpickpt"), name))
    return found


def test_each_class_that_a_program_is_handed_is_on_the_api_page(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        comm = ckpt.comm
        request = comm.isend(1, comm.rank)
        message = comm.mprobe(comm.rank)
        message.recv()
        request.wait()
    handed = handed_out(type(comm), type(request), type(message))
    told = entries()
    assert {kind.__name__ for kind in handed} >= {"StoredArray", "ArrayInfo", "Outcome", "Box", "TrackedMessage"}
    missing = {kind.__name__: place for kind, place in handed.items() if kind not in told}
    assert missing == {}, "each class that a program is handed needs an entry in docs/api.md"


def test_the_errors_and_their_exit_codes_are_on_the_api_page() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BaseException)}
    kinds = {kind for kind in kinds if kind.__module__ == errors.__name__}
    assert kinds <= entries()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {name: int(code) for name, code in rows} == {kind.__name__: kind.exit_code for kind in kinds}


def test_decision_records_are_listed_and_have_the_same_sections() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| (\d{3}) \| \[(.+)\]\((.+)\) \|$", (folder / "index.md").read_text(), re.MULTILINE)
    records = sorted(path for path in folder.glob("*.md") if path.name != "index.md")
    assert sorted(name for _, _, name in listed) == [path.name for path in records]
    for number, title, name in listed:
        text = (folder / name).read_text()
        assert name.startswith(f"{number}-") and text.startswith(f"# {number}. {title}\n")
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings[:2] == ["Context", "Decision"] and "Consequences" in headings, name
        assert set(headings[2:]) <= {"Consequences", "Measured", "Tried and left"}, name
    assert [number for number, _, _ in sorted(listed)] == [f"{i:03}" for i in range(1, len(records) + 1)]


def test_plain_h5py_reads_a_slot_as_the_format_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", (6, 5), fill=3.0, part=mpickpt.Part((6, 5), start=(0, 0)))
        for step in ckpt.range(2):
            u[:] = step
    text = (ROOT / "docs" / "format.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    variables: dict[str, object] = {}
    exec(compile(program, "docs/format.md", "exec"), variables)
    assert capsys.readouterr().out == "epoch 1 cut at step 1 complete\n"
    np.testing.assert_array_equal(variables["u"], np.zeros((6, 5)))


def test_the_table_of_the_record_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (\d+) \|", (ROOT / "docs" / "format.md").read_text(), re.MULTILINE)
    sizes = {"8 bytes": 8, "32 bytes": 32, "u64": 8, "u32": 4, "i32": 4}
    told = {name: (sizes[kind], int(offset)) for name, kind, offset in rows}
    assert RECORD.fields is not None
    assert told == {name: (field[0].itemsize, field[1]) for name, field in RECORD.fields.items()}


@EACH_DOCUMENT
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@EACH_DOCUMENT
def test_files_that_are_named_exist(document: Path) -> None:
    """From the root, or from the package, where the sources are; the log of changes names what was there once."""
    if document.name != "CHANGELOG.md":
        named = re.findall(r"(?<![\w/.])[a-z_0-9]+(?:/[a-z_0-9]+)+\.(?:py|[ch]|md)\b", document.read_text())
        tops = ROOT, ROOT / "mpickpt", document.parent
        assert not [name for name in named if not any((top / name).exists() for top in tops)]


def test_the_verbs_and_options_are_those_of_the_parser() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(VERBS)
    told: dict[str, set[str]] = {verb: {"--json"} for verb in VERBS}
    for verb in ("run", "sbatch", "requeue"):
        assert f"`{verb}`" in text.partition("have no `--json`")[0][-60:]
        told[verb].clear()
    for verb, rest in re.findall(r"^    (?:mpirun -n \d )?mpickpt (\w+) (.*)$", text, re.MULTILINE):
        told[verb] |= set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest.partition("#")[0]))
        words = [word for word in rest.partition("#")[0].split() if word != "--help"]
        parser(verb).parse_args([verb, *words])  # a SystemExit if it is not understood
    for verb in set(VERBS) - {"run"}:  # its options are in docs/quickstart.md
        (choices,) = (action for action in parser(verb)._actions if action.dest == "verb")
        assert isinstance(choices.choices, dict)
        options = {name for action in choices.choices[verb]._actions for name in action.option_strings}
        assert told[verb] == options - {"-h", "--help"}, verb
