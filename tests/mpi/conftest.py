"""Fixtures of tests under mpiexec; each rank of an mpiexec gets a temporary directory of its own.

By default all pytests of a user share one, and each removes the remains of older ones: ranks would interfere with each
other there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
from mpi4py import MPI

from crossing import COMM, Run

_made: list[str] = []


@pytest.hookimpl(tryfirst=True)  # before pytest's own plugin takes note of the option
def pytest_configure(config: pytest.Config) -> None:
    """Make the directory, unless the command line names one."""
    if config.option.basetemp is None:
        _made.append(tempfile.mkdtemp(prefix="mpickpt-tests-"))
        config.option.basetemp = _made[0]


def pytest_unconfigure() -> None:
    """Remove it."""
    for path in _made:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run()
    yield run
    run.close()
    COMM.Barrier()


@pytest.fixture
def space() -> Iterator[None]:
    """Room for buffered sends."""
    MPI.Attach_buffer(np.zeros(100_000, np.uint8))
    yield
    MPI.Detach_buffer()
