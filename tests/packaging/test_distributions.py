"""The distributions of `make dist`: their content and description, and programs that run from them when installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from readme_renderer import markdown

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
MPI = os.environ.get("MPI", "mpich")
KINDS = {"sdist": "*.tar.gz", "wheel": "*.whl"}


def built(kind: str) -> Path:
    """Give the sdist or the wheel."""
    (found,) = (ROOT / ".build" / "dist").glob(KINDS[kind])
    return found


def members(kind: str) -> dict[str, bytes]:
    """Give the files in it by name, those of the sdist without the folder that all are in."""
    if kind == "wheel":
        with ZipFile(built(kind)) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    found = {}
    with tarfile.open(built(kind)) as sdist:
        for member in sdist:
            if stream := sdist.extractfile(member):
                found[member.name.partition("/")[2]] = stream.read()
    return found


def metadata(kind: str) -> Message:
    """Give what a package index is told, in which the long description is the payload."""
    name = "PKG-INFO" if kind == "sdist" else f"mpickpt-{VERSION}.dist-info/METADATA"
    return message_from_bytes(members(kind)[name])


def test_the_sources_are_what_is_tracked() -> None:
    """Whoever has the sources alone can read the pages, run the tests and make the same again."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    packed = members("sdist")
    assert sorted(packed.keys() - {"PKG-INFO"}) == sorted(name for name in tracked if (ROOT / name).is_file())
    for name in ("README.md", "native/src/fault.c", "docs/timeline.svg"):
        assert packed[name] == (ROOT / name).read_bytes()


def test_the_wheel_is_the_package() -> None:
    found = members("wheel")
    own = {name for name in found if not name.startswith(f"mpickpt-{VERSION}.dist-info/")}
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "mpickpt").rglob("*.py")}
    built_here = own - source
    assert source <= own
    assert {re.sub(r"\.cpython.*", ".so", name) for name in built_here} == {
        *("mpickpt/_native.so", "mpickpt/_native.pyi", "mpickpt/include/mpickpt.h", "mpickpt/py.typed"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_long_description_shows(kind: str) -> None:
    """Render it as a package index does, which knows no picture of the sources and drops those that are inline."""
    rendered = markdown.render(str(metadata(kind).get_payload(decode=True), "utf-8"))
    assert rendered
    blocks = [re.sub(r"<[^>]+>", "", block) for block in re.findall(r"<pre.*?</pre>", rendered, re.DOTALL)]
    (drawing,) = (block for block in blocks if "slot-1.h5" in block)
    assert len([line for line in drawing.splitlines() if re.match(r"rank \d +━━━━", line)]) == 4
    assert "█ complete" in drawing and max(map(len, drawing.splitlines())) <= 100
    assert any("comm.Sendrecv(u[1], above," in block for block in blocks)
    assert [picture for picture in re.findall(r"<img[^>]*>", rendered) if 'src="https://' not in picture] == []
    if "urls" in PROJECT:  # there is an address, to which the links can lead
        assert re.findall(r'<a href="(?!https://|#)([^"]*)"', rendered) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_metadata_tell_who_and_what(kind: str) -> None:
    told = metadata(kind)
    assert (told["Name"], told["Version"], told["Author"]) == ("mpickpt", VERSION, "The mpickpt developers")
    assert (told["License-Expression"], told["License-File"]) == ("BSD-3-Clause", "LICENSE")
    assert set(PROJECT["optional-dependencies"]) == set(told.get_all("Provides-Extra", []))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_program_runs_from_what_is_installed(kind: str, tmp_path: Path) -> None:
    """Install it in an environment of its own, outside of the sources, and run the README's program there."""
    environment = tmp_path / "env"
    outside = {name: text for name, text in os.environ.items() if not name.startswith(("MPICKPT_", "PYTHON"))}
    outside.pop("VIRTUAL_ENV", None)

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=outside, capture_output=True, text=True, timeout=350
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    extras = "" if MPI == "system" else f"[{MPI}]"
    run(python, "-m", "pip", "install", "--quiet", f"{built(kind)}{extras}")
    assert run(environment / "bin" / "mpickpt", "--help").startswith("usage: mpickpt")
    shown = run(python, ROOT / "tests" / "first_program.py")
    assert "the same bits as without checkpoints" in shown and str(environment) in shown
