"""What it takes to create a slot of many arrays, to read its structure, and to list it.

Beside it, the same datasets are created with h5py in the usual way, aligned to pages, with the two attributes that say
what each array is; on a tenth of the ranks, as that takes long. ``make bench-creation`` does both in turn, three
times, and prints medians. Times of creation and reading are those of the processor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from mpickpt.layout.arrays import PAGE_BYTES, ArraySpec, Layout, RankLayout
from mpickpt.layout.parts import Part
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, slot_path

SHAPE = (4, 16)


def make_layout(ranks: int, arrays: int, *, parts: bool) -> Layout:
    """Return the layout of ranks with so many arrays each, which are shares of global ones, or are not."""
    dtype = np.dtype("f8")

    def spec(rank: int, k: int) -> ArraySpec:
        part = Part((SHAPE[0] * ranks, SHAPE[1]), (SHAPE[0] * rank, 0)) if parts else None
        return ArraySpec(f"a{k}", SHAPE, dtype, part)

    return Layout.of([RankLayout(tuple(spec(rank, k) for k in range(arrays))) for rank in range(ranks)])


def with_mpickpt(folder: Path, layout: Layout) -> tuple[float, float, float, float]:
    """Return processor seconds of creating and of reading, bytes of structure, and seconds of a second `mpickpt ls`."""
    store = Store(folder, crc32c)
    began = time.process_time()
    store.create(0, layout)
    created = time.process_time()
    _, places = store.structure(slot_path(folder, 0))
    read = time.process_time()
    for _ in range(2):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mpickpt", "ls", "."], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    listed = time.perf_counter() - started
    slot_path(folder, 0).unlink()
    return created - began, read - created, float(places[0].record), listed


def by_hand(path: Path, layout: Layout, ranks: int) -> tuple[float, float]:
    """Return processor seconds, and bytes of structure, for the first ranks of a layout with h5py."""
    began = time.process_time()
    with h5py.File(path, "w", alignment_threshold=0, alignment_interval=PAGE_BYTES) as file:
        for number, rank in enumerate(layout.ranks[:ranks]):
            group = file.create_group(f"ranks/{number:05d}")
            for spec in rank.arrays:
                dataset = group.create_dataset(spec.name, spec.shape, spec.dtype)
                dataset.attrs["order"] = spec.order
                dataset.attrs["start"] = spec.part.start if spec.part is not None else ()
    seconds = time.process_time() - began
    nbytes = path.stat().st_size
    path.unlink()
    return seconds, float(nbytes)


def main() -> None:
    """Measure, in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(), help="where the slots are made")
    parser.add_argument("--ranks", type=int, default=2000)
    parser.add_argument("--arrays", type=int, default=100, help="on each rank")
    parser.add_argument("--alone", action="store_true", help="the arrays are no shares of global ones")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    layout = make_layout(args.ranks, args.arrays, parts=not args.alone)
    few = max(1, args.ranks // 10)
    count = args.ranks * args.arrays
    rows = []
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        for _ in range(args.rounds):
            ours = with_mpickpt(Path(folder), layout)
            theirs = by_hand(Path(folder) / "by-hand.h5", layout, few)
            rows.append((*ours, *theirs))
            print("round:", *(f"{value:.6g}" for value in rows[-1]), flush=True)
    create, read, nbytes, listed, hand, hand_bytes = (statistics.median(column) for column in zip(*rows, strict=True))
    each = 1e6 / count
    print(f"{count} arrays on {args.ranks} ranks: created in {create:.2f} s ({create * each:.0f} us each),")
    print(f"  {nbytes / 1e6:.0f} MB of structure ({nbytes / count:.0f} bytes each), read in {read:.2f} s,")
    print(f"  listed in {listed:.2f} s of the clock")
    hand_each = hand / (few * args.arrays)
    print(f"with h5py, on {few} ranks: {hand_each * 1e6:.0f} us and {hand_bytes / (few * args.arrays):.0f} bytes each;")
    print(f"  processor time of mpickpt to that of h5py: {create / count / hand_each:.2f}")


if __name__ == "__main__":
    main()
