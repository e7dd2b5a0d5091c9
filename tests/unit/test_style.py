"""The limits and words that `make lint` holds: it finds what is over them, and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def style() -> ModuleType:
    spec = importlib.util.spec_from_file_location("style", ROOT / ".ci" / "style.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sources_hold_it() -> None:
    told = subprocess.run([sys.executable, ".ci/style.py"], cwd=ROOT, capture_output=True, text=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def python_function(lines: int, docstring: int = 0) -> str:
    text = ['    """Say.'] + ["    more"] * (docstring - 2) + ['    """'] if docstring else []
    return "\n".join(["def f():", *text, *["    x = 1"] * (lines - 1)]) + "\n"


@pytest.mark.parametrize(("lines", "docstring", "faults"), [(60, 0, 0), (60, 50, 0), (61, 0, 1), (61, 5, 1)])
def test_a_function_has_60_lines_without_its_docstring(
    style: ModuleType, lines: int, docstring: int, faults: int
) -> None:
    assert len(list(style.python_sizes(python_function(lines, docstring)))) == faults


@pytest.mark.parametrize(("lines", "faults"), [(300, 0), (301, 1)])
def test_a_class_has_300_lines(style: ModuleType, lines: int, faults: int) -> None:
    assert len(list(style.python_sizes("class C:\n" + "    x = 1\n" * (lines - 1)))) == faults


@pytest.mark.parametrize(("lines", "faults"), [(60, 0), (61, 1)])
@pytest.mark.parametrize("head", ["static int f(int a) {", "mpk_session *\nf(void) {", "class C {\n    void f() {"])
def test_c_functions(style: ModuleType, head: str, lines: int, faults: int) -> None:
    indent = "    " if "class" in head else ""
    text = f"{head}\n" + f"{indent}    x();\n" * (lines - 2) + f"{indent}}}\n" + ("};\n" if indent else "")
    assert len(list(style.c_sizes(text))) == faults


def test_a_file_has_400_lines(style: ModuleType, tmp_path: Path) -> None:
    for lines, faults in ((400, 0), (401, 1)):
        (tmp_path / "x.py").write_text("x = 1\n" * lines)
        assert len(list(style.sizes(tmp_path / "x.py"))) == faults


@pytest.mark.parametrize(
    ("line", "faults"),
    [
        ("an epoch that is decided", 0),
        ("an epoch that is set" + "tled, a page that is ar" + "med", 2),
        ("th { position: sticky }", 0),
        ("a stic" + "ky page", 1),
        ("alarm, armada, unharmed", 0),
        ("In the midst" + " of a step", 1),
    ],
)
def test_words(style: ModuleType, tmp_path: Path, line: str, faults: int) -> None:
    (tmp_path / "x.md").write_text(f"{line}\n")
    found = list(style.words(tmp_path / "x.md"))
    assert len(found) == faults
    assert all("say " in fault for fault in found)
