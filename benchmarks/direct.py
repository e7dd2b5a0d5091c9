"""Raw O_DIRECT files: the yardstick for bandwidth, and what two contenders write with.

A file is written in full when it is made, so that every later write is an overwrite of blocks that exist, as it is
for a slot. No HDF5, no checksums: nothing is quicker from one thread.
"""

from __future__ import annotations

import os
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
        The file; made anew.
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
        """Write all of it, straight from the memory or through a buffer of one call, until it is on the disk."""
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

    def read(self, into: NDArray[np.float64]) -> None:
        """Read all of it straight into page-aligned memory."""
        view = into.view(np.uint8).data
        for begin in range(0, len(view), CALL_BYTES):
            piece = view[begin : begin + CALL_BYTES]
            if os.preadv(self.descriptor, [piece], begin) != len(piece):
                raise OSError(f"{self.path}: short read at byte {begin}")

    def close(self) -> None:
        """Close and remove the file."""
        os.close(self.descriptor)
        self.path.unlink()
