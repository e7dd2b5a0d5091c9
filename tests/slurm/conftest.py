"""A Slurm for these tests, which run all their scenarios side by side: they mostly wait for Slurm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from mpijob import mapped, segments

from cluster import Cluster, missing, start

NODES = 14

Scenario = Callable[[Cluster, Path], None]


@pytest.fixture(autouse=True)
def _no_leaks() -> None:
    """The check of the other folders is not for threads that work side by side; `cluster` has its own."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start the cluster; at the end nothing of it may be left."""
    if reason := missing():
        pytest.skip(reason)
    older = segments()
    with start(tmp_path_factory.mktemp("slurm"), NODES) as running:
        yield running
    assert not running.processes()
    for path in segments() - older - mapped():  # of ranks that were killed
        path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def outcomes(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Scenario, Future[None]]]:
    """Begin all scenarios that were chosen."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and hasattr(item, "callspec")]
    chosen = [item.callspec.params["scenario"] for item in items if "scenario" in item.callspec.params]
    with ThreadPoolExecutor(max(1, len(chosen))) as threads:
        yield {
            scenario: threads.submit(scenario, cluster, tmp_path_factory.mktemp(scenario.__name__))
            for scenario in chosen
        }
        cluster.stopped.set()
