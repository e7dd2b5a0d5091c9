"""Raw O_DIRECT files: the yardstick for bandwidth, and what two contenders write with.

A file is written in full when it is created, so that every later write overwrites existing blocks, as in a slot. There
is no HDF5 and no checksum: nothing is faster from one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CALL_BYTES = 4 * 1024 * 1024  # what one pwrite or pread moves, as in the drain


class DirectFile:
    """A file of a fixed size, opened with O_DIRECT.

    Parameters
    ----------
    path : Path
        The file, which is replaced.
    content : NDArray[np.float64]
        Its first content, page aligned; gives the size, a multiple of 4 KiB.

    Raises
    ------
    SystemExit
        If the file system has no O_DIRECT.
    """

    def __init__(self, path: Path, content: NDArray[np.float64]) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
        except OSError as error:
            raise SystemExit(f"{path}: {error.strerror}: the benchmark needs O_DIRECT, choose another --dir") from error
        self.write(content)

    def write(self, content: NDArray[np.float64], *, through: NDArray[np.float64] | None = None) -> None:
        """Write the whole file, straight from the memory or through a buffer of one call, and sync it."""
        view = content.view(np.uint8).data
        buffer = None if through is None else through.view(np.uint8).data
        for begin in range(0, len(view), CALL_BYTES):
            piece = view[begin : begin + CALL_BYTES]
            if buffer is not None:
                buffer[: len(piece)] = piece
                piece = buffer[: len(piece)]
            if os.pwrite(self.descriptor, piece, begin) != len(piece):
                raise OSError(f"{self.path}: short write at byte {begin}")
        os.fdatasync(self.descriptor)


def write(path: Path, offset: int, content: NDArray[np.float64]) -> None:
    """Write page-aligned memory to `offset` of a file with O_DIRECT, until it is on the disk."""
    _move(path, offset, content, os.O_RDWR, os.pwritev)


def read(path: Path, offset: int, into: NDArray[np.float64]) -> None:
    """Read what lies at `offset` of a file straight into page-aligned memory with O_DIRECT."""
    _move(path, offset, into, os.O_RDONLY, os.preadv)


def _move(
    path: Path, offset: int, memory: NDArray[np.float64], mode: int, call: Callable[[int, list[memoryview], int], int]
) -> None:
    view = memory.view(np.uint8).data
    descriptor = os.open(path, mode | os.O_DIRECT)
    for begin in range(0, len(view), CALL_BYTES):
        piece = view[begin : begin + CALL_BYTES]
        if call(descriptor, [piece], offset + begin) != len(piece):
            raise OSError(f"{path}: the call at byte {offset + begin} did not move all")
    if mode == os.O_RDWR:
        os.fdatasync(descriptor)
    os.close(descriptor)
