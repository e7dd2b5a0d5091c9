"""How fast `mpickpt verify` reads a slot, compared with plain O_DIRECT reads of the same file, and its memory.

``make bench-verify`` takes 4 GiB in benchmarks/results, three rounds, and prints medians.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mpickpt.layout.arrays import ArraySpec, Layout, RankLayout
from mpickpt.snapshot import CutPlan, Snapshotter, Target, crc32c
from mpickpt.store import Store

REQUEST_BYTES = 4 << 20
GIB = 1 << 30


def write_slot(directory: Path, nbytes: int) -> Path:
    """Save an array of random numbers as epoch 1."""
    layout = Layout.of([RankLayout((ArraySpec("u", (nbytes // 8,), np.dtype("f8")),))])
    store = Store(directory, crc32c)
    store.create(0, layout)
    snapshotter = Snapshotter()
    memory = snapshotter.allocate(nbytes)
    numbers = np.random.default_rng(0).random(1 << 20)
    memory.view("f8").reshape(-1, numbers.size)[:] = numbers
    snapshotter.add(memory, owned=True)
    snapshotter.seal(layout.block_bytes, layout.block_bytes)
    snapshotter.boost(True)
    path = directory / "slot-0.h5"
    target = Target(path, store.offsets(0)[0], rank=0, run=1, digest=layout.digest)
    snapshotter.cut(CutPlan(target, epoch=1, step=1, objects=b""))
    snapshotter.wait()
    snapshotter.close()
    return path


def read_raw(path: Path, threads: int) -> float:
    """Seconds to read a file by O_DIRECT, in requests of 4 MiB from `threads` threads."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size = path.stat().st_size // 4096 * 4096

    def read(thread: int) -> None:
        with mmap.mmap(-1, REQUEST_BYTES) as buffer:
            for at in range(thread * REQUEST_BYTES, size, threads * REQUEST_BYTES):
                os.preadv(fd, [buffer], at)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as readers:
        list(readers.map(read, range(threads)))
    os.close(fd)
    return time.perf_counter() - began


def verify(path: Path) -> tuple[float, int]:
    """Seconds that `mpickpt verify` reports, and its peak memory in bytes."""
    code = (
        "import sys; from mpickpt.cli.main import main; status = main(sys.argv[1:])\n"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "verify", "--json", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)["files"][0]["seconds"], int(run.stderr.split()[1]) * 1024


def main() -> None:
    """Measure, in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(), help="where the slot is made")
    parser.add_argument("--gib", type=int, default=4, help="its size")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        path = write_slot(Path(folder), args.gib * GIB)
        rounds = []
        for _ in range(args.rounds):
            raw = [read_raw(path, threads) for threads in (1, 2, 4)]
            rounds.append((*raw, *verify(path)))
            print("raw 1, 2, 4 threads; verify:", *(f"{args.gib / s:.2f} GiB/s" for s in rounds[-1][:4]), flush=True)
    one, two, four, seconds, memory = (statistics.median(column) for column in zip(*rounds, strict=True))
    best = min(one, two, four)
    print(f"raw reads {args.gib / best:.2f} GiB/s at best, verify {args.gib / seconds:.2f} GiB/s", end="")
    print(f" ({best / seconds:.0%}), {memory / (1 << 20):.0f} MiB of memory")


if __name__ == "__main__":
    main()
