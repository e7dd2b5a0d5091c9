"""Real cgroups with a limit that leaves less than the pool would take: no rank is killed."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from mpijob import mpi_job

import mpickpt

HERE = Path(__file__).parent
HIERARCHIES = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))


@pytest.fixture
def limited() -> Iterator[tuple[Path, str]]:
    """A cgroup of its own, and the name of the file that takes its limit."""
    for mount, control in HIERARCHIES:
        group = mount / f"mpickpt-test-{uuid4().hex[:8]}"
        if not (mount / "cgroup.procs").exists() or not os.access(mount, os.W_OK):
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / control).exists():
            yield group, control
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no cgroup with a memory controller can be made: this needs root")


@pytest.mark.parametrize(("ranks", "mib"), [(1, 256), (2, 192)])
def test_the_pool_fits_into_what_is_left(ranks: int, mib: int, limited: tuple[Path, str], tmp_path: Path) -> None:
    group, control = limited
    command = [HERE / "limited_job.py", tmp_path / "ckpt", group, str(mib), "30", control]
    with mpi_job(ranks, command, tmp_path / "log") as job:
        code = job.wait(100)
        said = job.output()
    with suppress(OSError):
        assert "oom_kill 0" in (group / "memory.oom_control").read_text()
    assert code == 0, said
    assert said.count(": 5 complete") == ranks
    assert said.count(f"in place of {mib / 4:.1f} MiB, which is what the limit of ") == ranks
    assert f"of the cgroup {group} ({control}) leaves{f' for {ranks} ranks' if ranks > 1 else ''}" in said
    assert mpickpt.Checkpoint(tmp_path / "ckpt").verify() == []


def test_too_little_is_left(limited: tuple[Path, str], tmp_path: Path) -> None:
    group, control = limited
    command = [HERE / "limited_job.py", tmp_path / "ckpt", group, "64", "10", control]
    with mpi_job(2, command, tmp_path / "log") as job:
        assert job.wait(100) != 0
        said = job.output()
    assert "UsageError: Rank 0: The pool needs 1.0 MiB at the least, and the limit of " in said
    assert f"of the cgroup {group} ({control}) leaves" in said
