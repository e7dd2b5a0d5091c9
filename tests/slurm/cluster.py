"""A real Slurm on this machine: a munged, a slurmctld and a slurmd for each node, all in one folder.

    python cluster.py FOLDER [NODES]     until its standard input ends; then nothing is left running

A process of its own holds the daemons, and stops them when its standard input ends: nothing stays behind, even if its
parent is killed by SIGKILL. `start` is for tests; you can also use it by hand:
``SLURM_CONF=FOLDER/slurm.conf sinfo`` in another shell.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
START_SECONDS = 30
CPUS = 4  # of each node, as Slurm sees it; the machine may have fewer

# One user, one machine, and no waits that a test does not need: cred_expire is how long a requeued job has to wait.
# MPICH names its shared memory after the number of the job, so that two clusters must not count from the same one.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
MailProg=/bin/true
SlurmdParameters=config_overrides
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=pmi2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=10
OverTimeLimit=0
SlurmdTimeout=6
SlurmctldTimeout=10
InactiveLimit=0
MinJobAge=300
WaitTime=0
NodeName=DEFAULT CPUs={cpus} RealMemory=1000 State=UNKNOWN
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE State=UP
PartitionName=apart Nodes=n{last} PriorityTier=1 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Say why there can be no cluster here; empty if there can."""
    absent = [name for name in DAEMONS if _program(name) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start slurmd"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Cluster:
    """The cluster as the one who started it sees it.

    Parameters
    ----------
    folder
        Where all of it is kept.

    Attributes
    ----------
    stopped
        Set when nobody should wait for anything here any more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.stopped = threading.Event()

    def run(self, *command: str | Path, cwd: Path | None = None, **settings: str) -> str:
        """Run a command of Slurm, and give what it prints."""
        found = subprocess.run(
            list(map(str, command)),
            env={**self.environment, **settings},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert found.returncode == 0, f"{command}: {found.stdout}{found.stderr}"
        return found.stdout

    def kill_node(self, name: str) -> None:
        """Have a node die: its slurmd, the steps and the ranks on it, all by SIGKILL."""
        slurmd = int((self.folder / f"slurmd.{name}.pid").read_text())
        steps = [pid for pid in self.processes() if _parent(pid) == slurmd]
        os.kill(slurmd, signal.SIGKILL)
        ranks = [pid for pid, environment in self.processes().items() if environment.get("SLURMD_NODENAME") == name]
        for pid in (*steps, *ranks):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, dict[str, str]]:
        """Give PID and environment of all that runs in the cluster, the daemons included."""
        return _processes(self.folder)


def _parent(pid: int) -> int:
    with suppress(OSError):  # it ended while we looked
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _processes(folder: Path) -> dict[int, dict[str, str]]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            raw = (process / "environ").read_bytes().decode(errors="replace")
            environment = dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)
            if environment.get("SLURM_CONF") == str(folder / "slurm.conf") and int(process.name) != os.getpid():
                found[int(process.name)] = environment
    return found


@contextmanager
def start(folder: Path, nodes: int) -> Iterator[Cluster]:
    """Have a cluster for the length of a with block."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, __file__, str(folder), str(nodes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert keeper.stdin is not None and keeper.stdout is not None
    try:
        said = keeper.stdout.readline()
        assert said == "ready\n", f"{said}{(folder / 'keeper.log').read_text()}"
        yield Cluster(folder)
    finally:
        keeper.stdin.close()
        keeper.wait(60)
        keeper.stdout.close()


# -- the keeper ----------------------------------------------------------------------------------------------------


def keep(folder: Path, nodes: int) -> None:
    """Run the daemons until the standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder.chmod(0o755)
    with ExitStack() as daemons:
        daemons.callback(_end_all, folder)
        _configure(folder, nodes)
        munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        _daemon(daemons, folder, "munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *munge)
        _wait(lambda: (folder / "munge.socket").exists(), "munged")
        _daemon(daemons, folder, "slurmctld", "-D")
        for node in range(1, nodes + 1):
            _daemon(daemons, folder, "slurmd", "-D", "-N", f"n{node}")
        _wait(lambda: _idle(folder) == nodes, "slurmctld and slurmd")
        print("ready", flush=True)
        sys.stdin.read()


def _configure(folder: Path, nodes: int) -> None:
    ports = _free_ports(nodes + 1)
    lines = [
        f"NodeName=n{number} NodeHostname={socket.gethostname().partition('.')[0]} NodeAddr=127.0.0.1 Port={port}"
        for number, port in enumerate(ports[1:], 1)
    ]
    first = 10_000 + secrets.randbelow(4_000_000)
    text = CONFIGURATION.format(
        folder=folder, controller=ports[0], cpus=CPUS, nodes="\n".join(lines), last=nodes, first=first
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _daemon(daemons: ExitStack, folder: Path, name: str, *arguments: str) -> None:
    environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(folder / "slurm.conf")}
    program = _program(name)
    assert program is not None
    process = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, stdout=sys.stderr, env=environment)
    daemons.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_all(folder: Path) -> None:
    """Kill the steps and ranks that outlive their daemons."""
    limit = time.monotonic() + 10
    while (left := _processes(folder)) and time.monotonic() < limit:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _wait(condition: object, what: str) -> None:
    assert callable(condition)
    limit = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > limit:
            raise SystemExit(f"{what} did not start in {START_SECONDS} s")
        time.sleep(0.05)


def _idle(folder: Path) -> int:
    found = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-p", "low", "-o", "%N"],
        env={**os.environ, "SLURM_CONF": str(folder / "slurm.conf")},
        capture_output=True,
        text=True,
    )
    return len(found.stdout.split())


if __name__ == "__main__":
    keep(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
