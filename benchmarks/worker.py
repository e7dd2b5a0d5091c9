"""One rank of one configuration: runs the contenders in turn and gathers their times.

`launch.py` starts it under mpiexec. Its arguments are a configuration in JSON and a folder to write in; rank 0 writes
the result there.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import live
import memory
from bandwidth import Idle
from blocking import Contender, DirectWrite, H5pyInPlace, H5pyNew, NumpySave
from cgroup import Limit
from configuration import (
    DIRECT,
    FORK,
    H5PY_IN_PLACE,
    H5PY_NEW,
    NUMPY,
    WHOLE_POOL,
    Configuration,
    contender_named,
)
from forked import ForkWrite
from patterns import PATTERNS, Pattern

NONE = "none"
OTHERS: dict[str, type[Contender]] = {
    FORK: ForkWrite,
    DIRECT: DirectWrite,
    H5PY_IN_PLACE: H5pyInPlace,
    H5PY_NEW: H5pyNew,
    NUMPY: NumpySave,
}
POLL_SECONDS = 0.005  # between two checks whether the checkpoint is on the disk, much longer than a check takes
TRIAL = 4  # passes of a trial run of the work


@dataclass
class Run:
    """One run of the work on this rank, in seconds and bytes; figures of checkpoints are per checkpoint.

    Attributes
    ----------
    steps, cuts : int
        Steps of the work, and checkpoints in it.
    seconds, cpu : float
        Of the whole run: time, and processor time of all threads and child processes.
    blocked, durable : float
        Blocked at the cut, and from the cut until the checkpoint was on the disk.
    first_cut : float or None
        Blocked at the first cut of the session, in the epochs before the run; None if there are none.
    memory : float
        Bytes in addition to the state.
    told : dict of str to float
        What the contender itself counted.
    beside : list of Run
        The same work without a checkpoint, right before and right after it.
    """

    steps: int = 0
    cuts: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    blocked: float = 0.0
    durable: float = 0.0
    first_cut: float | None = None
    memory: float = 0.0
    told: dict[str, float] | None = None
    beside: list[Run] = field(default_factory=list)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


class Rank:
    """The state of one rank, and the contenders that save it."""

    def __init__(self, configuration: Configuration, folder: Path) -> None:
        self.comm = MPI.COMM_WORLD
        self.configuration = configuration
        self.folder = folder / f"rank-{self.comm.rank}"
        self.folder.mkdir()
        self.shared = folder / "session.ckpt"
        self.state = memory.allocate(configuration.nbytes, huge=configuration.huge)
        self.limit: AbstractContextManager[None] = nullcontext()
        if configuration.cgroups:
            limit = Limit(Path(configuration.cgroups[self.comm.rank]), self.folder, configuration.bytes_per_second)
            limit.join()
            self.limit = limit
        self.contenders = {name: self.contender(name) for name in configuration.contenders}

    def contender(self, name: str) -> Contender:
        """Return the contender of that name, with its own files."""
        named = contender_named(name)
        if named.pool is not None:
            return self.live_with(named.pool, named.environment)
        folder = self.folder / f"contender-{len(list(self.folder.iterdir()))}"
        folder.mkdir()
        return OTHERS[named.kind](folder, self.state)

    def live_with(self, pool_share: float, environment: dict[str, str]) -> live.Live:
        """Return mpickpt as a contender, with a pool of a share of the state."""
        pool = int(self.configuration.nbytes * pool_share)
        huge = self.configuration.huge
        return live.Live(self.shared, self.state, self.comm, huge=huge, pool=pool, environment=environment)

    def run(self, contender: Contender, pattern: type[Pattern], passes: int, cuts: int) -> Run:
        """Do the work of `pattern.cuts` epochs, of which the first `cuts` begin with a checkpoint.

        Before and after it comes the same work without a checkpoint, on the same memory: other pages can make more of a
        difference than a checkpoint.
        """
        resident = _memory("VmRSS")
        state = contender.open(pattern(self.state, passes).steps)
        work = pattern(state, passes)
        for index in range(work.pass_steps):
            work.step(index)
        before = self.plain_run(work, pattern.cuts)
        warm_ups = [Run(cuts=1) for _ in range(contender.warm_up)]
        for warm_up in warm_ups:
            self.epoch(warm_up, contender, work, cut=True)
        own_state = 0 if np.may_share_memory(state, self.state) else state.nbytes
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of the memory
        run = Run(cuts=cuts, first_cut=warm_ups[0].blocked if warm_ups else None)
        self.comm.Barrier()
        told = contender.told()
        cpu, begin = _cpu_seconds(), time.perf_counter()
        for epoch in range(pattern.cuts):
            self.epoch(run, contender, work, cut=epoch < cuts)
        run.seconds = time.perf_counter() - begin
        run.cpu = _cpu_seconds() - cpu
        run.told = {key: (value - told[key]) / cuts for key, value in contender.told().items()}
        run.memory = max(contender.copied_bytes, _memory("VmHWM") - resident - own_state)
        self.comm.Barrier()
        contender.close()
        run.beside = [before, self.plain_run(work, pattern.cuts)]
        return run

    def plain_run(self, work: Pattern, epochs: int) -> Run:
        """Do the work of `epochs` epochs without a checkpoint."""
        run = Run()
        plain = Contender(self.folder, work.state)
        self.comm.Barrier()
        cpu, begin = _cpu_seconds(), time.perf_counter()
        for _ in range(epochs):
            self.epoch(run, plain, work, cut=False)
        run.seconds = time.perf_counter() - begin
        run.cpu = _cpu_seconds() - cpu
        return run

    def epoch(self, run: Run, contender: Contender, work: Pattern, *, cut: bool) -> None:
        """Do the work of one epoch, with a checkpoint at its head or without; add to `run`.

        The work continues in whole passes until the checkpoint is on the disk, so that the epoch contains all its cost.
        """
        pending = cut
        cut_at = time.perf_counter()
        if cut:
            contender.cut()
            run.blocked += (time.perf_counter() - cut_at) / max(1, run.cuts)
        index, next_poll = 0, 0.0
        while index < work.steps or pending or index % work.pass_steps:
            work.step(index)
            index += 1
            contender.safe_point()
            if pending and (now := time.perf_counter()) >= next_poll:
                next_poll = now + POLL_SECONDS
                pending = not contender.done()
                run.durable += 0.0 if pending else (now - cut_at) / max(1, run.cuts)
        run.steps += index

    def passes_for(self, pattern: type[Pattern]) -> int:
        """Return how many passes take the requested time between two cuts."""
        work = pattern(self.state, TRIAL)
        wanted = self.configuration.work_seconds / pattern.cuts
        for index in range(work.pass_steps):
            work.step(index)
        self.comm.Barrier()
        trials, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < wanted / 4 or trials == 0:
            for index in range(work.steps):
                work.step(index)
            trials += 1
        return max(1, int(self.comm.allreduce(round(TRIAL * trials * wanted / elapsed), MPI.MIN)))

    def measure_pattern(self, name: str) -> dict[str, list[dict[str, float]]]:
        """Run all contenders in turn, forwards and backwards in all repetitions, each between two plain runs."""
        pattern = PATTERNS[name]
        passes = self.passes_for(pattern)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in (NONE, *self.contenders)}
        for repetition in range(self.configuration.repetitions):
            names = list(self.contenders)
            for name in names if repetition % 2 == 0 else reversed(names):
                contender = self.contenders[name]
                with self.limit if contender_named(name).throttled else nullcontext():
                    run = self.run(contender, pattern, passes, cuts=pattern.cuts if contender.warm_up else 1)
                runs[name].append(self._beside(run))
                runs[NONE] += [{"steps": it.steps, "seconds": it.seconds, "cpu": it.cpu} for it in run.beside]
        return runs

    def _beside(self, run: Run) -> dict[str, float]:
        """Compare a run with as many steps without a checkpoint: the slowest rank's times, the mean of others."""
        before, after = run.beside
        share = run.steps / (before.steps + after.steps)
        added = (run.seconds - share * (before.seconds + after.seconds)) / run.cuts
        cpu = (run.cpu - share * (before.cpu + after.cpu)) / run.cuts
        told = run.told or {}
        times = {"added": added, "blocked": run.blocked, "durable": run.durable}
        times |= {"first_cut": run.first_cut} if run.first_cut is not None else {}
        times |= {key: told[key] for key in ("faults", "stalls", "drain") if key in told}
        rest = {"cpu_added": cpu, "memory": run.memory}
        rest |= {key: told[key] for key in ("written", "copied") if key in told}
        slowest = {key: float(self.comm.allreduce(value, MPI.MAX)) for key, value in times.items()}
        return slowest | {key: float(self.comm.allreduce(value)) / self.comm.size for key, value in rest.items()}

    def measure_bandwidth(self) -> dict[str, list[float]]:
        """Measure the seconds of a drain and a restart of idle ranks, and of raw writes and reads."""
        named = contender_named(WHOLE_POOL)
        contender = self.live_with(named.pool or 1.0, named.environment)
        idle = Idle(self.comm, contender, self.state, huge=self.configuration.huge)
        return idle.measure(self.configuration.repetitions)


def main() -> None:
    """Measure the configuration in the first argument, in the folder in the second."""
    configuration, folder = Configuration(**json.loads(sys.argv[1])), Path(sys.argv[2])
    rank = Rank(configuration, folder)
    result: dict[str, Any] = {"patterns": {name: rank.measure_pattern(name) for name in configuration.patterns}}
    if configuration.bandwidth:
        result["bandwidth"] = rank.measure_bandwidth()
    if rank.comm.rank == 0:
        (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
