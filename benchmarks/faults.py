"""How long a write to a block that is not saved yet takes, compared with the memcpy alone: percentiles.

`faults.c` measures; its samples of the two alternate. `make bench-faults` builds it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

import launch
from aims import FAULT_LIMIT

PROGRAM = Path(__file__).parents[1] / ".build" / "native-bench" / "faults"
MICRO = 1000.0  # nanoseconds
PERCENTILES = ("p50", "p90", "p99", "max")


def measure(program: Path, folder: Path, *, huge: bool, mib: int, samples: int) -> dict[str, Any]:
    """Return the percentiles in nanoseconds.

    Parameters
    ----------
    program : Path
        `faults.c`, compiled.
    folder : Path
        Folder for the slot file.
    huge : bool
        Whether the blocks lie in huge pages.
    mib : int
        Protected memory in MiB, more than the processor's caches hold; four times as much is used.
    samples : int
        Number of faults with a copy.

    Raises
    ------
    SystemExit
        If the program was not built, or fails.
    """
    if not program.exists():
        raise SystemExit(f"{program} is not there: it is built by make bench-faults")
    with tempfile.TemporaryDirectory(prefix="faults-", dir=folder) as scratch:
        command = [str(program), f"{scratch}/slot", "huge" if huge else "4k", str(mib), str(samples)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{program}: {done.stderr.strip() or f'status {done.returncode}'}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def ratio(measured: dict[str, Any]) -> float:
    """Return the ratio of the median fault to the median copy."""
    return float(measured["fault"]["p50"] / measured["memcpy"]["p50"])


def main() -> None:
    """Measure with both kinds of pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mib", type=int, default=1024, help="memory that is protected")
    add("--samples", type=int, default=5000)
    add("--program", type=Path, default=PROGRAM, help="faults.c, compiled")
    add("--dir", type=Path, default=launch.RESULTS, help="folder for the file that is written")
    options = parser.parse_args()
    options.dir.mkdir(exist_ok=True)
    made = Table(title=f"Write to a block of 256 KiB that is not yet saved; us, {options.samples} samples")
    for heading in ("pages", "", *PERCENTILES):
        made.add_column(heading, justify="right")
    medians = []
    for pages in ("4k", "huge"):
        measured = measure(options.program, options.dir, huge=pages == "huge", mib=options.mib, samples=options.samples)
        for what in ("fault", "memcpy"):
            made.add_row(pages, what, *(f"{measured[what][name] / MICRO:.1f}" for name in PERCENTILES))
        medians.append(f"{pages} {ratio(measured):.2f}")
    launch.console().print(made)
    print(f"fault beside memcpy, medians: {', '.join(medians)}; the aim is {FAULT_LIMIT} at most")


if __name__ == "__main__":
    main()
