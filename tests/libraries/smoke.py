"""An MPI program that receives by each call, one a step, into saved arrays, with a cut at each step.

``smoke.py DIRECTORY STEPS REPORT [AVOID]`` goes on from DIRECTORY. Calls whose name the pattern AVOID matches are not
made. A window on a saved array, a window's own memory that is saved, and a persistent receive are in use all the time.

At each safe point each rank notes a digest of its arrays in DIRECTORY/digests-RANK. A start that restores an epoch
compares its arrays with what was noted at that step: a torn image ends the program. REPORT gets one JSON object.
"""

from __future__ import annotations

import json
import re
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
from mpi4py import MPI

import mpickpt

sys.path.append(str(Path(__file__).resolve().parents[1] / "guard"))

from mpi_cases import CASES, Stage  # noqa: E402  (found by the line above)
from protected import BLOCK  # noqa: E402

EACH = BLOCK * 3 // 2  # bytes that a rank sends: a message ends within a block
LARGE = 1 << 20  # the messages of the persistent receive and of the windows: libraries treat large ones in another way
START = BLOCK + 16  # within a page whose other bytes are saved, too; where windows may begin with every library


def digest(*arrays: np.ndarray) -> str:
    """Give a digest of all bytes."""
    sum_ = sha256()
    for array in arrays:
        sum_.update(memoryview(array).cast("B"))
    return sum_.hexdigest()


def loaded() -> list[str]:
    """Give the MPI libraries that this process has loaded."""
    return sorted(set(re.findall(r"\S+/libmpi(?:ch|_abi)?\.so\S*", Path("/proc/self/maps").read_text())))


class Neighbours:
    """What stays in use from step to step: a window on `shown`, the window `held`, and a receive into `into`."""

    def __init__(self, comm: MPI.Intracomm, shown: np.ndarray, held: MPI.Win, into: np.ndarray) -> None:
        self.right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self.sent = np.zeros(LARGE, np.uint8)
        self.windows = (MPI.Win.Create(shown, comm=comm), held)
        self.requests = [
            comm.Recv_init([into, MPI.BYTE], left, 7),
            comm.Send_init([self.sent, MPI.BYTE], self.right, 7),
        ]

    def exchange(self, value: int) -> None:
        """Put to the right, and receive from the left."""
        self.sent[:] = value
        self.sent[:: 1 + value % 7] += 1
        for window in self.windows:
            window.Fence()
            window.Put([self.sent, MPI.BYTE], self.right)
            window.Fence()
        MPI.Prequest.Startall(self.requests)
        MPI.Request.Waitall(self.requests)

    def close(self) -> None:
        """Free the window and the requests."""
        self.windows[0].Free()
        for request in self.requests:
            request.Free()


def make_call(name: str, stage: Stage) -> np.ndarray | None:
    """Make one call, check the data, and give them; None if the library does not have the call."""
    try:
        received = CASES[name](stage)
    except NotImplementedError:
        return None
    assert np.array_equal(stage.into, received), f"rank {stage.comm.rank}: {name} received wrong data"
    if name.endswith("shared"):
        stage.into[:] = 0  # which rank reads which message is not the same in each run
    return received


def main() -> None:
    """Make the calls, compare and report."""
    comm = MPI.COMM_WORLD
    directory, steps, report = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    avoid = sys.argv[4] if len(sys.argv) > 4 else None
    names = [name for name in CASES if avoid is None or not re.search(avoid, name)]
    done, missing = [], []
    with mpickpt.open(directory, comm, every=1) as ckpt:
        memory = ckpt.array("memory", START + EACH * comm.size + 2 * BLOCK, np.uint8)
        total = ckpt.array("total", EACH * comm.size, np.uint64)
        held = MPI.Win.Allocate(LARGE, comm=comm)
        saved = [memory, total, *(ckpt.array(name, LARGE, np.uint8) for name in ("shown", "received"))]
        saved.append(ckpt.protect("held", np.frombuffer(held.tomemory(), np.uint8)))
        neighbours = Neighbours(comm, saved[2], held, saved[3])
        noted = directory / f"digests-{comm.rank}"
        before = dict(line.split() for line in noted.read_text().splitlines()) if noted.exists() else {}
        with noted.open("a") as notes:
            for step in ckpt.range(steps):
                now = digest(*saved)
                assert before.setdefault(str(step), now) == now, f"rank {comm.rank}: a torn image at step {step}"
                print(step, now, file=notes, flush=True)
                name = names[step % len(names)]
                stage = Stage(comm, memory[START : START + EACH * comm.size], directory)
                received = make_call(name, stage)
                (missing if received is None else done).append(name)
                total *= 3
                total += stage.into
                memory[: START - 8] += 1  # the neighbour in the same page is written to, by the program
                neighbours.exchange(int(total[step]) % 251)
                assert (saved[2] == saved[3]).all() and (saved[4] == saved[3]).all()
        result = digest(*saved)
        neighbours.close()
        everybody = comm.gather(result)
        if comm.rank == 0:
            told = {
                "library": MPI.Get_library_version(),
                "files": loaded(),
                "calls": sorted(set(done)),
                "missing": sorted(set(missing)),
                "digests": everybody,
                "restored": ckpt.restored is not None,
            }
            report.write_text(json.dumps(told))
    del saved[4]
    held.Free()


main()
