"""Ranks of one mpiexec each get a temporary directory of their own.

By default all pytests of a user share one, and each clears away what is left of older ones: ranks would trip over each
other there.
"""

from __future__ import annotations

import shutil
import tempfile

import pytest

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
