"""How much memory this process may still take: what its cgroups, the node and its own resource limits leave.

Read from /proc and the control files of cgroup v1 and v2; the folder of /proc can be another one, for tests. Nothing
here knows what the memory is for; `mpickpt.protocol.policy.share_out` divides what is left by the ranks of a node.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mpickpt.protocol.policy import Ceiling
from mpickpt.units import human_bytes

PROC = Path("/proc")
UNLIMITED = 1 << 60  # bytes; cgroup v1 writes no limit as the largest multiple of a page
# What threads and their allocators take of the address space while an epoch is drained: stacks of 8 MiB, mostly.
THREADS_BYTES = 64 << 20


@dataclass(frozen=True)
class _Controller:
    """Control files of a memory controller, by version."""

    limits: tuple[str, ...]
    usage: str
    cache: tuple[str, ...]  # of memory.stat: file pages, which are given back when others need them


_V1 = _Controller(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_V2 = _Controller(
    ("memory.max", "memory.high"),
    "memory.current",
    ("inactive_file", "active_file", "slab_reclaimable"),
)


def ceilings(proc: Path = PROC) -> list[Ceiling]:
    """Return all that limits this process's memory, each with what it leaves now."""
    return [*cgroup_ceilings(proc), *_node(proc), *_own(proc)]


def cgroup_ceilings(proc: Path = PROC) -> list[Ceiling]:
    """Return the limits of the cgroup that this process is in, and of all above it."""
    found: list[Ceiling] = []
    for mount, folder, controller in _cgroups(proc):
        for level in (folder, *folder.parents):
            found += _level(level, controller)
            if level == mount:
                break
    return found


def _cgroups(proc: Path) -> Iterator[tuple[Path, Path, _Controller]]:
    """Find the memory controllers: where each is mounted, this process's folder in it, and its files."""
    paths = {}
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in _lines(proc / "self/mountinfo"):
        before, _, behind = line.partition(" - ")
        kind, _, options = behind.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        root, mount = before.split(" ")[3:5]
        yield Path(mount), _folder(mount, root, paths[kind]), _V2 if kind == "cgroup2" else _V1


def _folder(mount: str, root: str, path: str) -> Path:
    """Return the folder of the cgroup `path` where `root` is mounted; in a container it may see no more than that."""
    if root != "/" and (path + "/").startswith(root + "/"):
        path = path[len(root) :]
    folder = Path(mount, path.lstrip("/"))
    return folder if ".." not in folder.parts and folder.is_dir() else Path(mount)


def _level(folder: Path, controller: _Controller) -> Iterator[Ceiling]:
    usage = _number(folder / controller.usage)
    if usage is None:
        return  # the root of the hierarchy, or a level that has no memory controller
    limits = {name: _number(folder / name) for name in controller.limits}
    known = {name: limit for name, limit in limits.items() if limit is not None and limit < UNLIMITED}
    if not known:
        return
    name = min(known, key=lambda one: known[one])
    limit = known[name]
    statistics = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat"))
    cache = sum(int(statistics.get(key, 0)) for key in controller.cache)
    status = folder.stat()
    yield Ceiling(
        key=f"{_boot()}:{status.st_dev}:{status.st_ino}",
        name=f"the limit of {human_bytes(limit)} of the cgroup {folder} ({name})",
        left=limit - max(0, usage - cache),
    )


def _node(proc: Path) -> Iterator[Ceiling]:
    """Return what the node has left, for all of its processes."""
    for line in _lines(proc / "meminfo"):
        if line.startswith("MemAvailable:"):
            yield Ceiling(f"{_boot()}:node", "the memory of the node (MemAvailable)", int(line.split()[1]) * 1024)


def _own(proc: Path) -> Iterator[Ceiling]:
    """Return the limits of the process itself, which the pages count against that were never touched, too."""
    status = dict(line.split(":", 1) for line in _lines(proc / "self/status") if ":" in line)
    for number, name, field in (
        (resource.RLIMIT_AS, "RLIMIT_AS (ulimit -v)", "VmSize"),
        (resource.RLIMIT_DATA, "RLIMIT_DATA (ulimit -d)", "VmData"),
    ):
        limit, _ = resource.getrlimit(number)
        if limit != resource.RLIM_INFINITY and field in status:
            used = int(status[field].split()[0]) * 1024
            yield Ceiling(
                key=f"{_boot()}:{os.getpid()}:{field}",
                name=f"{name} of {human_bytes(limit)}",
                left=limit - used - THREADS_BYTES,
                counts_untouched=True,
            )


def resident_bytes(proc: Path = PROC) -> int:
    """Return how much memory this process has in use."""
    return sum(int(line.split()[1]) * 1024 for line in _lines(proc / "self/status") if line.startswith("VmRSS:"))


def node_key() -> str:
    """Tell this node, as long as it is up, from all others."""
    return _boot()


def _boot() -> str:
    return "".join(_lines(PROC / "sys/kernel/random/boot_id")) or os.uname().nodename


def _lines(path: Path) -> list[str]:
    with suppress(OSError, UnicodeError):
        return path.read_text().splitlines()
    return []


def _number(path: Path) -> int | None:
    """Read a control file; None if there is none, or it says "max"."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None
