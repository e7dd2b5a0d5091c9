"""The main ratios in under a minute, each with its aim: to judge a change, not to quote.

Two ranks of 192 MiB, a few rounds. Contenders take turns as in `bench.py`, of which this is a small selection: measure
what is near its aim with that.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import aims
import faults
import launch
from aims import Aim
from configuration import DIRECT, FORK, GIB, MIB, QUARTER_POOL, WHOLE_POOL, Configuration

# With huge pages only the blocked time counts, not the added time: one round is enough.
SELECTION: list[dict[str, Any]] = [
    {"huge": False, "patterns": ["all"], "contenders": [WHOLE_POOL, QUARTER_POOL, FORK, DIRECT]},
    {"huge": False, "patterns": ["tenth", "none"], "contenders": [WHOLE_POOL], "bandwidth": False},
    {"huge": True, "patterns": ["all"], "contenders": [WHOLE_POOL], "bandwidth": False, "repetitions": 1},
]


def main() -> None:
    """Measure the selection and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, default=2)
    add("--mib", type=int, default=192, help="state of a rank, in MiB")
    add("--repetitions", type=int, default=3)
    add("--samples", type=int, default=2000, help="write faults that are timed")
    add("--program", type=Path, default=faults.PROGRAM, help="faults.c, compiled")
    add("--dir", type=Path, default=launch.RESULTS, help="folder for the files that are written")
    options = parser.parse_args()
    launch.end_cleanly()
    options.dir.mkdir(exist_ok=True)
    begin = time.monotonic()
    found: list[Aim] = []
    for part in SELECTION:
        settings = {
            "ranks": options.ranks,
            "nbytes": options.mib * MIB,
            "repetitions": options.repetitions,
            "work_seconds": 1.5 * options.mib * MIB / GIB,
        }
        configuration = Configuration(**(settings | part))
        for aim in aims.aims(launch.measure(configuration, options.dir)):
            found.append(aim if not part["huge"] else aim.named("huge pages, "))
    measured = faults.measure(options.program, options.dir, huge=False, mib=2 * options.mib, samples=options.samples)
    found.append(aims.of_faults(faults.ratio(measured), "4k"))
    console = launch.console()
    console.print(aims.table(found))
    took = time.monotonic() - begin
    console.print(f"{options.ranks} ranks of {options.mib} MiB, times per GiB of a rank's state; took {took:.0f} s")


if __name__ == "__main__":
    main()
