"""The batch system that a program runs under: which job it is, when the job ends, and how to queue it again.

This is the only module that knows SLURM_* and scontrol. `find` returns a `Slurm` inside a job, and an `Environment`
outside, which has the same interface for a program that no batch system started.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping

from mpickpt.errors import BatchError
from mpickpt.protocol.policy import Ceiling
from mpickpt.units import human_bytes

ASK_SECONDS = 30.0  # between two queries for the end of the job, which can change
ANSWER_SECONDS = 15.0  # a controller that is up answers sooner
JUMP_SECONDS = 5.0  # a larger jump of the clock is reported


class Environment:
    """No batch system: no job, no time limit, no queue.

    Attributes
    ----------
    job : str
        Names the job in messages; empty without one.
    restarts : int
        How often the job was started again.
    memory : Ceiling or None
        The job's limit of memory on this node, if it is known.
    """

    job: str = ""
    restarts: int = 0
    memory: Ceiling | None = None

    def seconds_left(self, now: float) -> float:
        """Return the remaining seconds of the job at the time `now` of `time.perf_counter`; does not wait."""
        return math.inf

    def requeue(self) -> None:
        """Queue the job again.

        Raises
        ------
        BatchError
            If that fails, or the job was cancelled.
        """
        raise BatchError("This is no batch job, so that nobody can start it again: SLURM_JOB_ID is not set.")

    def close(self) -> None:
        """Cancel a pending query."""


class Slurm(Environment):
    """A job of Slurm.

    The end of the job is queried in the background, so that a controller that does not answer blocks nobody. The
    remaining time is counted by the monotonic clock, because the clock of a node may be adjusted.

    Parameters
    ----------
    variables : mapping
        `os.environ` of the job.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        # The last task of a job array has the number of the array itself, so a task is named by its index.
        array, task = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
        self._id = f"{array}_{task}" if array and task else variables["SLURM_JOB_ID"]
        self.job = f"job {self._id}"
        self.restarts = int(variables.get("SLURM_RESTART_COUNT") or 0)
        self.memory = _memory(variables, self.job)
        self._offset = time.time() - time.perf_counter()
        self._end = float(variables.get("SLURM_JOB_END_TIME") or math.inf)  # newer releases set it
        self._ask_at = -math.inf
        self._asked: subprocess.Popen[str] | None = None
        self._told: set[str] = set()

    def seconds_left(self, now: float) -> float:
        """Return the remaining seconds of the job, as far as known; queries Slurm from time to time."""
        if self._asked is not None:
            self._take_answer(self._asked, now)
        elif now >= self._ask_at:
            self._ask_at = now + ASK_SECONDS
            self._ask()
        jump = time.time() - time.perf_counter() - self._offset
        if abs(jump) > JUMP_SECONDS:
            self._tell_once("clock", f"the clock of this node jumped by {jump:+.0f} s; its end is counted without that")
        return self._end - (now + self._offset)

    def requeue(self) -> None:
        """Queue the job again, unless it was cancelled."""
        if "EndTime" not in (shown := _fields(self._scontrol("show", "job", self._id))):
            raise BatchError(f"{self.job} is not queued again: scontrol does not know it.")
        if shown.get("JobState") != "RUNNING":
            if int(shown.get("Restarts", 0)) > self.restarts:
                return  # Slurm did it by itself, as after a preemption
            raise BatchError(f"{self.job} is not queued again: it was cancelled (Slurm says {shown.get('JobState')}).")
        self._scontrol("requeue", self._id)

    def close(self) -> None:
        """Cancel a pending query."""
        if self._asked is not None:
            self._asked.kill()
            self._asked.communicate()
            self._asked = None

    def _ask(self) -> None:
        try:
            self._asked = subprocess.Popen(
                [_find_program("scontrol"), "show", "job", self._id],
                env=_surroundings(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except (OSError, BatchError) as error:
            self._no_end(str(error))

    def _take_answer(self, asked: subprocess.Popen[str], now: float) -> None:
        if asked.poll() is None:
            if now > self._ask_at - ASK_SECONDS + ANSWER_SECONDS:
                self.close()
                self._no_end(f"scontrol did not answer in {ANSWER_SECONDS:g} s")
            return
        self._asked = None
        text = _fields(asked.communicate()[0]).get("EndTime")
        if text is None:
            self._no_end("scontrol does not tell")
            return
        end = float(text) if text.isdecimal() else math.inf  # "Unknown": the job has no limit
        if end != self._end:
            self._end = end
            again = f"restart {self.restarts}, " if self.restarts else ""
            self._tell(f"{again}ends in {end - now - self._offset:.0f} s")

    def _no_end(self, reason: str) -> None:
        known = "as told before" if math.isfinite(self._end) else "not known, so that only SIGTERM stops it in time"
        self._tell_once("end", f"its end is {known}: {reason}")

    def _tell_once(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._tell(text)

    def _tell(self, text: str) -> None:
        print(f"mpickpt: {self.job}: {text}", file=sys.stderr, flush=True)

    def _scontrol(self, *arguments: str) -> str:
        """Run scontrol, and wait for it."""
        try:
            found = subprocess.run(
                [_find_program("scontrol"), *arguments],
                env=_surroundings(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=ANSWER_SECONDS,
            )
        except BatchError as error:
            raise BatchError(f"{self.job} is not queued again: {error}") from None
        except subprocess.TimeoutExpired:
            text = f"{self.job} is not queued again: scontrol did not answer in {ANSWER_SECONDS:g} s."
            raise BatchError(text) from None
        if found.returncode != 0:
            said = " ".join(found.stderr.split()) or f"status {found.returncode}"
            raise BatchError(f"{self.job} is not queued again: scontrol {arguments[0]} says: {said}.")
        return found.stdout


def find(variables: Mapping[str, str]) -> Environment:
    """Return the job that `variables`, usually `os.environ`, describe."""
    return Slurm(variables) if variables.get("SLURM_JOB_ID") else Environment()


def submit(script: str) -> str:
    """Hand a batch script to sbatch, and return what it prints.

    Raises
    ------
    BatchError
        If there is no sbatch, or it refuses.
    """
    try:
        found = subprocess.run([_find_program("sbatch")], input=script, capture_output=True, text=True)
    except BatchError as error:
        raise BatchError(f"The script cannot be submitted: {error}") from None
    if found.returncode != 0:
        raise BatchError(f"The script was not submitted. sbatch says: {' '.join(found.stderr.split())}")
    return found.stdout


def _find_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BatchError(f"there is no {name} in PATH.")
    return path


def _surroundings() -> dict[str, str]:
    return {**os.environ, "SLURM_TIME_FORMAT": "%s"}  # seconds, whatever the time zone


def _fields(text: str) -> dict[str, str]:
    """Parse the output of ``scontrol show job``."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def _memory(variables: Mapping[str, str], job: str) -> Ceiling | None:
    """Return the memory that the job requested on each node, which Slurm may enforce without cgroups.

    Slurm counts the memory in use by the processes of the job. ``--mem=0`` requests all.
    """
    node = variables.get("SLURM_MEM_PER_NODE", "")
    cpu = variables.get("SLURM_MEM_PER_CPU", "")
    cpus = variables.get("SLURM_CPUS_ON_NODE", "")
    if node.isdecimal() and int(node):
        mib, name = int(node), "SLURM_MEM_PER_NODE"
    elif cpu.isdecimal() and int(cpu) and cpus.isdecimal():
        mib, name = int(cpu) * int(cpus), "SLURM_MEM_PER_CPU"
    else:
        return None
    nbytes = mib << 20
    return Ceiling(
        key=f"{os.uname().nodename}:{job}",
        name=f"the limit of {human_bytes(nbytes)} of {job} on this node ({name})",
        left=nbytes,
        of_ranks=True,
    )
