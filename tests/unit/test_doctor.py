"""mpickpt doctor reports the machine correctly, alone and on several ranks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi4py import MPI
from mpijob import SURROUNDINGS, mpiexec

from mpickpt.cli import doctor, probes
from mpickpt.cli.main import main
from mpickpt.cli.probes import Finding
from mpickpt.store import kind_of_file_system


def findings(text: str) -> dict[str, dict[str, object]]:
    return {found["name"]: found for found in json.loads(text)["findings"]}


def test_what_is_found_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    assert time.monotonic() - began < 10
    found = findings(capsys.readouterr().out)
    assert set(found) == {
        *("MPI library", "MPI thread level", "processor", "huge pages", "SCHED_IDLE", "max_map_count", "ulimit -l"),
        *("memory limit", "file system", "fallocate", "file locks", "reflink", "O_DIRECT", "mprotect", "fault cost"),
        "write bandwidth",
    }
    assert str(found["MPI library"]["found"]) in " ".join(MPI.Get_library_version().split())
    assert str(found["processor"]["found"]).startswith(f"{len(os.sched_getaffinity(0))} cores")
    assert 0.1e-6 < float(str(found["fault cost"]["value"])) < 0.1
    assert 1e6 < float(str(found["write bandwidth"]["value"])) < 1e12
    assert not list(tmp_path.iterdir())
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # what was tried left no trace


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has is taken away at the border to the system, which is all that can be done to it here."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(probes.fcntl, "flock", refuse)
        patch.setattr(os, "sched_setscheduler", refuse)
        patch.setattr(probes, "_max_map_count", lambda: 10_000)
        assert (probes._locks(tmp_path).state, probes._sched_idle().state, probes._map_count().state) == (
            *("bad", "note", "bad"),
        )
    with monkeypatch.context() as patch:
        patch.setattr(probes, "kind_of_file_system", lambda _: "tmpfs")
        assert "lost with the node" in probes._file_system(tmp_path).meaning
        patch.setattr(probes, "kind_of_file_system", lambda _: "lustre")
        assert probes._file_system(tmp_path).state == "ok"
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert kind_of_file_system(tmp_path)[:3] == kind[:3]  # stat says ext2/ext3 for ext4


def rank(**changes: object) -> dict[str, object]:
    own: dict[str, object] = {"host": "n1", "versions": {"numpy": "2", "kernel": "6"}, "error": None, "sees": True}
    return own | {"findings": [Finding("huge pages", "always"), Finding("rate", "5", value=5.0)]} | changes


def test_ranks_are_compared() -> None:
    other = [Finding("huge pages", "never", "note", "slow"), Finding("rate", "3", value=3.0)]
    told = [rank(), rank(), rank(host="n2", versions={"numpy": "1", "kernel": "5"}, sees=False, findings=other)]
    assert doctor._joined(told) == [
        Finding("huge pages", "always (ranks 0-1); never (rank 2)", "note", "slow"),
        Finding("rate", "3 to 5", value=5.0),
    ]
    numpy, kernel, directory = doctor._comparison(told)
    assert (numpy.name, numpy.found, numpy.state) == ("same numpy", "2 (ranks 0-1); 1 (rank 2)", "bad")
    assert kernel.state == "note"
    assert (directory.found, directory.state) == ("not that of rank 0 on n2 (rank 2)", "bad")
    (same,) = doctor._comparison([rank(), rank()])
    assert same.state == "ok"


def test_doctor_under_mpirun(tmp_path: Path) -> None:
    """Rank 1 has another limit, as if it were on a node of its own."""
    (tmp_path / "one").mkdir()
    program = (
        "import sys\n"
        "from mpi4py import MPI\n"
        "from mpickpt.cli import probes\n"
        "from mpickpt.cli.main import main\n"
        "rank = MPI.COMM_WORLD.rank\n"
        "if rank == 1 and sys.argv[1] == 'unlike': probes._max_map_count = lambda: 70_000\n"
        "sys.exit(main(['doctor', '--json', 'one']))\n"
    )
    (tmp_path / "app.py").write_text(program)
    for how, status in (("alike", 0), ("unlike", 1)):
        command = [mpiexec(), "-n", "2", sys.executable, "app.py", how]
        run = subprocess.run(
            command, cwd=tmp_path, env={**SURROUNDINGS, **os.environ}, capture_output=True, text=True, timeout=150
        )
        assert run.returncode == status, run.stderr
        found = findings(run.stdout)
        assert ("same max_map_count" in found) == (how == "unlike")
        assert ("comparison" in found) == (how == "alike")
    assert not list((tmp_path / "one").iterdir())
