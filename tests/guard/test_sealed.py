"""Libraries whose relocations cannot be rewritten: they are left as they are and named, and nothing crashes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("sealed.c")
JOB = Path(__file__).with_name("sealed_job.py")

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, bound when it is loaded, so that its entries are in pages that are made read-only."""
    path = tmp_path_factory.mktemp("sealed") / "libsealed.so"
    options = ["-O1", "-shared", "-fPIC", "-Wl,-z,relro", "-Wl,-z,now"]
    subprocess.run(["cc", *options, "-o", path, SOURCE], check=True, timeout=150)
    return path


def _run(folder: Path, library: Path, how: str) -> tuple[list[str], int]:
    """Give what the job prints, and how often the library is named in a warning."""
    command = [sys.executable, str(JOB), how, str(library)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=150)
    if found.returncode == 77:
        pytest.skip(found.stdout)
    assert found.returncode == 0, (found.returncode, found.stdout, found.stderr)
    warnings = re.findall(r"RuntimeWarning: The memory guard leaves (\S+) alone", found.stderr)
    assert set(warnings) <= {str(library)}, found.stderr
    return found.stdout.splitlines(), len(warnings)


@pytest.mark.parametrize("how", ["before", "last page"])
def test_a_sealed_library_is_left_alone_and_named(tmp_path: Path, library: Path, how: str) -> None:
    """Its pages before those that are sealed, which the kernel had opened when it refused, are read-only as before."""
    lines, warnings = _run(tmp_path, library, how)
    assert lines == ["read: Bad address"] * 3 + ["r--p"]
    assert warnings == 1


def test_a_sealed_library_that_is_loaded_within_a_session_is_named(tmp_path: Path, library: Path) -> None:
    lines, warnings = _run(tmp_path, library, "loaded within")
    assert set(lines) == {"read: Bad address"}
    assert warnings == 1


def test_a_library_that_is_sealed_within_a_session_stays_guarded(tmp_path: Path, library: Path) -> None:
    """Its entries cannot be put back: they lead to the hooks, which hand on, in a next session too."""
    lines, warnings = _run(tmp_path, library, "within")
    assert lines == ["read: all"] * 2 + ["closed: all"] + ["read: all"] * 3
    assert warnings == 0
