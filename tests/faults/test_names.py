"""A power cut takes names that were not synced: each name that a record relies on is on the disk before the record is.

POSIX guarantees a file's bytes after fsync of the file, and its name after fsync of its folder. Few file systems lose a
name then, so the test checks the calls themselves, which a preloaded library records.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from mpijob import mpi_job

WITNESS = Path(__file__).with_name("witness.c")
COMPLETE = "2"
PROGRAM = """
import sys
import numpy as np
from mpi4py import MPI
import mpickpt

world, cells, steps = MPI.COMM_WORLD, int(sys.argv[2]), int(sys.argv[3])
with mpickpt.open(sys.argv[1], world, every=1) as ckpt:
    comm, there = ckpt.comm, (world.rank + 1) % world.size
    u = ckpt.array("u", cells, fill=1.0)
    log = ckpt.object("log", [])
    message = np.empty(500)
    for step in ckpt.range(steps):
        u += 1
        log.append(bytes(100_000))
        for k in range(40 if step else 0):
            comm.Recv(message, tag=k)
        for k in range(40 if step < steps - 1 else 0):
            comm.Send(np.full(500, float(step)), there, tag=k)
"""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@dataclass(frozen=True)
class Call:
    """A line of the witness: what was done, to which file, and the rest of it."""

    process: str
    thread: str
    what: str
    path: Path
    record: tuple[str, ...] = ()  # state, rank, objects_spilled, channels_spilled


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("witness") / "libwitness.so"
    subprocess.run(["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", library, WITNESS, "-ldl"], check=True, timeout=150)
    return library


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, witness: Path) -> Path:
    """Give a folder in which a program has run twice, the second time with slots of another layout."""
    folder = tmp_path_factory.mktemp("run")
    program = folder / "app.py"
    program.write_text(PROGRAM)
    for cells, restart in ((1000, "auto"), (2000, "never")):
        command = ["-m", "mpickpt", "run", "--restart", restart, program, folder / "c" / "of" / "mine", cells, 6]
        with mpi_job(2, command, folder / "log", settings(witness, folder, folder)) as job:
            assert job.wait(150) == 0, job.output()
    return folder


def settings(witness: Path, folder: Path, log: Path) -> dict[str, str]:
    return {"LD_PRELOAD": str(witness), "WITNESS_LOG": str(log / "calls"), "WITNESS_FOLDER": str(folder)}


def calls(folder: Path) -> list[Call]:
    found = []
    for line in (folder / "calls").read_text().splitlines():
        process, thread, what, path, *record = line.split(" ")
        found.append(Call(process, thread, what, Path(path), tuple(record[1:])))
    return found


def is_synced(path: Path, told: Sequence[Call], after: int, before: int) -> bool:
    """Tell whether a sync of `path` began after one call and ended before another."""
    begun = {call.thread for call in told[after + 1 : before] if (call.what, call.path) == ("sync", path)}
    return any((call.what, call.path) == ("synced", path) and call.thread in begun for call in told[after + 1 : before])


def check(paths: Sequence[Path], told: Sequence[Call], before: int) -> None:
    """Fail unless the names of `paths`, and what the process of call `before` wrote to them, were synced before it."""
    for at, call in enumerate(told[:before]):
        if call.path in paths and call.what == "name":
            assert is_synced(call.path.parent, told, at, before), f"the name of {call.path} is not synced"
        if call.path in paths and call.what == "write" and call.process == told[before].process:
            assert is_synced(call.path, told, at, before), f"the bytes of {call.path} are not synced"


def was_synced_before_its_rename(told: Sequence[Call], at: int) -> bool:
    path = told[at].path
    own = re.compile(rf"{re.escape(path.name)}(\.{told[at].process})?\.new")  # archives name the process
    made = [n for n, call in enumerate(told[:at]) if call.what in ("name", "write") and own.fullmatch(call.path.name)]
    return is_synced(told[made[-1]].path, told, made[-1], at)


def test_every_name_that_a_record_relies_on_is_synced_before_it(run: Path) -> None:
    told = calls(run)
    folders = [run / "c", run / "c" / "of", run / "c" / "of" / "mine"]
    assert set(folders) <= {call.path for call in told if call.what == "name"}
    complete = [(at, call) for at, call in enumerate(told) if call.record[:1] == (COMPLETE,)]
    assert len(complete) >= 16
    spilled = set()
    for at, call in complete:
        _, rank, *own_files = call.record
        spills = [
            call.path.with_name(f"{call.path.stem}.{kind}-{int(rank):05d}")
            for kind, has_file in zip(("objects", "channels"), own_files, strict=True)
            if has_file == "1"
        ]
        spilled |= set(spills)
        for path in spills:
            assert any((made.what, made.path) == ("name", path) for made in told[:at])
        check([*folders, call.path, *spills], told, at)
    assert len(spilled) == 8  # two ranks' objects and channels, beside two slots
    # The names of the spill files that went with a slot are taken away when the slot's new name is on the disk.
    slots = [at for at, call in enumerate(told) if call.what == "name" and call.path.suffix == ".h5"]
    assert len(slots) == 4
    for at in slots:
        assert was_synced_before_its_rename(told, at)
        relies = next(later for later, call in complete if later > at and call.path == told[at].path)
        assert is_synced(folders[-2], told, at, relies)  # somebody may have made the directory just before
    ends = [at for at, call in enumerate(told) if call.what == "unlink" and call.path in spilled]
    replaced = [(slot, end) for slot in slots for end in ends if slot < end and told[slot].thread == told[end].thread]
    assert replaced
    assert all(is_synced(folders[-1], told, slot, end) for slot, end in replaced)


@pytest.mark.parametrize("options", [[], ["--compress"]])
def test_an_archive_that_is_told_of_is_on_the_disk(
    tmp_path: Path, run: Path, witness: Path, options: list[str]
) -> None:
    (tmp_path / "a").mkdir()
    command = [sys.executable, "-m", "mpickpt", "archive", run / "c" / "of" / "mine", "--to", tmp_path / "a", *options]
    with_witness = os.environ | settings(witness, tmp_path / "a", tmp_path)
    subprocess.run(command, check=True, timeout=150, cwd=tmp_path, env=with_witness)
    told = calls(tmp_path)
    told.append(Call(told[-1].process, "", "end", tmp_path / "a"))
    archived = sorted(path for path in (tmp_path / "a").iterdir())
    assert [path.name for path in archived] == [
        *(f"epoch-10.channels-0000{rank}" for rank in range(0 if options else 2)),
        "epoch-10.h5",
        *(f"epoch-10.objects-0000{rank}" for rank in range(0 if options else 2)),
    ]
    renamed = [at for at, call in enumerate(told) if call.what == "name" and call.path in archived]
    assert len(renamed) == len(archived)
    check(archived, told, len(told) - 1)
    for at in renamed:
        assert was_synced_before_its_rename(told, at)
    assert told[renamed[-1]].path.name == "epoch-10.h5"  # the file that says COMPLETE gets its name last
    check([path for path in archived if path.suffix != ".h5"], told, renamed[-1])
