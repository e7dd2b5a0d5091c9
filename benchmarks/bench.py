"""Compare mpickpt with the other ways to checkpoint, on this machine, in one run.

Every configuration (ranks, size, pages) is one start of mpiexec; in it the contenders take turns, forwards and
backwards, between runs of the same work without a checkpoint. Prints one table, writes one JSON file, removes
what it wrote for measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import machine
import report
from worker import LIVE_POOLS, OTHERS
from workload import PATTERNS

HERE = Path(__file__).parent
MIB = 1024**2
CONTENDERS = [*LIVE_POOLS, *OTHERS]
WIDTH = 150  # of the table where the output is no terminal


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2])
    add("--mib", type=int, nargs="+", default=[256, 1024], help="state of a rank, in MiB")
    add("--pages", nargs="+", choices=["4k", "huge"], default=["4k", "huge"])
    add("--patterns", nargs="+", choices=list(PATTERNS), default=list(PATTERNS), help="the share that is rewritten")
    add("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    add("--repetitions", type=int, default=5)
    add("--work", type=float, default=1.5, help="seconds of work per GiB of a rank's state")
    add("--dir", type=Path, help="folder for the files that are written; the default is benchmarks/results")
    add("--json", type=Path, help="the result; the default is a new file in benchmarks/results")
    add("--quick", action="store_true", help="a smoke run: 16 MiB, one repetition, 4 KiB pages")
    options = parser.parse_args()
    if options.quick:
        options.mib, options.pages, options.repetitions, options.work = [16], ["4k"], 1, 1.5
    return options


def _measure(options: argparse.Namespace, ranks: int, mib: int, pages: str) -> dict[str, Any]:
    """Start the ranks of one configuration and return what they measured."""
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="files-", dir=options.dir or results))
    try:
        output = folder / "result.json"
        configuration = {
            "nbytes": mib * MIB,
            "huge": pages == "huge",
            "patterns": options.patterns,
            "contenders": options.contenders,
            "repetitions": options.repetitions,
            "work_seconds": options.work * mib * MIB / report.GIB,
            "folder": str(folder),
            "output": str(output),
        }
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(configuration)]
        if ranks > 1:
            mpiexec = shutil.which("mpiexec") or str(Path(sys.executable).parent / "mpiexec")
            command = [mpiexec, "-n", str(ranks), *command]
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        surroundings = os.environ | one_thread
        done = subprocess.run(command, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}{done.stderr}bench: the worker failed with status {done.returncode}")
        measured = json.loads(output.read_text())
    finally:
        shutil.rmtree(folder)
    return {"ranks": ranks, "nbytes": mib * MIB, "pages": pages, **measured}


def main() -> None:
    """Measure everything that was asked for."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))  # ends the ranks and removes the files, too
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    begun = datetime.now(UTC)
    path = options.json or HERE / "results" / f"{begun:%Y-%m-%d-%H%M%S}.json"
    settings = {"repetitions": options.repetitions, "work_seconds_per_gib": options.work}
    results: list[dict[str, Any]] = []
    document = {"begun": begun.isoformat(), "machine": machine.describe(options.dir or HERE), "settings": settings}
    for ranks in options.ranks:
        for mib in options.mib:
            for pages in options.pages:
                console.print(f"{datetime.now(UTC):%H:%M:%S} {ranks} x {mib} MiB, {pages} pages", style="dim")
                results.append(_measure(options, ranks, mib, pages))
                path.write_text(json.dumps(document | {"results": results}, indent=1) + "\n")

    console.print(report.table(results))
    for aim, measured, met in report.aims(results):
        console.print(f"{'met   ' if met else 'missed'} {aim}: {measured}")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
