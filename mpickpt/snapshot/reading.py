"""Reading a saved image back, block by block, each compared with its checksum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt import _native
from mpickpt.retry import tell


def _as_bytes(data: NDArray[Any] | bytes | bytearray | memoryview) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def crc32c(data: NDArray[Any] | bytes | bytearray | memoryview, value: int = 0) -> int:
    """CRC-32C (Castagnoli, RFC 3720) of contiguous `data`, going on from `value`, the CRC of what came before."""
    if (data.size if isinstance(data, np.ndarray) else len(data)) == 0:
        return value
    return int(_native.crc32c(_as_bytes(data), value))


def read_blocks(
    path: Path,
    offset: int,
    out: NDArray[np.uint8],
    block_bytes: int,
    checksums: NDArray[np.uint32],
    *,
    direct: bool = True,
) -> list[int]:
    """Read ``len(out)`` bytes straight into `out`, comparing each block with its checksum on the way.

    Parameters
    ----------
    path : Path
        The slot file.
    offset : int
        Where in the file the first block begins, in bytes.
    out : numpy.ndarray of uint8, shape (n,)
        Filled block by block; corrupt blocks hold what was read.
    block_bytes : int
        Bytes of a block, a multiple of 4096; the last may be shorter.
    checksums : numpy.ndarray of uint32, shape (ceil(n / block_bytes),)
        CRC-32C of each block.
    direct : bool
        Whether to read past the page cache where the file system can.

    Returns
    -------
    list of int
        Positions of the blocks that differ from their checksum or lie behind the end of the file.

    Raises
    ------
    OSError
        If the file cannot be opened or read.
    """
    if len(out) == 0:
        return []
    table = np.ascontiguousarray(checksums, dtype=np.uint32)
    before, _ = _native.reads_repeated()
    try:
        return list(_native.read_blocks(str(path), offset, out, block_bytes, table, direct))
    finally:
        _tell_if_repeated(path, before)


def _tell_if_repeated(path: Path, before: int) -> int:
    """Say that reads of a file were repeated, if any were since there were `before`; gives how many there are now."""
    count, number = _native.reads_repeated()
    if count != before:
        tell(path, number)
    return count


@dataclass(frozen=True)
class LoadProgress:
    """What a `Loader` has done so far.

    Attributes
    ----------
    nbytes, nbytes_loaded : int
        Bytes that were mapped, and those of them that are checked and in memory of their own.
    corrupt : tuple of int, or None
        The first corrupt block that was found: number of its array in the order of `Loader.map`, and block.
    errno : int
        Why the file could not be read, or the memory not be had; 0 otherwise.
    """

    nbytes: int
    nbytes_loaded: int
    corrupt: tuple[int, int] | None
    errno: int


class Loader:
    """Arrays that can be computed on at once, while they are read and checked in the background.

    They are private mappings of a slot. While they are loaded, nobody may write to what they show. One loader of a
    process may be open at a time; a fork waits until all is loaded.

    Parameters
    ----------
    path : Path
        The slot file.
    block_bytes : int
        Bytes of a block, a multiple of the size of a page.

    Raises
    ------
    OSError
        If the file cannot be opened; EBUSY if another loader is open.
    """

    def __init__(self, path: Path, block_bytes: int) -> None:
        self._loader = _native.Loader(str(path), block_bytes)
        self._path = path
        self._repeated, _ = _native.reads_repeated()

    def map(self, offset: int, nbytes: int, checksums: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Return memory that shows `nbytes` (1 or more) at `offset` of the file, and begin to load it.

        Raises
        ------
        OSError
            EINVAL if `offset` is not on a page; ENODATA if the file ends too early; whatever else mapping it meets.
        """
        memory: NDArray[np.uint8] = self._loader.map(offset, nbytes, np.ascontiguousarray(checksums, np.uint32))
        return memory

    def boost(self, on: bool) -> None:
        """While `on`, threads of normal priority load, and not only in time that nobody wants."""
        self._loader.boost(on)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until all is loaded, at most `timeout` seconds; tell whether it is."""
        return bool(self._loader.wait(-1 if timeout is None else int(timeout * 1e9)))

    def progress(self) -> LoadProgress:
        """Return what is loaded and what was found; may be called at any time before `close`."""
        now = self._loader.progress()
        self._repeated = _tell_if_repeated(self._path, self._repeated)
        return LoadProgress(now["bytes"], now["bytes_loaded"], now["corrupt"], now["errno"])

    def close(self) -> None:
        """Stop loading, done or not; the arrays stay."""
        self._loader.close()
