"""Start the ranks that measure one configuration, and clean up after them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import machine
from configuration import Configuration

RESULTS = Path(__file__).parent / "results"
WIDTH = 176  # of a table if the output is not a terminal


def console() -> Console:
    """Return the console for tables."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def end_cleanly() -> None:
    """Let SIGTERM end this process as Ctrl-C does: the ranks are ended too, and the files removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))


def measure(configuration: Configuration, folder: Path | None) -> dict[str, Any]:
    """Start the ranks of one configuration; return what they measured, with the configuration.

    Parameters
    ----------
    configuration : Configuration
        What to measure.
    folder : Path or None
        Folder for the files of the ranks, which are removed; by default in benchmarks/results.

    Raises
    ------
    SystemExit
        If the ranks fail, with what they printed.
    """
    RESULTS.mkdir(exist_ok=True)
    files = Path(tempfile.mkdtemp(prefix="files-", dir=folder or RESULTS))
    try:
        script = Path(__file__).parent / "worker.py"
        worker = [sys.executable, str(script), json.dumps(asdict(configuration)), str(files)]
        mpiexec = shutil.which("mpiexec") or str(Path(sys.executable).parent / "mpiexec")
        command = worker if configuration.ranks == 1 else [mpiexec, "-n", str(configuration.ranks), *worker]
        surroundings = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            said = done.stdout + done.stderr
            raise SystemExit(f"{said}{configuration}: the ranks failed with status {done.returncode}")
        measured: dict[str, Any] = json.loads((files / "result.json").read_text())
    finally:
        shutil.rmtree(files)
    return {"configuration": asdict(configuration), **measured}


def save(results: list[dict[str, Any]], path: Path | None, folder: Path | None) -> Path:
    """Write the results and a description of the machine to `path` or a new file in benchmarks/results."""
    path = path or RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}.json"
    described = machine.describe(folder or RESULTS)
    document = {"ended": datetime.now(UTC).isoformat(), "machine": described, "results": results}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
