"""An MPI program: mpi4py's own tests, alone or in a session that cuts before each of them.

In the session the numpy arrays of the tests are parts of a saved array, so that they receive into protected memory,
and the image of every 25th cut is compared with the memory as it was. Each rank writes the results as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import unittest
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from mpi4py import MPI

import mpickpt

COMM = MPI.COMM_WORLD
POOL_BYTES = 16 << 20
ALIGNMENT = 64
COMPARE_EVERY = 25  # cuts


class Pool:
    """Arrays that are parts of one saved array: each behind the last one, and from the front again at the end."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.end = 0

    def zeros(self, shape: Any, dtype: Any = float) -> np.ndarray:
        """Give what `numpy.zeros` would; an array that is too large for the pool has memory of its own."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64))
        nbytes = size * kind.itemsize
        if nbytes > self.memory.size // 16:
            return np.zeros(shape, kind)
        begin = -(-self.end // ALIGNMENT) * ALIGNMENT
        if begin + nbytes > self.memory.size:
            begin = 0
        self.end = begin + nbytes
        array = self.memory[begin : self.end].view(kind).reshape(shape)
        array[...] = 0
        return array


class NumpyInPool(ModuleType):
    """The module numpy, whose `zeros` come from a pool."""

    def __init__(self, pool: Pool) -> None:
        super().__init__("numpy")
        self.zeros = pool.zeros

    def __getattr__(self, name: str) -> Any:
        """Give all else as it is."""
        return getattr(np, name)


class Saved:
    """The session around the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ckpt = mpickpt.open(folder, COMM, every=1, restart="never")
        self.pool = Pool(self.ckpt.array("pool", POOL_BYTES, dtype=np.uint8))
        self.tests = self.ckpt.object("tests", {"begun": 0})
        self.steps: dict[int, int] = {}  # checksum of the pool at the cut of each step
        self.compared = 0
        self.wrong: list[str] = []

    def safe_point(self) -> None:
        """Cut; now and then compare the newest complete epoch with the memory at its cut."""
        self.tests["begun"] += 1
        checksum = zlib.crc32(self.pool.memory)
        self.steps[self.ckpt.step()] = checksum
        if self.tests["begun"] % COMPARE_EVERY == 0:
            self.compare()

    def compare(self) -> None:
        """Read this rank's share of the newest complete epoch."""
        saved = mpickpt.Checkpoint(self.folder)
        image = np.ascontiguousarray(saved.rank(COMM.rank)["pool"][:])
        self.compared += 1
        if zlib.crc32(image) != self.steps[saved.step]:
            self.wrong.append(f"rank {COMM.rank}: the image of step {saved.step} is not the memory at its cut")

    def close(self) -> dict[str, Any]:
        """End the session and tell what it did."""
        self.ckpt.close()
        self.compare()
        stats = self.ckpt.stats()
        told = {"cuts": stats.cuts, "complete": stats.complete, "failed": stats.failed}
        return told | {"compared": self.compared, "wrong": self.wrong}


def run(folder: Path, patterns: list[str], before_each: Callable[[], None]) -> dict[str, Any]:
    """Run the tests in `folder` whose module's name matches one of the regular expressions, or all."""
    main = __import__("main")
    main.setup_unittest(None)

    class Result(unittest.TextTestResult):
        def startTest(self, test: unittest.TestCase) -> None:
            before_each()
            super().startTest(test)

    loader = main.TestLoader(patterns, [])
    loader.excludePatterns = []
    tests = loader.discover(str(folder), pattern="test_*.py", top_level_dir=str(folder))
    result = unittest.TextTestRunner(verbosity=0, resultclass=Result).run(tests)
    return {
        "run": result.testsRun,
        "failures": sorted(str(test) for test, _ in result.failures),
        "errors": sorted(str(test) for test, _ in result.errors),
        "skipped": len(result.skipped),
        "expected failures": len(result.expectedFailures),
        "unexpected successes": len(result.unexpectedSuccesses),
    }


def main() -> None:
    """Run the tests as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder test/ of mpi4py's sources")
    parser.add_argument("results", type=Path, help="each rank's results go into this folder")
    parser.add_argument("--session", type=Path, metavar="DIRECTORY", help="save there before each test")
    parser.add_argument("--modules", nargs="*", default=[], metavar="REGEX", help="these modules only")
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(options.folder))
    for name in ("cupy", "numba"):  # as the suite itself has it
        sys.modules[name] = None  # type: ignore[assignment]
    if options.session is None:
        told = run(options.folder, options.modules, lambda: None)
    else:
        saved = Saved(options.session)
        __import__("arrayimpl").numpy = NumpyInPool(saved.pool)
        told = run(options.folder, options.modules, saved.safe_point)
        told["session"] = saved.close()
    (options.results / f"rank-{COMM.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":  # processes that a test starts import this file
    main()
