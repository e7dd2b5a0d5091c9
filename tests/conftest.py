"""Rules for all tests: no leaks, no run without a test, and on demand only a share of randomly drawn cases.

A test must leave behind no file descriptor, no thread, no page that is still write-protected, and the
SIGSEGV handler that it found. The check runs after every test, in every process that runs tests.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np  # noqa: F401  (its BLAS starts threads when imported: before the first test, not in it)
import pytest
from sampling import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLE_SECONDS = 10.0  # an ended thread leaves /proc/self/task a moment after it is joined
SIGACTION_BYTES = 256  # struct sigaction has 152 on both x86-64 and aarch64; the C library writes no more
MPI_OWN = ("socket:", "pipe:", "anon_inode:", "/dev/shm/", "/dev/infiniband/")


class Resources(NamedTuple):
    """What a test may not change."""

    descriptors: dict[int, str]
    threads: frozenset[int]
    protected: frozenset[str]
    segv_action: bytes


def _descriptors() -> dict[int, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  (Path.iterdir keeps its own descriptor open)
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
        except OSError:
            continue  # the descriptor of listdir itself
    return found


def _protected_pages() -> frozenset[str]:
    """Private anonymous memory that is read-only: what a cut leaves if it is not undone."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return frozenset(line.split()[0] for line in lines if " r--p 00000000 00:00 0" in line and len(line.split()) == 5)


def _segv_action() -> bytes:
    action = ctypes.create_string_buffer(SIGACTION_BYTES)
    if ctypes.CDLL(None, use_errno=True).sigaction(int(signal.SIGSEGV), None, action) != 0:
        raise OSError(ctypes.get_errno(), "sigaction(SIGSEGV) cannot be read")
    # Handler, the 64 signals of the mask, flags: the C library leaves the rest of the 1,024-bit mask as it was.
    return action.raw[:16] + action.raw[136:140]


def _resources() -> Resources:
    return Resources(
        descriptors=_descriptors(),
        threads=frozenset(int(entry.name) for entry in Path("/proc/self/task").iterdir()),
        protected=_protected_pages(),
        segv_action=_segv_action(),
    )


def _leaks(before: Resources, *, with_mpi: bool) -> list[str]:
    after = _resources()
    found = [
        f"file descriptor {number} -> {target}"
        for number, target in after.descriptors.items()
        if before.descriptors.get(number) != target and not (with_mpi and target.startswith(MPI_OWN))
    ]
    found += [f"thread {thread}" for thread in after.threads - before.threads]
    found += [f"write-protected memory at {span}" for span in after.protected - before.protected]
    if after.segv_action != before.segv_action:
        found.append("the SIGSEGV handler is not the one from before the test")
    return found


def _leave_sessions() -> None:
    """End what a failed test left open: otherwise the next session is refused, and all later tests fail, too."""
    if module := sys.modules.get("mpickpt.session.session"):
        for session in list(module._sessions):
            session._leave()


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    with_mpi = bool(request.config.getoption("--with-mpi", default=False))
    before = _resources()
    yield
    gc.collect()
    deadline = time.monotonic() + SETTLE_SECONDS
    while (leaks := _leaks(before, with_mpi=with_mpi)) and time.monotonic() < deadline:
        time.sleep(0.01)
    if leaks:
        _leave_sessions()
        pytest.fail("the test leaks:\n  " + "\n  ".join(leaks), pytrace=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep an evenly spread share of the cases of each test that is marked `sampled`, at least one of each."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0]].append(item)
    dropped = set()
    for group in cases.values():
        count = examples(len(group))
        dropped |= set(group) - {group[index * len(group) // count] for index in range(count)}
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))
        items[:] = [item for item in items if item not in dropped]


def pytest_collection_finish() -> None:
    """Take what is there before the first test out of the garbage that is searched for after each of them."""
    gc.collect()
    gc.freeze()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start MPI before the first test, so that its threads and descriptors do not count as leaks."""
    if session.config.getoption("--with-mpi", default=False):
        from mpi4py import MPI

        warm = MPI.COMM_WORLD.Dup()
        warm.alltoall(list(range(warm.size)))
        warm.Free()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in which every test was skipped: it has shown nothing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == pytest.ExitCode.OK and reporter is not None and not session.config.option.collectonly:
        ran = any(reporter.stats.get(outcome) for outcome in ("passed", "failed", "xfailed", "xpassed"))
        if not ran:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
