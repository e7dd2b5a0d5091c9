"""Compare mpickpt with the other ways to checkpoint, on this machine, in one run.

Every configuration (ranks, size, pages) is one start of mpiexec; in it the contenders take turns, forwards and
backwards, between runs of the same work without a checkpoint. It prints one table and the aims, writes one JSON file,
and removes what it wrote for measuring.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aims
import launch
import report
from configuration import CONTENDERS, GIB, MIB, MPICKPT, NAMES, Configuration, contender_named
from patterns import PATTERNS


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[2])
    add("--mib", type=int, nargs="+", default=[1024], help="state of a rank, in MiB")
    add("--pages", nargs="+", choices=["4k", "huge"], default=["4k", "huge"])
    add("--patterns", nargs="+", choices=list(PATTERNS), default=list(PATTERNS), help="what is rewritten")
    add("--contenders", nargs="+", default=CONTENDERS, metavar="NAME", help=f"of {NAMES}")
    add("--beside", nargs="+", default=[], metavar="NAME=VALUE", help="mpickpt once more, with these variables set")
    add("--repetitions", type=int, default=5)
    add("--work", type=float, default=1.5, help="seconds of work between two cuts, per GiB of a rank's state")
    add("--dir", type=Path, help="folder for the files that are written; the default is benchmarks/results")
    add("--json", type=Path, help="the result; the default is a new file in benchmarks/results")
    options = parser.parse_args()
    if options.beside:
        options.contenders = [*options.contenders, MPICKPT + " ".join(options.beside)]
    for name in options.contenders:
        try:
            contender_named(name)
        except ValueError as error:
            parser.error(str(error))
    return options


def _configurations(options: argparse.Namespace) -> list[Configuration]:
    return [
        Configuration(
            ranks=ranks,
            nbytes=mib * MIB,
            huge=pages == "huge",
            patterns=options.patterns,
            contenders=options.contenders,
            repetitions=options.repetitions,
            work_seconds=options.work * mib * MIB / GIB,
        )
        for ranks in options.ranks
        for mib in options.mib
        for pages in options.pages
    ]


def main() -> None:
    """Measure all that was requested."""
    options = _options()
    launch.end_cleanly()
    console = launch.console()
    results: list[dict[str, Any]] = []
    path = options.json
    for configuration in _configurations(options):
        console.print(f"{datetime.now(UTC):%H:%M:%S} {configuration}", style="dim")
        results.append(launch.measure(configuration, options.dir))
        path = launch.save(results, path, options.dir)
    console.print(report.table(results))
    for line in report.bandwidth_lines(results):
        console.print(line)
    for result in results:
        console.print(f"\n{report.configuration(result)}: what is aimed at")
        console.print(aims.table(aims.aims(result)))
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
