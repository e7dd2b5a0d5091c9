"""Calls of the C library that write to protected memory: correct data and image, and all is restored."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from mpickpt.errors import UsageError
from mpickpt.layout.arrays import SlotOffsets
from mpickpt.snapshot import CutPlan, Snapshotter, Target
from mpickpt.snapshot.guard import close_guard, open_guard, pinned, refresh_guard

BLOCK = 64 * 1024
BLOCKS = 8
SOURCE = Path(__file__).with_name("guarded_calls.c")
NAMES = re.findall(r"^int call_(\w+)", SOURCE.read_text(), re.MULTILINE)
SIZES = (1, 1000, 2 * BLOCK + 77)
AT = BLOCK + 13  # inside a page

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def _build(folder: Path, binding: str) -> Path:
    path = folder / f"libguarded-{binding}.so"
    options = ["-O1", "-shared", "-fPIC", "-Wl,-z,relro", f"-Wl,-z,{binding}"]
    subprocess.run(["cc", *options, "-o", path, SOURCE], check=True, timeout=150)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test's own shared library, bound lazily and not made read-only, as many are."""
    return _build(tmp_path_factory.mktemp("guarded"), "lazy")


@pytest.fixture(scope="module")
def read_only_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, bound when it is loaded and made read-only then, as the distributions have it."""
    return _build(tmp_path_factory.mktemp("guarded"), "now")


@pytest.fixture
def messages(tmp_path: Path) -> Path:
    """A file of bytes to receive."""
    path = tmp_path / "messages"
    path.write_bytes((np.arange(4 * BLOCK) * 7 % 251).astype(np.uint8).tobytes())
    return path


class Protected:
    """A region that has just been cut: all of its pages are protected, and what they held is known."""

    def __init__(self, folder: Path) -> None:
        nbytes = BLOCK * BLOCKS
        self.region = Snapshotter.allocate(nbytes)
        self.region[:] = np.arange(nbytes) % 249
        self.path = folder / "slot"
        self.path.write_bytes(bytes(nbytes + 4 * 4096))
        self.snapshotter = Snapshotter()
        self.snapshotter.add(self.region, owned=True)
        self.snapshotter.seal(BLOCK, 2 * BLOCK)
        self.offsets = SlotOffsets(nbytes, (0,), (nbytes + 8192,), nbytes + 4096, 4096)
        self.cut()

    def cut(self) -> None:
        """Fix the image and note what it should be."""
        self.expected = self.region.copy()
        target = Target(self.path, self.offsets, rank=0, run=1, digest=bytes(32))
        self.snapshotter.cut(CutPlan(target, epoch=1, step=0, objects=b""))

    def image(self) -> NDArray[np.uint8]:
        """What the drain saved."""
        self.snapshotter.wait()
        return np.fromfile(self.path, np.uint8, self.region.size)


@pytest.fixture
def guard() -> Iterator[None]:
    """The guard, open."""
    open_guard()
    yield
    close_guard()


@pytest.fixture
def protected(tmp_path: Path) -> Iterator[Protected]:
    """A region that has just been cut."""
    it = Protected(tmp_path)
    yield it
    it.snapshotter.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_call_into_protected_memory(
    guard: None, protected: Protected, library: Path, messages: Path, name: str, size: int
) -> None:
    """Each call of the table, from a library that was loaded after the guard was opened."""
    calls = ctypes.CDLL(str(library))
    refresh_guard()
    into = protected.region[AT : AT + size]
    pointer = into.ctypes.data_as(ctypes.c_void_p)
    assert getattr(calls, f"call_{name}")(bytes(messages), pointer, ctypes.c_size_t(size)) == 0
    if name != "getrandom":
        assert into.tobytes() == messages.read_bytes()[:size]
    elif size > 100:
        assert not np.array_equal(into, protected.expected[AT : AT + size])
    untouched = np.delete(protected.region, np.s_[AT : AT + size])
    assert np.array_equal(untouched, np.delete(protected.expected, np.s_[AT : AT + size]))
    assert np.array_equal(protected.image(), protected.expected)


def test_without_the_guard_the_call_fails(protected: Protected, library: Path, messages: Path) -> None:
    """Which is what the guard is for; a kernel that let it pass would make the tests above prove nothing."""
    calls = ctypes.CDLL(str(library))
    into = protected.region[AT:].ctypes.data_as(ctypes.c_void_p)
    assert calls.call_read(bytes(messages), into, ctypes.c_size_t(100)) == -errno.EFAULT
    with pinned(protected.region[AT : AT + 100]):
        assert calls.call_read(bytes(messages), into, ctypes.c_size_t(100)) == 0


def _by_readinto(path: Path, into: NDArray[np.uint8]) -> None:
    with path.open("rb", buffering=0) as file:
        assert file.readinto(memoryview(into)) == into.size


def _by_buffered_readinto(path: Path, into: NDArray[np.uint8]) -> None:
    with path.open("rb") as file:
        assert file.readinto(memoryview(into)) == into.size


def _by_preadv(path: Path, into: NDArray[np.uint8]) -> None:
    with path.open("rb") as file:
        assert os.preadv(file.fileno(), [memoryview(into)], 0) == into.size


def _by_socket(path: Path, into: NDArray[np.uint8]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(path.read_bytes()[: into.size])
        assert ours.recv_into(memoryview(into), flags=socket.MSG_WAITALL) == into.size


def _by_h5py(path: Path, into: NDArray[np.uint8]) -> None:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file["x"] = np.frombuffer(path.read_bytes()[: into.size], np.uint8)
    with h5py.File(path.with_suffix(".h5")) as file:
        file["x"].read_direct(into)


@pytest.mark.parametrize("read", [_by_readinto, _by_buffered_readinto, _by_preadv, _by_socket, _by_h5py])
@pytest.mark.parametrize("size", SIZES)
def test_reading_as_python_does(
    guard: None, protected: Protected, messages: Path, size: int, read: Callable[[Path, NDArray[np.uint8]], None]
) -> None:
    """What the interpreter, its sockets and the HDF5 library call is guarded too."""
    into = protected.region[AT : AT + size]
    read(messages, into)
    assert into.tobytes() == messages.read_bytes()[:size]
    assert np.array_equal(protected.image(), protected.expected)


def _linkage(library: Path) -> dict[str, bytes]:
    """The library's own data, in which its relocation entries lie."""
    found = {}
    with Path("/proc/self/mem").open("rb", buffering=0) as memory:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, mode, *_, path = line.split(maxsplit=5) if line.count("/") else (*line.split()[:2], "")
            if path == str(library) and "x" not in mode:
                start, end = (int(text, 16) for text in span.split("-"))
                memory.seek(start)
                found[f"{span} {mode}"] = memory.read(end - start)
    return found


@pytest.mark.parametrize("kind", ["library", "read_only_library"])
def test_all_is_put_back(protected: Protected, messages: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """Relocation entries, and the protection of the pages that they lie in."""
    library = request.getfixturevalue(kind)
    calls = ctypes.CDLL(str(library))
    into = np.zeros(100, np.uint8).ctypes.data_as(ctypes.c_void_p)
    for name in NAMES:  # binds each entry: what the loader does at the first call is not ours to undo
        assert getattr(calls, f"call_{name}")(bytes(messages), into, ctypes.c_size_t(100)) == 0
    before = _linkage(library)
    assert before
    for _ in range(2):
        open_guard()
        patched = _linkage(library)
        close_guard()
        assert patched != before
        assert patched.keys() == before.keys()  # the protection is as it was while the guard is open, too
        assert _linkage(library) == before


def test_one_guard_at_a_time(guard: None) -> None:
    """A second one is refused with a sentence."""
    with pytest.raises(UsageError, match="another session"):
        open_guard()


def test_held_memory_stays_writable_over_cuts(protected: Protected, library: Path, messages: Path) -> None:
    """Memory that an untracked writer may write to is copied at the cut; afterwards it is protected as before."""
    calls = ctypes.CDLL(str(library))  # the guard is closed: nobody knows of this caller
    into = protected.region[AT : AT + 100]
    with pinned(protected.region[:AT]), pinned(into), pinned(into):
        protected.snapshotter.wait()
        protected.cut()
        pointer = into.ctypes.data_as(ctypes.c_void_p)
        assert calls.call_read(bytes(messages), pointer, ctypes.c_size_t(100)) == 0
        assert into.tobytes() == messages.read_bytes()[:100]
        assert np.array_equal(protected.image(), protected.expected)
    protected.cut()
    assert calls.call_read(bytes(messages), pointer, ctypes.c_size_t(100)) == -errno.EFAULT
    assert np.array_equal(protected.image(), protected.expected)
