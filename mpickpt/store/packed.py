"""Compressed archives: the arrays of an epoch as chunked, compressed datasets that any HDF5 program reads.

All else is stored as in a slot: checksums, records, objects and messages in flight are contiguous and are read at their
offsets. A chunk is a contiguous range of an array's bytes, so that reading a block of a slot reads little more than its
own bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from h5py import h5d, h5f, h5g, h5s
from numpy.typing import NDArray

from mpickpt.layout.parts import boxes_of_run
from mpickpt.retry import system_errno
from mpickpt.store.preface import Checksum, Range, write_preface
from mpickpt.store.raw import offset_of
from mpickpt.store.structure import opened_unchecked, reading

Transfer = Callable[[int, NDArray[np.uint8]], bool]


@contextmanager
def open_packed(path: Path, rank: int, name: str, checksum: Checksum | None) -> Iterator[Transfer]:
    """Open an array of a compressed archive for reading; without a `checksum`, for writing a new archive.

    Yields a function of a byte offset in the array and of memory, which is filled from there on, or written there. It
    returns False if the data cannot be decompressed. Only whole cells can be written.
    """
    writing = checksum is None
    with ExitStack() as stack:
        if checksum is None:
            file = stack.enter_context(opened_unchecked(path, h5f.ACC_RDWR))
        else:
            file, _ = stack.enter_context(reading(path, checksum))
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
                except OSError as error:
                    if writing or system_errno(error) is not None:  # an error of the storage, which may be transient
                        raise
                    return False
                at += nbytes
            if not whole:
                offset = start - first * itemsize
                memory[:] = cells[offset : offset + memory.size]
            return True

        yield transfer


def finish_packed(path: Path, checksum: Checksum) -> None:
    """Write the preface of a compressed archive, after all of its arrays."""
    with opened_unchecked(path) as file:
        room = file.get_create_plist().get_userblock()
        sums, ranks = h5g.open(file, b"checksums"), h5g.open(file, b"ranks")
        datasets = [h5d.open(file, b"records"), *(h5d.open(sums, rank) for rank in sums)]
        for rank in ranks:
            within = h5g.open(ranks, rank)
            datasets += [h5d.open(within, name) for name in within]
        ranges = [one for dataset in datasets for one in _raw_ranges(path, dataset, room)]
    write_preface(path, room, ranges, checksum)


def _raw_ranges(path: Path, dataset: h5d.DatasetID, room: int) -> list[Range]:
    """Find the byte ranges of a dataset's raw data."""
    if dataset.get_create_plist().get_layout() != h5d.CHUNKED:
        start = offset_of(dataset)
        return [(start, start + dataset.get_storage_size())]
    infos: list[Any] = []
    if hasattr(dataset, "chunk_iter"):
        dataset.chunk_iter(infos.append)
    else:
        infos += [dataset.get_chunk_info(k) for k in range(dataset.get_num_chunks())]
    if not infos:
        return []
    # Some versions of HDF5 count from the end of the preface. A chunk shows whether this one does.
    first = infos[0]
    _, raw = dataset.read_direct_chunk(first.chunk_offset)
    with path.open("rb") as file:
        content = {extra: os.pread(file.fileno(), first.size, first.byte_offset + extra) for extra in (0, room)}
    extra = next(extra for extra, there in content.items() if there == raw)
    return [(info.byte_offset + extra, info.byte_offset + extra + info.size) for info in infos]


def write_at(path: Path, offset: int, data: bytes) -> None:
    """Write `data` at a byte offset of a file that exists."""
    fd = os.open(path, os.O_WRONLY)
    try:
        while data:
            done = os.pwrite(fd, data, offset)
            data, offset = data[done:], offset + done
    finally:
        os.close(fd)
