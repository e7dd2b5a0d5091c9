"""One rank of one configuration: runs the contenders in turn and gathers what they took.

Started by `bench.py` under mpiexec, with a configuration in JSON as its argument; rank 0 writes the result to
the file that the configuration names.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import live
import workload
from blocking import Contender, DirectWrite, H5pyInPlace, H5pyNew, NumpySave
from direct import DirectFile
from forked import ForkWrite

GIB = 1024**3
NONE = "none"
LIVE_POOLS = {"mpickpt, pool = state": 1.0, "mpickpt, pool = state/4": 0.25}
OTHERS: dict[str, type[Contender]] = {
    "fork()": ForkWrite,
    "O_DIRECT write": DirectWrite,
    "h5py, in place": H5pyInPlace,
    "h5py, new file": H5pyNew,
    "numpy.save": NumpySave,
}
CUT_AT = 0.25  # of the work: the drain has the other three quarters to run beside it
MINIMUM_STEPS = 8


@dataclass(frozen=True)
class Configuration:
    """What one start of mpiexec measures."""

    nbytes: int
    huge: bool
    patterns: list[str]
    contenders: list[str]
    repetitions: int
    work_seconds: float
    folder: str
    output: str


@dataclass(frozen=True)
class Run:
    """One run of the work on this rank."""

    steps: int
    seconds: float
    blocked: float  # at the cut
    durable: float  # from the cut until the checkpoint was on the disk; 0 without one
    cpu: float  # seconds, of all threads and child processes
    memory: float  # bytes beside the state


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


class Rank:
    """The state of one rank, and the contenders that save it."""

    def __init__(self, configuration: Configuration) -> None:
        self.comm = MPI.COMM_WORLD
        self.configuration = configuration
        self.folder = Path(configuration.folder) / f"rank-{self.comm.rank}"
        self.folder.mkdir()
        self.shared = Path(configuration.folder) / "session.ckpt"
        self.state = workload.allocate(configuration.nbytes, huge=configuration.huge)
        self.contenders: dict[str, Contender] = {NONE: Contender(self.folder, self.state)}
        for name in configuration.contenders:
            if name in LIVE_POOLS:
                self.contenders[name] = self.live_with(LIVE_POOLS[name])
            else:
                self.contenders[name] = OTHERS[name](self.folder, self.state)

    def live_with(self, pool_share: float) -> live.Live:
        """Make mpickpt the contender, with a pool of a share of the state."""
        pool = int(self.configuration.nbytes * pool_share)
        return live.Live(self.shared, self.state, self.comm, huge=self.configuration.huge, pool=pool)

    def run(self, contender: Contender, pattern: str, steps: int, *, checkpoint: bool) -> Run:
        """Do the work once, with a checkpoint in its midst or without.

        The work goes on beyond `steps` until the checkpoint is on the disk, so that all its cost falls into the run.
        """
        resident = _memory("VmRSS")
        state = contender.open(steps)
        workload.step(state, pattern)  # since the last checkpoint, as in a run that makes one after another
        own_state = 0 if np.may_share_memory(state, self.state) else state.nbytes
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of the memory starts anew
        cut_step = int(steps * CUT_AT) if checkpoint else steps
        cut_at = blocked = durable = 0.0
        index = 0
        self.comm.Barrier()
        cpu = _cpu_seconds()
        begin = time.perf_counter()
        while index < steps or (checkpoint and durable == 0.0):
            if index == cut_step:
                cut_at = time.perf_counter()
                contender.cut()
                blocked = time.perf_counter() - cut_at
            else:
                contender.safe_point()
            if checkpoint and index >= cut_step and durable == 0.0 and contender.done():
                durable = time.perf_counter() - cut_at
            workload.step(state, pattern)
            index += 1
        seconds = time.perf_counter() - begin
        cpu = _cpu_seconds() - cpu
        memory = max(contender.copied_bytes, _memory("VmHWM") - resident - own_state)
        self.comm.Barrier()
        contender.close()
        return Run(index, seconds, blocked, durable, cpu, memory)

    def steps_for(self, pattern: str) -> int:
        """Return how many steps of a pattern take the time that is asked for."""
        workload.step(self.state, pattern)
        self.comm.Barrier()
        count, begin = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < self.configuration.work_seconds / 8:
            workload.step(self.state, pattern)
            count += 1
        steps = round(count * self.configuration.work_seconds / elapsed)
        return max(MINIMUM_STEPS, int(self.comm.allreduce(steps, MPI.MIN)))

    def measure_pattern(self, pattern: str) -> dict[str, list[dict[str, float]]]:
        """Run all contenders in turn, as often as asked for, forwards and backwards, each between two plain runs."""
        steps = self.steps_for(pattern)
        plain = self.contenders[NONE]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in self.contenders}
        for repetition in range(self.configuration.repetitions):
            names = [name for name in self.contenders if name != NONE]
            before = self.run(plain, pattern, steps, checkpoint=False)
            for name in names if repetition % 2 == 0 else reversed(names):
                run = self.run(self.contenders[name], pattern, steps, checkpoint=True)
                after = self.run(plain, pattern, steps, checkpoint=False)
                runs[NONE].append(asdict(after))
                runs[name].append(self._beside(run, before, after))
                before = after
        return runs

    def _beside(self, run: Run, before: Run, after: Run) -> dict[str, float]:
        """Compare a run with as many steps without a checkpoint: the slowest rank's times, the mean of the rest."""
        share = run.steps / (before.steps + after.steps)
        added = run.seconds - share * (before.seconds + after.seconds)
        cpu = run.cpu - share * (before.cpu + after.cpu)
        times = {"added": added, "blocked": run.blocked, "durable": run.durable}
        rest = {"cpu_added": cpu, "memory": run.memory}
        slowest = {key: float(self.comm.allreduce(value, MPI.MAX)) for key, value in times.items()}
        return slowest | {key: float(self.comm.allreduce(value)) / self.comm.size for key, value in rest.items()}

    def measure_bandwidth(self) -> dict[str, list[float]]:
        """Take the seconds of a drain and a restart of idle ranks, and those of raw writing and reading."""
        raw = DirectFile(self.folder / "raw", self.state)
        live_contender = self.live_with(1.0)
        seconds: dict[str, list[float]] = {"raw write": [], "drain": [], "raw read": [], "restart": []}
        state = live_contender.open(live.NEVER)
        for repetition in range(self.configuration.repetitions):
            for name in ("raw write", "drain") if repetition % 2 == 0 else ("drain", "raw write"):
                workload.touch(state)
                self.comm.Barrier()
                begin = time.perf_counter()
                if name == "drain":
                    live_contender.cut()
                    live_contender.sleep_until_done()
                else:
                    raw.write(self.state)
                seconds[name].append(self._slowest(time.perf_counter() - begin))
        live_contender.close()
        for repetition in range(self.configuration.repetitions):
            for name in ("raw read", "restart") if repetition % 2 == 0 else ("restart", "raw read"):
                if name == "restart":
                    took = live.restart(self.shared, self.state, self.comm, huge=self.configuration.huge)
                else:
                    took = self._raw_read(raw)
                seconds[name].append(self._slowest(took))
        raw.close()
        return seconds

    def _raw_read(self, raw: DirectFile) -> float:
        """Read into memory as a restart does: new memory for huge pages, the program's own for 4 KiB pages."""
        self.comm.Barrier()
        begin = time.perf_counter()
        into = workload.reserve(self.configuration.nbytes, huge=True) if self.configuration.huge else self.state
        raw.read(into)
        return time.perf_counter() - begin

    def _slowest(self, seconds: float) -> float:
        return float(self.comm.allreduce(seconds, MPI.MAX))

    def remove(self) -> None:
        """Remove the contenders' files."""
        for contender in self.contenders.values():
            contender.remove()
        self.folder.rmdir()
        self.comm.Barrier()
        if self.comm.rank == 0 and self.shared.exists():
            shutil.rmtree(self.shared)


def main() -> None:
    """Measure the configuration in the first argument."""
    configuration = Configuration(**json.loads(sys.argv[1]))
    rank = Rank(configuration)
    result: dict[str, Any] = {
        "patterns": {pattern: rank.measure_pattern(pattern) for pattern in configuration.patterns},
        "bandwidth": rank.measure_bandwidth(),
    }
    rank.remove()
    if rank.comm.rank == 0:
        Path(configuration.output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
