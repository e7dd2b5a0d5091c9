"""A program of short steps whose storage hangs from the thirtieth on, as long as the file `hang` is there."""

import argparse
import fcntl
import threading
import time
from pathlib import Path

from mpi4py import MPI

import mpickpt
from mpickpt.mpi import coordinator

parser = argparse.ArgumentParser()
parser.add_argument("schedule", help="every=N or interval=SECONDS")
parser.add_argument("--seconds", type=float, default=0.0, help="that the storage hangs")
parser.add_argument("--limit", default="1s", help="after which an epoch is given up: a busy machine takes a while")
parser.add_argument("--steps", type=int, default=0)
parser.add_argument("--more", type=int, default=0, help="steps, from where it goes on")
parser.add_argument("--still", action="store_true", help="change little, so that the pool is never full")
parser.add_argument("--abrupt", action="store_true", help="end with the storage as it is")
args = parser.parse_args()
comm = MPI.COMM_WORLD
key, value = args.schedule.split("=")
hang = Path("hang")
coordinator.SAY_AFTER = 1.0


def hang_for_a_while() -> None:
    hang.touch()
    time.sleep(args.seconds)
    hang.unlink()


def meet() -> None:
    """Wait for the other rank, and leave the processors to the drain threads meanwhile."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.001)


releaser = threading.Thread(target=hang_for_a_while, daemon=True)
longest, last = 0.0, time.monotonic()
schedule = {key: float(value) if key == "interval" else int(value)}
with mpickpt.open("c", comm, stall_limit=args.limit, **schedule) as ckpt:
    u = ckpt.array("u", 1 << 20)
    first = ckpt.restored.step if ckpt.restored else 0
    assert (u == (0 if args.still else first)).all()
    for step in ckpt.range(args.steps or first + args.more):
        if args.still:
            u[0] = u[-1] = 0
        else:
            u += 1
        time.sleep(0.01)
        if step == 29 and comm.rank == 0:
            releaser.start()
        meet()
        now = time.monotonic()
        longest, last = max(longest, now - last) if step > first else 0.0, now
    stats = ckpt.stats()
closing = time.monotonic() - last
print(f"rank {comm.rank}: longest step {longest:.1f}, close {closing:.1f}, complete {stats.complete}", flush=True)
if args.abrupt:
    if comm.rank == 0:
        with (Path("c") / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("the directory is locked", flush=True)
    comm.Barrier()
    hang.unlink(missing_ok=True)
elif releaser.ident:
    releaser.join()
