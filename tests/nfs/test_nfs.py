"""Checkpoints on NFS, of ranks on two nodes: in a virtual machine, as the kernel of this one may lack NFS."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import machine

GUEST = Path(__file__).parent / "guest"
LIMIT = 1200  # seconds


@pytest.mark.timeout(LIMIT + 60)
def test_two_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := machine.missing():
        pytest.skip(reason)
    script = tmp_path / "script"
    script.write_text(
        f". {GUEST}/nodes.sh\n"
        f"cd {GUEST}\n"
        f"exec {sys.executable} -m pytest -v --tb=short --color=no -p no:cacheprovider --timeout=400 two_nodes.py\n"
    )
    code, told = machine.run(script, tmp_path, LIMIT)
    with capsys.disabled():
        print(told)
    assert code == 0
