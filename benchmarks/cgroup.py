"""Limit what a process may write to the disk, by the kernel's block-I/O cgroup: version 1 (blkio) or 2 (io).

The kernel limits the real device, for all that the process itself writes past the page cache: neither the program nor
the benchmark takes part. Needs root.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
PROCESSES = "cgroup.procs"
LIMIT_V1, LIMIT_V2 = "blkio.throttle.write_bps_device", "io.max"
PATIENCE_SECONDS = 10.0  # for killed processes to end


class NotPossible(Exception):
    """Writing cannot be limited here; the message says why."""


def root_of_groups() -> Path:
    """Return the folder for cgroups that limit block I/O.

    Raises
    ------
    NotPossible
        Without root, or if the kernel has no such controller.
    """
    if os.geteuid() != 0:
        raise NotPossible("only root may limit what a process writes: run it as root")
    for _, folder, kind, options, *_ in (line.split() for line in MOUNTS.read_text().splitlines()):
        if kind == "cgroup" and "blkio" in options.split(",") and (Path(folder) / LIMIT_V1).exists():
            return Path(folder)
        if kind == "cgroup2" and "io" in (Path(folder) / "cgroup.subtree_control").read_text().split():
            return Path(folder)
    raise NotPossible(
        f"no cgroup with a limit for block I/O is mounted: neither version 1 with {LIMIT_V1}, nor version 2 with io in "
        "cgroup.subtree_control at its root"
    )


def disk_of(folder: Path) -> str:
    """Return the whole disk that a folder lies on, as ``major:minor``; limits are not for partitions.

    Raises
    ------
    NotPossible
        If the file system is not on a single block device.
    """
    number = folder.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        raise NotPossible(f"{folder} is on a file system without a block device of its own: choose another --dir")
    if (device / "partition").exists():
        device = device.resolve().parent
    return (device / "dev").read_text().strip()


class Groups(AbstractContextManager[list[Path]]):
    """Cgroups for ranks, which exist in the context; processes that still run in them at its end are killed."""

    def __init__(self, count: int) -> None:
        root = root_of_groups()
        self.folders = [root / f"mpickpt-bench-{os.getpid()}-{index}" for index in range(count)]

    def __enter__(self) -> list[Path]:
        """Make them."""
        for folder in self.folders:
            folder.mkdir()
        return self.folders

    def __exit__(self, *_: object) -> None:
        """Remove them."""
        end = time.monotonic() + PATIENCE_SECONDS
        for folder in self.folders:
            while folder.exists():
                for process in (folder / PROCESSES).read_text().split():
                    os.kill(int(process), signal.SIGKILL)
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.05)


class Limit(AbstractContextManager[None]):
    """Limits what the processes of a cgroup write to a folder's disk while the context is open.

    Parameters
    ----------
    group : Path
        The cgroup.
    folder : Path
        The folder that is written to.
    bytes_per_second : int
        The limit.
    """

    def __init__(self, group: Path, folder: Path, bytes_per_second: int) -> None:
        self.group = group
        self.disk = disk_of(folder)
        self.bytes_per_second = bytes_per_second
        self.first_version = (group / LIMIT_V1).exists()

    def join(self) -> None:
        """Move this process into the cgroup, with all its future threads and children."""
        (self.group / PROCESSES).write_text(str(os.getpid()))

    def __enter__(self) -> None:
        """Set the limit."""
        self._set(str(self.bytes_per_second))

    def __exit__(self, *_: object) -> None:
        """Lift the limit."""
        self._set("0" if self.first_version else "max")

    def _set(self, value: str) -> None:
        if self.first_version:
            (self.group / LIMIT_V1).write_text(f"{self.disk} {value}")
        else:
            (self.group / LIMIT_V2).write_text(f"{self.disk} wbps={value}")
