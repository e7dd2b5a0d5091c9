"""What the documents say holds: their programs run, their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI  # noqa: F401  (starts MPI before the first test, so that its descriptors are no test's leak)

import mpickpt
from mpickpt.cli.main import VERBS, parser
from mpickpt.layout import RECORD

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("jobs/*.md")]


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
    assert capsys.readouterr().out == "epoch 1 cut at step 1 whole\n"
    np.testing.assert_array_equal(variables["u"], np.zeros((6, 5)))


def test_the_table_of_the_record_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (\d+) \|", (ROOT / "docs" / "format.md").read_text(), re.MULTILINE)
    sizes = {"8 bytes": 8, "32 bytes": 32, "u64": 8, "u32": 4, "i32": 4}
    told = {name: (sizes[kind], int(offset)) for name, kind, offset in rows}
    assert RECORD.fields is not None
    assert told == {name: (field[0].itemsize, field[1]) for name, field in RECORD.fields.items()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


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
