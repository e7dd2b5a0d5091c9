"""mpi4py's own tests, alone and in a session that cuts before each of them: the counts must be the same.

``make test-mpi4py`` starts it. It exits with 1 if they differ, if an image was wrong, or if a run did not end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from mpijob import mpi_job  # noqa: E402

SUITE = Path(__file__).with_name("suite.py")
COUNTS = ("run", "failures", "errors", "skipped", "expected failures", "unexpected successes")


def run(ranks: int, tests: Path, limit: float, modules: list[str], *, in_session: bool) -> list[dict[str, Any]]:
    """Run the tests; give what each rank says of them."""
    with tempfile.TemporaryDirectory(prefix="mpi4py-") as own:
        folder = Path(own)
        command: list[str | Path] = [SUITE, tests, folder]
        command += ["--session", folder / "checkpoints"] if in_session else []
        command += ["--modules", *modules] if modules else []
        with mpi_job(ranks, command, folder / "log") as job:
            code = job.wait(limit)
            told = job.output()
        results = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    if code != 0 or len(results) != ranks:
        raise AssertionError(f"{ranks} ranks ended with status {code}\n{told}")
    return results


def _counts(result: dict[str, Any]) -> dict[str, int]:
    return {name: value if isinstance(value := result[name], int) else len(value) for name in COUNTS}


def compare(ranks: int, alone: list[dict[str, Any]], in_session: list[dict[str, Any]]) -> list[str]:
    """Give what differs, and what was wrong in the session."""
    found = []
    for rank, (one, other) in enumerate(zip(alone, in_session, strict=True)):
        found += [
            f"{ranks} ranks, rank {rank}: {name} {one[name]} alone, {other[name]} in a session"
            for name in COUNTS
            if one[name] != other[name]
        ]
        found += other["session"]["wrong"]
        if other["session"]["compared"] == 0 or other["session"]["complete"] < other["run"] // 2:
            found.append(f"{ranks} ranks, rank {rank}: the session hardly saved anything: {other['session']}")
    return found


def main() -> None:
    """Run both on each number of ranks, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, help="the folder test/ of mpi4py's sources")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for each run")
    parser.add_argument("--modules", nargs="*", default=[], metavar="REGEX", help="these modules of the suite only")
    options = parser.parse_args()
    tests = options.tests.resolve()
    wrong: list[str] = []
    for ranks in options.ranks:
        results = []
        for in_session in (False, True):
            begin = time.monotonic()
            try:
                results.append(run(ranks, tests, options.limit, options.modules, in_session=in_session))
            except AssertionError as error:
                wrong.append(str(error))
                break
            told = ", ".join(f"{name} {count}" for name, count in _counts(results[-1][0]).items())
            how = "in a session" if in_session else "alone"
            print(f"{ranks} ranks {how}: {told} ({time.monotonic() - begin:.0f} s)", flush=True)
            if in_session:
                print(f"    {results[-1][0]['session']}", flush=True)
        else:
            wrong += compare(ranks, *results)
    print("\n".join(wrong) or "the same counts")
    sys.exit(bool(wrong))


main()
