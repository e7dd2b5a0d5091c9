"""What limits the memory of a process, from the files of both versions of cgroups, and how ranks share what is free."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import mpickpt
from mpickpt.layout.arrays import ArraySpec
from mpickpt.options import PoolSize
from mpickpt.protocol.policy import KEPT_BYTES, KEPT_SHARE, Ceiling, PoolGrant, PoolRequest, share_out
from mpickpt.session import mappings
from mpickpt.session.mappings import Region, Watch
from mpickpt.session.memory import ceilings, cgroup_ceilings
from mpickpt.slurm import find
from mpickpt.snapshot import Snapshotter

MIB = 1 << 20


def hierarchy(folder: Path, version: int, path: str, levels: Mapping[str, Mapping[str, str]], root: str = "/") -> Path:
    """Make a hierarchy of control files below `folder`, and what /proc says of it; gives the folder of /proc."""
    mount = folder / "mount"
    for level, files in levels.items():
        place = mount / level
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(text + "\n")
    own = folder / "proc/self"
    own.mkdir(parents=True)
    if version == 2:
        (own / "cgroup").write_text(f"0::{path}\n")
        kind = "cgroup2 cgroup2 rw,nsdelegate"
    else:
        (own / "cgroup").write_text(f"9:name=systemd:/other\n4:cpu,cpuacct:/x\n3:memory:{path}\n0::/elsewhere\n")
        kind = "cgroup cgroup rw,memory"
    lines = ["22 1 0:20 / /proc rw - proc proc rw", "23 1 0:21 / /cpu rw - cgroup cgroup rw,cpu,cpuacct"]
    lines.append(f"35 31 0:32 {root} {mount} rw,relatime shared:9 - {kind}")
    (own / "mountinfo").write_text("\n".join(lines) + "\n")
    return folder / "proc"


def _v2(limit: str, high: str, current: int, cache: int = 0) -> dict[str, str]:
    stat = f"anon 1\nfile {cache + 999}\ninactive_file {cache - cache // 3}\nactive_file {cache // 3}\nshmem 999"
    return {"memory.max": limit, "memory.high": high, "memory.current": str(current), "memory.stat": stat}


def test_version_2(tmp_path: Path) -> None:
    """Every level counts, with the lower one of its two limits, and page cache is no use."""
    levels = {
        "": {"cgroup.controllers": "memory"},
        "slice": _v2(str(900 * MIB), "max", 600 * MIB, 50 * MIB),
        "slice/job": _v2("max", str(500 * MIB), 450 * MIB, 90 * MIB),
        "slice/job/step": _v2("max", "max", 100 * MIB),
    }
    found = cgroup_ceilings(hierarchy(tmp_path, 2, "/slice/job/step", levels))
    job, outer = tmp_path / "mount/slice/job", tmp_path / "mount/slice"
    assert [(c.name, c.left) for c in found] == [
        (f"the limit of 500.0 MiB of the cgroup {job} (memory.high)", 140 * MIB),
        (f"the limit of 900.0 MiB of the cgroup {outer} (memory.max)", 350 * MIB),
    ]
    assert len({c.key for c in found}) == 2


def test_version_1(tmp_path: Path) -> None:
    """The other names; no limit is a large number, and a container sees its part of the hierarchy as all of it."""
    stat = f"total_inactive_file {30 * MIB}\ntotal_active_file {10 * MIB}\ninactive_file 7\ntotal_cache {900 * MIB}"
    usage = {"memory.usage_in_bytes": str(300 * MIB), "memory.stat": stat}
    levels = {
        "": {**usage, "memory.limit_in_bytes": str(400 * MIB)},
        "job": {**usage, "memory.limit_in_bytes": str(9223372036854771712)},
    }
    found = cgroup_ceilings(hierarchy(tmp_path, 1, "/docker/1a2b/job", levels, root="/docker/1a2b"))
    name = f"the limit of 400.0 MiB of the cgroup {tmp_path / 'mount'} (memory.limit_in_bytes)"
    assert [(c.name, c.left) for c in found] == [(name, 140 * MIB)]


@pytest.mark.parametrize("path", ["/../outside", "/not/there"])
def test_a_cgroup_that_cannot_be_seen(tmp_path: Path, path: str) -> None:
    """What is mounted limits it all the same."""
    found = cgroup_ceilings(hierarchy(tmp_path, 2, path, {"": _v2("1000", "max", 400)}))
    assert [c.left for c in found] == [600]


def test_no_cgroups(tmp_path: Path) -> None:
    assert ceilings(tmp_path) == []


# -- the ranks of a node --------------------------------------------------------------------------------------------


def _request(wanted: int, *found: Ceiling, least: int = MIB, untouched: int = 0, resident: int = 0) -> PoolRequest:
    return PoolRequest(wanted, least, untouched, resident, found)


def _leaves(usable: int, ranks: int) -> int:
    """What a limit must leave so that pools of `usable` bytes fit."""
    return -(-(usable + KEPT_BYTES * ranks) * KEPT_SHARE // (KEPT_SHARE - 1)) + KEPT_SHARE


def test_pools_that_fit_are_as_asked_for() -> None:
    node = Ceiling("node", "the node", _leaves(30 * MIB, 2))
    assert share_out([_request(10 * MIB, node), None, _request(20 * MIB, node), _request(9 * MIB)]) == [
        PoolGrant(10 * MIB), PoolGrant(0), PoolGrant(20 * MIB), PoolGrant(9 * MIB)
    ]  # fmt: skip


def test_ranks_share_what_is_left() -> None:
    """In proportion, and the least first; each by the tightest of its limits."""
    job, other = Ceiling("job", "the job", _leaves(32 * MIB, 2)), Ceiling("other", "the other", 1 << 40)
    own = Ceiling("own", "its own", _leaves(5 * MIB, 1), counts_untouched=True)
    first, second, third = share_out(
        [_request(11 * MIB, job, least=MIB), _request(61 * MIB, job, own, least=MIB), _request(70 * MIB, other)]
    )
    assert (first.limit, first.ranks) == ("the job", 2)
    assert first.nbytes == pytest.approx(MIB + 10 / 70 * 30 * MIB, abs=64)
    assert (second.limit, second.ranks) == ("its own", 1)
    assert second.nbytes == pytest.approx(5 * MIB, abs=64)
    assert third == PoolGrant(70 * MIB)


def test_memory_that_the_arrays_will_take() -> None:
    """It is not there for pools, but where it counts already; and of a limit of use, what ranks use is taken away."""
    left = _leaves(20 * MIB, 1)
    for ceiling, untouched, resident in (
        (Ceiling("a", "a", left + 50 * MIB), 50 * MIB, 0),
        (Ceiling("b", "b", left, counts_untouched=True), 50 * MIB, 9),
        (Ceiling("c", "c", left + 70 * MIB, of_ranks=True), 10 * MIB, 60 * MIB),
    ):
        (grant,) = share_out([_request(80 * MIB, ceiling, untouched=untouched, resident=resident)])
        assert grant.nbytes == pytest.approx(20 * MIB, abs=64), ceiling


def test_less_than_makes_sense() -> None:
    """Each rank then gets less than its least, which is an error there."""
    job = Ceiling("job", "the job", 20 * MIB)
    grants = share_out([_request(10 * MIB, job), _request(10 * MIB, job)])
    assert all(grant.nbytes < MIB and grant.limit == "the job" for grant in grants)


@pytest.mark.parametrize(
    ("variables", "mib"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096),
        ({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_ON_NODE": "6"}, 600),
        ({"SLURM_MEM_PER_NODE": "0"}, None),
        ({"SLURM_MEM_PER_CPU": "100"}, None),
        ({}, None),
    ],
)
def test_what_a_job_of_slurm_may_take(variables: dict[str, str], mib: int | None) -> None:
    memory = find({"SLURM_JOB_ID": "17", **variables}).memory
    assert (memory.left if memory else None) == (None if mib is None else mib * MIB)
    if memory:
        assert "job 17 on this node (SLURM_MEM_PER_" in memory.name
    assert find(variables).memory is None


# -- taking it ------------------------------------------------------------------------------------------------------


def test_a_pool_stops_growing_when_others_take_the_memory(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is left is looked at again before each step."""
    looks = []

    def shrinking() -> list[Ceiling]:
        looks.append(1)
        return [Ceiling("job", "the job", 400 * MIB - (0 if len(looks) < 4 else 380 * MIB))]

    monkeypatch.setattr(mappings, "ceilings", shrinking)
    snapshotter = Snapshotter()
    watch = Watch(snapshotter, PoolSize(128 * MIB), 3)
    memory = snapshotter.allocate(4096)
    watch.add([Region(ArraySpec("u", (4096,), np.dtype("u1")), memory, True)])
    request = watch.request(256 * 1024)
    assert request.wanted == 128 * MIB
    watch.seal(256 * 1024, request, PoolGrant(request.wanted))
    assert "rank 3: the pool has 64.0 MiB in place of 128.0 MiB, which is what the job leaves" in capfd.readouterr().err
    snapshotter.close()
    watch.close()


def test_untouched_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshotter = Snapshotter()
    watch = Watch(snapshotter, PoolSize(), 0)
    memory = snapshotter.allocate(64 * MIB, huge=False)
    memory[: 16 * MIB] = 1
    watch.add([Region(ArraySpec("u", (64 * MIB,), np.dtype("u1")), memory, True)])
    assert watch.request(256 * 1024).untouched == 48 * MIB
    snapshotter.close()
    watch.close()


PROGRAM = """
import resource, sys
import mpickpt
limit, field, mib = getattr(resource, sys.argv[2]), sys.argv[3], int(sys.argv[4])
with mpickpt.open(sys.argv[1], every=1) as ckpt:
    u = ckpt.array("u", 64 << 17, fill=1.0)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    used = int(status[field].split()[0]) * 1024
    resource.setrlimit(limit, (used + (mib << 20), resource.RLIM_INFINITY))
    for step in ckpt.range(3):
        u += 1
print("complete", ckpt.stats().complete)
"""


@pytest.mark.parametrize(("limit", "field"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_limits_of_the_process(limit: str, field: str, tmp_path: Path) -> None:
    """The pool is as small as they want it, or the program is told what to do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPICKPT_")}
    for mib in (90, 70):
        command = [sys.executable, "-c", PROGRAM, tmp_path / str(mib), limit, field, str(mib)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        if mib == 90:
            assert done.returncode == 0, done.stderr
            assert f"which is what {limit} (ulimit" in done.stderr
            assert "complete 2" in done.stdout
        else:
            assert done.returncode != 0
            assert f"The pool needs 1.0 MiB at the least, and {limit} (ulimit" in done.stderr


def test_the_error_is_one_of_all_ranks() -> None:
    """It is a `UsageError`, which names the limit and what it leaves."""
    watch = Watch(Snapshotter(), PoolSize(), 0)
    request = watch.request(256 * 1024)
    with pytest.raises(mpickpt.UsageError, match=r"needs 1.0 MiB at the least, and the job leaves 3.0 MiB for 4 ranks"):
        watch.seal(256 * 1024, request, PoolGrant(5, "the job", 3 * MIB, 4))
