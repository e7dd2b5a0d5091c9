"""The benchmark still runs: all contenders, one and two ranks, a state so small that the figures say nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench.py"
PATTERNS = {"all", "tenth", "nothing"}


def test_quick_run_measures_every_contender(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, BENCH, "--quick", "--dir", tmp_path, "--json", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr

    document = json.loads(output.read_text())
    assert document["machine"]["cores"] > 0
    assert [result["ranks"] for result in document["results"]] == [1, 2]
    for result in document["results"]:
        assert set(result["patterns"]) == PATTERNS
        for runs_of in result["patterns"].values():
            assert {"mpickpt, pool = state", "fork()", "h5py, in place", "numpy.save"} < set(runs_of)
            for name, runs in runs_of.items():
                if name != "none":
                    assert all(run["blocked"] > 0 and run["durable"] >= run["blocked"] for run in runs), name
        assert all(second > 0 for seconds in result["bandwidth"].values() for second in seconds)
    assert "raw pwrite, pread" in done.stdout
    assert list(tmp_path.iterdir()) == [output], "the measured files were not removed"
