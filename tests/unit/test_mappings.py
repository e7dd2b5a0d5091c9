"""How saved memory is mapped, and what a session does about it."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray
from placing import map_at, unmap

import mpickpt
from mpickpt.snapshot import Mapping, Snapshotter

CELLS = 100_000
BLOCK = 64 * 1024

Cells = NDArray[np.float64]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cells"
    np.arange(CELLS, dtype=np.float64).tofile(path)
    return path


def _saved(directory: Path) -> Cells:
    checkpoint = mpickpt.Checkpoint(directory)
    assert checkpoint.verify() == []
    return checkpoint.rank(0)["u"][...]


def test_a_shared_file_is_copied_at_each_cut(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is written by another mapping of it, which no fault tells of, is in the next image."""
    u, other = np.memmap(file, np.float64, "r+"), np.memmap(file, np.float64, "r+")
    with mpickpt.open(tmp_path / "ckpt", every=1) as ckpt:
        ckpt.protect("u", u)
        for step in ckpt.range(8):
            expected = u.copy()
            other[step::5] += step + 1
        _more = ckpt.array("more", 10)  # another layout: nothing is told a second time
        for _ in ckpt.range(8, 10):
            expected = u.copy()
    assert np.array_equal(_saved(tmp_path / "ckpt"), expected)
    said = capfd.readouterr().err
    assert said.count("lies in") == 1
    assert f"array 'u' lies in memory that others may have mapped as well ({file}): it is copied" in said


def test_a_private_file_is_memory_of_its_own(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A mapping of mode "c": what others write into the file shows in no image, and what the program writes does."""
    u = np.memmap(file, np.float64, "c", offset=72)
    with mpickpt.open(tmp_path / "ckpt", every=1) as ckpt:
        ckpt.protect("u", u)
        for step in ckpt.range(4):
            if step == 1:
                with file.open("r+b") as written:  # in place: cut off, it would take its pages from the program, too
                    written.write(bytes(8 * CELLS))
            expected = u.copy()
            u[step * 1000] = -1
    assert np.array_equal(_saved(tmp_path / "ckpt"), expected)
    assert np.count_nonzero(expected) == expected.size
    assert "lies in" not in capfd.readouterr().err


def test_a_private_file_that_is_too_short(file: Path, tmp_path: Path) -> None:
    u = np.memmap(file, np.float64, "c")
    os.truncate(file, 4 * CELLS)
    with mpickpt.open(tmp_path / "ckpt", every=1) as ckpt:
        ckpt.protect("u", u)
        with pytest.raises(mpickpt.LayoutError, match="Array 'u' lies in a private mapping of .*, which is shorter"):
            ckpt.step()


def test_a_child_that_writes_during_the_cut(tmp_path: Path) -> None:
    """The epoch fails by name while it does, and is complete when it has ended."""
    shared = mmap.mmap(-1, 8 * CELLS)
    u = np.frombuffer(shared, np.float64)
    child = os.fork()
    if child == 0:
        while True:
            u[::64] += 1
    try:
        with mpickpt.open(tmp_path / "ckpt", every=1) as ckpt:
            ckpt.protect("u", u)
            torn = r"failed on rank 0: .*array 'u', which others have mapped too, was written to while the cut"
            with pytest.warns(RuntimeWarning, match=torn):
                ckpt.step()
                deadline = time.monotonic() + 30
                while ckpt.stats().failed < 2 and time.monotonic() < deadline:
                    ckpt.step()
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                child = 0
                ckpt.step()  # where it is told what became of the last one
            ckpt.step()
            expected = u.copy()
        assert np.array_equal(_saved(tmp_path / "ckpt"), expected)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        del u
        shared.close()


@pytest.mark.parametrize("allocate", [MPI.Win.Allocate, MPI.Win.Allocate_shared])
def test_the_memory_of_a_window(
    allocate: Callable[..., MPI.Win], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """That of MPI is known while its window lives, also where it is no shared mapping."""
    with mpickpt.open(tmp_path / "ckpt", every=1) as ckpt:
        win = allocate(8 * CELLS, 8, comm=MPI.COMM_SELF)
        u = np.frombuffer(win.tomemory(), np.float64)
        seen = Snapshotter()
        seen.add(u[1:-1].view(np.uint8), owned=False)
        assert [(m.mapping, m.pinned) for m in seen.look_up()] == [(Mapping.WINDOW, True)]
        seen.close()
        ckpt.protect("u", u)
        ckpt.step()
        assert "array 'u' lies in the memory of an MPI window: it is copied" in capfd.readouterr().err
    del u
    win.Free()


def test_a_window_that_was_freed(tmp_path: Path) -> None:
    """The next owner of its memory is not taken for it; what `Shared_query` gave is known, of an older window, too."""
    other = MPI.Win.Allocate_shared(8 * CELLS, 8, comm=MPI.COMM_SELF)
    with mpickpt.open(tmp_path / "ckpt", every=1):
        shown = np.frombuffer(other.Shared_query(0)[0], np.uint8)
        win = MPI.Win.Allocate(40 << 20, 8, comm=MPI.COMM_SELF)  # so large that its memory is unmapped at once
        address = win.tomemory().address
        win.Free()
        taken = _memory_at(address)
        seen = Snapshotter()
        seen.add(taken, owned=False)
        seen.add(shown, owned=False)
        assert [m.mapping for m in seen.look_up()] == [Mapping.PRIVATE, Mapping.WINDOW]
        seen.close()
        del shown
        other.Free()


def _memory_at(address: int) -> NDArray[np.uint8]:
    """Give private memory in which `address` lies, where nothing is mapped now."""
    try:
        page = map_at(address, BLOCK, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:  # MPI keeps it: then nobody else can have it
        pytest.skip(f"the library keeps the memory of windows: {error.strerror}")
    memory = (ctypes.c_uint8 * BLOCK).from_address(page)
    weakref.finalize(memory, unmap, page, BLOCK)
    return np.frombuffer(memory, np.uint8)
