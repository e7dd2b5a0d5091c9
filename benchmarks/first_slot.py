"""How long a program of very many arrays is blocked until its first epoch is complete.

A process declares the arrays, asks for a checkpoint at once, and computes in steps. What its safe points take until the
epoch is complete is how long it is blocked, in all and at most at once. Beside it, in turn, the same program runs with
slots that are created while it waits. ``make bench-creation`` runs both three times, and prints medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STEP_SECONDS = 0.01
CELLS = 64  # of each array


def program(directory: Path, arrays: int, *, waits: bool) -> None:
    """Run the program, and print its seconds: in all safe points, in the longest, until the epoch is complete."""
    import mpickpt
    from mpickpt.session import slots

    if waits:
        slots.MANY_ARRAYS = arrays
    state = np.zeros(arrays * CELLS)
    with mpickpt.open(directory, record=False) as ckpt:
        for k in range(arrays):
            ckpt.protect(f"a{k}", state[k * CELLS : (k + 1) * CELLS])
        began = time.perf_counter()
        blocked = [0.0]
        while not ckpt.stats().complete:
            at = time.perf_counter()
            ckpt.step()
            blocked.append(time.perf_counter() - at)
            if len(blocked) == 2:
                ckpt.request()
            state += 1
            time.sleep(STEP_SECONDS)
        complete = time.perf_counter() - began
    print(json.dumps([sum(blocked), max(blocked), complete]))


def main() -> None:
    """Measure, in turn, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(), help="where the slots are made")
    parser.add_argument("--arrays", type=int, default=16000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", choices=("beside", "waits"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        program(args.dir, args.arrays, waits=args.program == "waits")
        return
    rows: dict[str, list[list[float]]] = {"beside": [], "waits": []}
    for _ in range(args.rounds):
        for way, found in rows.items():
            with tempfile.TemporaryDirectory(dir=args.dir) as folder:
                command = [sys.executable, __file__, "--program", way, "--arrays", str(args.arrays), "--dir", folder]
                found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
                print(f"{way}:", *(f"{value:.3f}" for value in found[-1]), flush=True)
    print(f"{args.arrays} arrays on one rank, slots created")
    for way, text in (("beside", "beside the program"), ("waits", "while it waits")):
        blocked, longest, complete = (statistics.median(column) for column in zip(*rows[way], strict=True))
        print(
            f"  {text}: blocked for {1e3 * blocked:.0f} ms, {1e3 * longest:.0f} ms at most at once; the first epoch is "
            f"complete after {complete:.2f} s"
        )


if __name__ == "__main__":
    main()
