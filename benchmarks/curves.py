"""What a checkpoint costs against the size of the state and against the number of ranks: two curves, drawn as PNG.

All of the state is rewritten all the time, in 4 KiB pages. It measures as `bench.py` does, or draws earlier results.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import launch
import plots
import report
from configuration import DIRECT, FORK, GIB, MIB, WHOLE_POOL, Configuration

DOCS = Path(__file__).parents[1] / "docs"
CONTENDERS = [WHOLE_POOL, FORK, DIRECT]
SIZE_RANKS = 2
LEAST_SECONDS = 0.25  # of work between two cuts: with less, a small state is lost in the noise


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--mib", type=int, nargs="+", default=[64, 256, 1024, 4096], help="state of two ranks together, in MiB")
    add("--ranks", type=int, nargs="+", default=[1, 2, 4], help="ranks of --rank-mib each")
    add("--rank-mib", type=int, default=512, help="state of a rank, in MiB, for the curve against ranks")
    add("--repetitions", type=int, default=5)
    add("--dir", type=Path, help="folder for the files that are written; the default is benchmarks/results")
    add("--json", type=Path, help="the result; the default is a new file in benchmarks/results")
    add("--plots", type=Path, default=DOCS, help="folder for the two pictures")
    add("--draw", type=Path, metavar="JSON", help="measure nothing, draw what an earlier run left in this file")
    return parser.parse_args()


def _configuration(ranks: int, nbytes: int, repetitions: int) -> Configuration:
    return Configuration(
        ranks=ranks,
        nbytes=nbytes,
        huge=False,
        patterns=["all"],
        contenders=CONTENDERS,
        repetitions=repetitions,
        work_seconds=max(LEAST_SECONDS, 1.5 * nbytes / GIB),
        bandwidth=False,
    )


def _measure(options: argparse.Namespace) -> Path:
    """Measure both curves; return the file with the results, those of the sizes first."""
    console = launch.console()
    chosen = [_configuration(SIZE_RANKS, mib * MIB // SIZE_RANKS, options.repetitions) for mib in options.mib]
    chosen += [_configuration(ranks, options.rank_mib * MIB, options.repetitions) for ranks in options.ranks]
    results: list[dict[str, Any]] = []
    path: Path = launch.save([], options.json, options.dir)
    for configuration in chosen:
        console.print(f"{datetime.now(UTC):%H:%M:%S} {configuration}", style="dim")
        results.append(launch.measure(configuration, options.dir))
        launch.save(results, path, options.dir)
    console.print(report.table(results))
    console.print(f"written to {path}")
    return path


def _curves(results: list[dict[str, Any]], *, against_ranks: bool) -> dict[str, plots.Curve]:
    """Return a curve for each contender: what each run added, in ms, by ranks or by MiB of all ranks."""
    curves: dict[str, plots.Curve] = {name: {} for name in CONTENDERS}
    for result in results:
        measured = report.configuration(result)
        x = measured.ranks if against_ranks else measured.ranks * measured.nbytes // MIB
        for name, curve in curves.items():
            curve[x] = [run["added"] * report.MILLI for run in result["patterns"]["all"][name]]
    return curves


def main() -> None:
    """Measure, unless there is a file to draw from, and draw."""
    options = _options()
    launch.end_cleanly()
    results = json.loads((options.draw or _measure(options)).read_text())["results"]
    sizes = results[: -len(options.ranks)]
    by_size = plots.draw(
        options.plots / "performance-size.png",
        _curves(sizes, against_ranks=False),
        x=f"state of {SIZE_RANKS} ranks together (MiB)",
    )
    rank_mib = report.configuration(results[-1]).nbytes // MIB
    by_ranks = plots.draw(
        options.plots / "performance-ranks.png",
        _curves(results[-len(options.ranks) :], against_ranks=True),
        x=f"ranks, of {rank_mib} MiB each",
    )
    launch.console().print(f"drawn: {by_size}, {by_ranks}")


if __name__ == "__main__":
    main()
