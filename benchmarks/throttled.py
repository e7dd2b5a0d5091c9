"""What a checkpoint costs on slow storage: writing is limited to a rank's share of a parallel file system.

Each rank is in a block-I/O cgroup of its own, whose limit is set and lifted between runs: mpickpt on slow storage,
mpickpt on the unlimited disk, and a blocking write on slow storage take turns in one run. Needs root, and takes under
ten minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import aims
import launch
import report
from cgroup import Groups, NotPossible, disk_of
from configuration import DIRECT, MIB, THROTTLED, WHOLE_POOL, Configuration

MEGA = 10**6
CONTENDERS = [WHOLE_POOL, WHOLE_POOL + THROTTLED, DIRECT + THROTTLED]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ranks", type=int, default=2)
    add("--mib", type=int, default=1024, help="state of a rank, in MiB")
    add("--pages", choices=["4k", "huge"], default="4k")
    add("--limit", type=int, default=200, help="MB/s that a rank may write")
    add("--repetitions", type=int, default=5)
    add("--work", type=float, help="seconds of work between two cuts; by default one and a half times the slow drain")
    add("--dir", type=Path, default=launch.RESULTS, help="folder for the files that are written")
    add("--json", type=Path, help="the result; the default is a new file in benchmarks/results")
    return parser.parse_args()


def main() -> None:
    """Measure on the unlimited and on the limited disk."""
    options = _options()
    launch.end_cleanly()
    options.dir.mkdir(exist_ok=True)
    console = launch.console()
    nbytes, limit = options.mib * MIB, options.limit * MEGA
    try:
        console.print(f"each rank may write {options.limit} MB/s to disk {disk_of(options.dir)} where it is throttled")
        with Groups(options.ranks) as groups:
            configuration = Configuration(
                ranks=options.ranks,
                nbytes=nbytes,
                huge=options.pages == "huge",
                patterns=["all"],
                contenders=CONTENDERS,
                repetitions=options.repetitions,
                work_seconds=options.work or 1.5 * nbytes / limit,
                bandwidth=False,
                cgroups=[str(group) for group in groups],
                bytes_per_second=limit,
            )
            result = launch.measure(configuration, options.dir)
    except NotPossible as error:
        raise SystemExit(f"bench-throttled: {error}") from error
    path = launch.save([result], options.json, options.dir)
    console.print(report.table([result]))
    console.print(aims.table(aims.aims(result)))
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
