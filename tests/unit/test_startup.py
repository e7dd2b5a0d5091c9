"""What is imported when: only what is used. The test checks modules, because times vary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mpickpt

HEAVY = ("h5py", "rich", "matplotlib", "mpi4py", "numpy", "h5netcdf", "xarray")


def imported(code: str, folder: Path) -> set[str]:
    """Give the heavy packages that are there after `code` was run in an interpreter of its own."""
    told = f"{code}\nprint('*', *[name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys\n{told}"], cwd=folder, capture_output=True, text=True, timeout=150
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.rpartition("*")[2].split())


def command(*arguments: str) -> str:
    return (
        "from mpickpt.cli.main import main\n"
        f"try: main({list(arguments)})\n"
        "except SystemExit as error: assert not error.code, error.code"
    )


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import mpickpt", ""),
        ("import mpickpt; mpickpt.StoreError", ""),
        ("import mpickpt; mpickpt.open", "numpy mpi4py"),
        ("import mpickpt; mpickpt.Checkpoint", "numpy h5py"),
        (command("--help"), ""),
        (command("run", "--help"), "numpy mpi4py"),
        (command("ls", "--help"), "numpy h5py"),
        (command("ls", "empty"), "numpy h5py"),
        (command("ls", "saved"), "numpy h5py rich"),
        (command("ls", "--json", "saved"), "numpy h5py"),
        (command("verify", "saved"), "numpy h5py"),
        (command("report", "--help"), "numpy h5py"),
        (command("report", "--json", "saved"), "numpy h5py"),
    ],
)
def test_only_what_is_used_is_imported(tmp_path: Path, code: str, allowed: str) -> None:
    (tmp_path / "empty").mkdir()
    with mpickpt.open(tmp_path / "saved", every=1) as ckpt:
        _u = ckpt.array("u", 10)
        for _ in ckpt.range(2):
            pass
    assert imported(code, tmp_path) <= set(allowed.split())


def test_all_names_are_there() -> None:
    for name in mpickpt.__all__:
        assert getattr(mpickpt, name).__module__.startswith("mpickpt.")
    assert set(mpickpt.__all__) <= set(dir(mpickpt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mpickpt.nothing
