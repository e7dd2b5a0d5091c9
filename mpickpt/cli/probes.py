"""The probes that one rank runs on its machine and in a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np

from mpickpt.layout.arrays import MAX_BLOCKS, ArraySpec, Layout, RankLayout
from mpickpt.session.memory import ceilings
from mpickpt.snapshot import CutPlan, DrainState, Snapshotter, Target, crc32c
from mpickpt.store import Store, clones, copies_on_write, kind_of_file_system, reserve
from mpickpt.units import human_bytes

STATE_BYTES = 64 << 20  # size of the array that the measurements save
PATIENCE = 8.0  # seconds until a measurement is given up
SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "panfs", "orangefs", "cifs", "fuse")
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

State = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """What a probe found, and what it means for you; "bad" if mpickpt would fail or a checkpoint be unsafe."""

    name: str
    found: str
    state: State = "ok"
    meaning: str = ""
    value: float = 0.0  # of a measurement, in which ranks may differ


def versions() -> dict[str, str]:
    """Return what should be the same on all nodes."""
    packages = {name: metadata.version(name) for name in ("mpickpt", "numpy", "h5py", "mpi4py")}
    return {
        "python": platform.python_version(),
        **packages,
        "machine": platform.machine(),
        "kernel": platform.release(),
        "page size": str(resource.getpagesize()),
        "huge pages": _chosen_huge_pages(),
        "max_map_count": str(_max_map_count()),
    }


def system() -> list[Finding]:
    """Check the limits of the system; this is quick and does not touch a disk."""
    return [_processor(), _huge_pages(), _sched_idle(), _map_count(), _locked_memory(), _memory_limit()]


def directory(place: Path) -> list[Finding]:
    """Try what a session does, in a new directory inside `place`; OSError if none can be created."""
    work = Path(tempfile.mkdtemp(prefix=".mpickpt-doctor-", dir=place))
    try:
        return [_file_system(work), _fallocate(work), _locks(work), _reflink(work), *_measured(work)]
    finally:
        shutil.rmtree(work)


def _chosen_huge_pages() -> str:
    return THP.read_text().partition("[")[2].partition("]")[0] if THP.exists() else "none"


def _max_map_count() -> int:
    return int(Path("/proc/sys/vm/max_map_count").read_text())


def _processor() -> Finding:
    flags = Path("/proc/cpuinfo").read_text().split()
    cores = len(os.sched_getaffinity(0))
    if "sse4_2" in flags or "crc32" in flags:
        return Finding("processor", f"{cores} cores for this rank, CRC-32C in hardware")
    return Finding("processor", f"{cores} cores, no CRC-32C", "note", "checksums are computed by tables, which is slow")


def _huge_pages() -> Finding:
    chosen = _chosen_huge_pages()
    if chosen in ("always", "madvise"):
        return Finding("huge pages", chosen)
    return Finding("huge pages", chosen, "note", f"cuts take longer: madvise in {THP} would let arrays have them")


def _sched_idle() -> Finding:
    refused: list[OSError] = []

    def become_idle() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # of this thread alone
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=become_idle)
    thread.start()
    thread.join()
    if not refused:
        return Finding("SCHED_IDLE", "works")
    return Finding("SCHED_IDLE", str(refused[0].strerror), "note", "the drain competes with the program for its cores")


def _map_count() -> Finding:
    count, need = _max_map_count(), 2 * MAX_BLOCKS
    if count > need:
        return Finding("max_map_count", str(count))
    meaning = f"blocks may be protected one by one: sysctl vm.max_map_count={2 * need}"
    return Finding("max_map_count", str(count), "bad", meaning)


def _locked_memory() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == resource.RLIM_INFINITY else human_bytes(soft)
    meaning = "mpickpt locks no memory; MPI over InfiniBand may need more" if found != "unlimited" else ""
    return Finding("ulimit -l", found, "ok", meaning)


def _memory_limit() -> Finding:
    found = [ceiling for ceiling in ceilings() if not ceiling.key.endswith(":node")]
    if not found:
        return Finding("memory limit", "none")
    least = min(found, key=lambda ceiling: ceiling.left)
    meaning = f"left by {least.name}: the pool (a quarter of the state) must fit too"
    return Finding("memory limit", human_bytes(max(0, least.left)), "note", meaning)


def _file_system(work: Path) -> Finding:
    kind = kind_of_file_system(work)
    free = shutil.disk_usage(work).free
    found = f"{kind}, {human_bytes(free)} free"
    if kind == "tmpfs":
        return Finding("file system", found, "note", "checkpoints in memory are lost with the node", free)
    if not kind.startswith(SHARED):
        return Finding("file system", found, "note", "seems local: ranks on other nodes would not see it", free)
    return Finding("file system", found, value=free)


def _fallocate(work: Path) -> Finding:
    with (work / "fallocate").open("wb") as file:
        try:
            done = reserve(file.fileno(), 1 << 20)
        except OSError as error:
            return Finding("fallocate", error.strerror or str(error), "bad", "slots cannot be created here")
    if done and copies_on_write(work):
        meaning = (
            "this file system undoes it: a full disk shows when an epoch is written. Keep room for one slot more, or "
            "chattr +C the empty directory"
        )
        return Finding("fallocate", "works", "note", meaning)
    if done:
        return Finding("fallocate", "works")
    return Finding("fallocate", "none", "note", "a full disk shows when an epoch is written, not when its slot is made")


def _locks(work: Path) -> Finding:
    with (work / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            why = error.strerror or str(error)
            return Finding("file locks", why, "bad", "take care that no two programs use one checkpoint directory")
    return Finding("file locks", "work")


def _reflink(work: Path) -> Finding:
    if clones(work):
        meaning = "mpickpt archive clones; a slot then takes as much room again while it is overwritten"
        return Finding("reflink", "works", "ok", meaning)
    return Finding("reflink", "none", "note", "mpickpt archive copies in place of cloning")


def _measured(work: Path) -> list[Finding]:
    """Save an array twice: once at rest, and once while every block of it is written to."""
    spec = ArraySpec("u", (STATE_BYTES,), np.dtype("u1"))
    layout = Layout.of([RankLayout((spec,))])
    store = Store(work, crc32c)
    store.create(0, layout)
    snapshotter = Snapshotter()
    try:
        memory = snapshotter.allocate(STATE_BYTES)
        memory[:] = 1
        huge = _huge_share(memory)
        snapshotter.add(memory, owned=True)
        snapshotter.seal(layout.block_bytes, STATE_BYTES)
        snapshotter.boost(True)

        def save(epoch: int, meanwhile: Callable[[], None]) -> None:
            target = Target(work / "slot-0.h5", store.offsets(0)[0], rank=0, run=1, digest=layout.digest)
            snapshotter.cut(CutPlan(target, epoch=epoch, step=epoch, objects=b""))
            meanwhile()
            if not snapshotter.wait(PATIENCE):
                snapshotter.fail(errno.ETIMEDOUT)
                snapshotter.wait()

        def change() -> None:
            memory[:: layout.block_bytes] += 1

        save(1, lambda: None)
        quiet = snapshotter.progress()
        save(2, change)
        busy = snapshotter.progress()
    finally:
        snapshotter.close()
    failed = next((p for p in (quiet, busy) if p.state != DrainState.COMPLETE), None)
    if failed is not None:
        return [Finding("saving", os.strerror(failed.errno), "bad", "no checkpoint can be written there in time")]
    rate = quiet.bytes_written / quiet.drain_seconds
    fault = (busy.fault_seconds - quiet.fault_seconds) / max(1, busy.blocks)
    direct = Finding("O_DIRECT", "works")
    if not quiet.direct:
        direct = Finding("O_DIRECT", "none", "note", "slots go through the page cache, which costs processor time")
    return [
        direct,
        Finding("mprotect", f"works, {huge:.0%} of an array in huge pages"),
        Finding(
            "fault cost",
            f"{fault * 1e6:.0f} us",
            "ok",
            "of the first write to each block of 256 KiB after a cut",
            fault,
        ),
        Finding(
            "write bandwidth", f"{human_bytes(rate)}/s", "ok", f"a GiB of state takes {(1 << 30) / rate:.1f} s", rate
        ),
    ]


def _huge_share(memory: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> float:
    """Return the share of an array that lies in huge pages, 0 to 1."""
    address, inside, kib = memory.ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.partition(" ")[0]
        if "-" in head and not head.endswith(":"):
            lo, hi = (int(text, 16) for text in head.split("-"))
            inside = lo < address + memory.nbytes and address < hi
        elif inside and head == "AnonHugePages:":
            kib += int(line.split()[1])
    return min(1.0, kib * 1024 / memory.nbytes)
