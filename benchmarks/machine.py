"""A description of the machine: enough to judge the figures, without its name."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

FREE_FORM = ("model name", "CPU part")  # x86-64 and aarch64


def describe(folder: Path) -> dict[str, str | int]:
    """Return the processor, memory, kernel, file system and versions.

    Parameters
    ----------
    folder : Path
        The folder that the benchmark writes to, for its file system.
    """
    cpu = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith(FREE_FORM)]
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    huge = re.search(r"\[(\w+)\]", Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text())
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count() or 0,
        "virtual": " hypervisor" in cpu,
        "memory_gib": round(int(memory[1]) / 2**20) if memory else 0,
        "kernel": platform.release().partition("-")[0],
        "file_system": _file_system(folder),
        "transparent_huge_pages": huge[1] if huge else "unknown",
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "h5py": version("h5py"),
        "mpickpt": version("mpickpt"),
    }


def _file_system(folder: Path) -> str:
    """Return the type of the mount with the longest path that the folder lies under."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    under = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    return max(under, key=lambda mount: len(mount[1]))[2] if under else "unknown"
