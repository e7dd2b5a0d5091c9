"""Compressed archives: the arrays of an epoch as chunked, compressed datasets that any HDF5 program reads.

All else lies as in a slot: checksums, records, objects and messages in flight are contiguous and are read at their
offsets. A chunk is one stretch of an array's bytes, so that the blocks of a slot are found again without reading much
more than they hold.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from h5py import h5d, h5f, h5s
from numpy.typing import NDArray

from mpickpt.parts import boxes_of_run
from mpickpt.store.structure import opened

Transfer = Callable[[int, NDArray[np.uint8]], bool]


@contextmanager
def open_packed(path: Path, rank: int, name: str, *, writing: bool = False) -> Iterator[Transfer]:
    """Open an array of a compressed archive.

    Gives a function of a position among the array's bytes and of memory, which is filled from there on, or written
    there. It returns False where the file's data cannot be decompressed; what is written are whole cells.
    """
    with opened(path, h5f.ACC_RDWR if writing else h5f.ACC_RDONLY) as file:
        dataset = h5d.open(file, f"ranks/{rank:05d}/{name}".encode())
        kind, itemsize, shape = dataset.get_type(), dataset.get_type().get_size(), dataset.shape

        def transfer(start: int, memory: NDArray[np.uint8]) -> bool:
            first, end = start // itemsize, -(-(start + memory.size) // itemsize)
            whole = start == first * itemsize and memory.size == (end - first) * itemsize
            cells = memory if whole else np.empty((end - first) * itemsize, np.uint8)
            at = 0
            for box in boxes_of_run(shape, first, end):
                nbytes = box.size * itemsize
                there = dataset.get_space()
                if shape:
                    there.select_hyperslab(box.start, (1,) * len(shape), block=box.extent)
                here = h5s.create_simple((box.size,))
                piece = cells[at : at + nbytes]
                try:
                    dataset.write(here, there, piece, kind) if writing else dataset.read(here, there, piece, kind)
                except OSError:
                    if writing:
                        raise
                    return False
                at += nbytes
            if not whole:
                offset = start - first * itemsize
                memory[:] = cells[offset : offset + memory.size]
            return True

        yield transfer


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at a byte offset of a file that exists."""
    fd = os.open(path, os.O_WRONLY)
    try:
        while data:
            done = os.pwrite(fd, data, offset)
            data, offset = data[done:], offset + done
    finally:
        os.close(fd)
