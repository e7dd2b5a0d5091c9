"""Wrappers in front of a library still see each call: the guard calls what the program would call.

The wrapper is wrapper.c: preloaded (wrapped.py runs under it), and in front of one library alone, where the other
libraries of the process use another definition.
"""

from __future__ import annotations

import _ctypes
import ctypes
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpijob import mpi_job
from placing import map_at, unmap
from test_libc import AT, SOURCE, Protected, messages, protected  # noqa: F401  (fixtures)
from test_mpi import MPICC, OPEN_MPI

from mpickpt.snapshot.guard import close_guard, open_guard

HERE = Path(__file__).parent
WRAPPER = HERE / "wrapper.c"
N = 1000
#: Starts a program with a library preloaded: in the ranks, not in mpiexec.
PRELOAD = """
import os, sys
os.environ["LD_PRELOAD"] = sys.argv[1]
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def _build(compiler: str, path: Path, *options: str | Path) -> Path:
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    built = subprocess.run([compiler, *flags, "-o", path, *options], capture_output=True, text=True, timeout=150)
    assert built.returncode == 0, built.stderr
    return path


@pytest.mark.timeout(150)
@pytest.mark.skipif(MPICC is None, reason="no mpicc")
def test_preloaded_wrapper_sees_each_call(tmp_path: Path) -> None:
    """One call each of MPI_Recv, MPI_Irecv, MPI_Sendrecv and read, whoever is protected, and the right bytes."""
    assert MPICC is not None
    wrapper = _build(MPICC, tmp_path / "libwrapper.so", "-DWRAP_MPI", WRAPPER)
    command = ["-c", PRELOAD, wrapper, HERE / "wrapped.py", tmp_path]
    with mpi_job(2, command, tmp_path / "log") as job:
        code = job.wait(120)
        told = job.output()
    assert code == 0, told
    ranks = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert len(ranks) == 2, told
    for rank in ranks:
        assert [rank[when] for when in ("before", "first", "second", "after")] == [[[1, 1, 1, 1], True]] * 4, rank
        assert rank["image of the first"] and rank["image of the second"], rank


#: EZTrace starts its program in a debugger and wants the file that is mapped, no link to it.
TRACE = """
import os, sys
python = os.path.realpath(sys.executable)
os.environ["PYTHONPATH"] = sys.argv[2]
os.execvp("eztrace", ["eztrace", "-o", sys.argv[1], "-t", "openmpi", python, *sys.argv[3:]])
"""


@pytest.mark.timeout(150)
@pytest.mark.skipif(not all(map(shutil.which, ("eztrace", "otf2-print"))), reason="no eztrace, or no otf2-tools")
@pytest.mark.skipif(not OPEN_MPI or not str(MPICC).startswith("/usr/bin"), reason="needs the Open MPI of the system")
def test_eztrace_sees_each_call(tmp_path: Path) -> None:
    """A real profiler: 120 calls of MPI_Sendrecv on each rank, 100 of them in a session."""
    command = ["-c", TRACE, tmp_path, sysconfig.get_path("purelib"), HERE / "traced.py", tmp_path / "checkpoints"]
    with mpi_job(2, command, tmp_path / "log", {"OMPI_MCA_rmaps_base_oversubscribe": "1"}) as job:
        code = job.wait(120)
        told = job.output()
    assert code == 0, told
    (trace,) = tmp_path.glob("*/eztrace_log.otf2")
    printed = subprocess.run(["otf2-print", trace], capture_output=True, text=True, timeout=60).stdout
    calls = re.findall(r'^ENTER +(\d+) .*"MPI_Sendrecv"', printed, re.MULTILINE)
    assert sorted(map(calls.count, set(calls))) == [120, 120]


@pytest.fixture
def guarded(protected: Protected) -> Iterator[Protected]:  # noqa: F811
    """A protected region; the guard is closed at the end, whoever opened it."""
    yield protected
    close_guard()


def _receive(library: ctypes.CDLL, counter: ctypes.CDLL, into: Protected, messages: Path) -> int:  # noqa: F811
    """Have `library` read into protected memory; give how many calls the wrapper in `counter` saw of that."""
    part = into.region[AT : AT + N]
    part[:] = 0
    into.snapshotter.wait()
    into.cut()
    before, after = (ctypes.c_int * 4)(), (ctypes.c_int * 4)()
    counter.tell_counts(before)
    result = library.call_read(bytes(messages), part.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(N))
    counter.tell_counts(after)
    assert result == 0
    assert part.tobytes() == messages.read_bytes()[:N]
    return after[3] - before[3]


def _own_wrapper(folder: Path, index: int) -> ctypes.CDLL:
    """A library of calls with a wrapper of its own, which the rest of the process does not go through."""
    wrapper = _build("cc", folder / f"libwrapper{index}.so", WRAPPER)
    path = _build("cc", folder / f"libcalls{index}.so", SOURCE, wrapper, f"-Wl,-rpath,{folder}")
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)


def test_objects_with_different_definitions(guarded: Protected, messages: Path, tmp_path: Path) -> None:  # noqa: F811
    """A library goes on to its own wrapper, the rest of the process to the C library."""
    own = _own_wrapper(tmp_path, 0)
    common = ctypes.CDLL(str(_build("cc", tmp_path / "libcommon.so", SOURCE)))
    open_guard()
    assert _receive(own, own, guarded, messages) == 1
    assert _receive(common, own, guarded, messages) == 0


def test_definitions_come_and_go(guarded: Protected, messages: Path, tmp_path: Path) -> None:  # noqa: F811
    """More definitions in the life of a process than there can be at once, each at an address of its own."""
    kept, addresses = [], set()
    for index in range(6):
        own = _own_wrapper(tmp_path, index)
        address = ctypes.cast(own.tell_counts, ctypes.c_void_p).value or 0
        addresses.add(address)
        open_guard()
        assert _receive(own, own, guarded, messages) == 1
        close_guard()
        _ctypes.dlclose(own._handle)
        kept.append(map_at(address, mmap.PAGESIZE, 0))  # so that the next one is not put into its place
    assert len(addresses) == 6
    for page in kept:
        unmap(page, mmap.PAGESIZE)


TOLD = """
import ctypes, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_libc import Protected
from test_wrappers import _own_wrapper, _receive
from mpickpt.snapshot.guard import close_guard, open_guard
folder = Path(sys.argv[3])
messages = folder / "messages"
messages.write_bytes(bytes(range(250)) * 8)
protected = Protected(folder)
"""
ONE = """
dlopen = ctypes.CDLL(None).dlopen  # ctypes itself has all entries bound at once
dlopen.restype = ctypes.c_void_p
library = ctypes.CDLL(sys.argv[4], handle=dlopen(sys.argv[4].encode(), 1))  # RTLD_LAZY
open_guard()
print("counted", _receive(library, ctypes.CDLL(None), protected, messages))
protected.snapshotter.close()
close_guard()
"""
MANY = """
own = [_own_wrapper(folder, index) for index in range(6)]
open_guard()
assert _receive(own[0], own[0], protected, messages) == 1
protected.snapshotter.close()
close_guard()
"""


def _run(program: str, folder: Path, *arguments: Path, preload: Path | None = None) -> tuple[str, str]:
    command = [sys.executable, "-c", program, HERE, HERE.parent, folder, *arguments]
    environment = {**os.environ, **({"LD_PRELOAD": str(preload)} if preload else {})}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(("version", "counted"), [(None, 1), ("OTHER_1.0", 0)], ids=["any version", "another version"])
@pytest.mark.parametrize("binding", ["lazy", "now"])
def test_version_of_a_definition(binding: str, version: str | None, counted: int, tmp_path: Path) -> None:
    """A preloaded definition without a version serves all; one of another version is none that the object asks for.

    The library has not made a call yet when the guard is opened: bound lazily, it leaves the search to the guard.
    """
    script = tmp_path / "versions"
    script.write_text(f"{version} {{ global: read; }};\n")
    options = [f"-Wl,--version-script={script}"] if version else []
    wrapper = _build("cc", tmp_path / "libwrapper.so", WRAPPER, *options)
    calls = _build("cc", tmp_path / "libcalls.so", SOURCE, f"-Wl,-z,{binding}")
    stdout, _ = _run(TOLD + ONE, tmp_path, calls, preload=wrapper)
    assert f"counted {counted}" in stdout


def test_too_many_definitions_are_told(tmp_path: Path) -> None:
    """Once, and the program goes on."""
    _, stderr = _run(TOLD + MANY, tmp_path)
    assert stderr.count("more definitions of one function") == 1
