"""`make demo` does what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "demo.py"


@pytest.mark.timeout(400)
def test_the_demo_kills_in_mid_drain_and_ends_with_equal_bits(folder: Path) -> None:
    """Run it as make does; it exits with an error itself if a single bit differs, and leaves nothing behind."""
    done = subprocess.run(
        [sys.executable, DEMO],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "says WRITING" in done.stdout
    assert "restored epoch" in done.stdout
    assert "bit for bit, 0 differ" in done.stdout
    assert not list(folder.glob("mpickpt-demo-*"))
