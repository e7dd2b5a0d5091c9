from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD_BYTES: int
RECORD_OFFSETS: dict[str, int]

def allocate(nbytes: int, huge: bool) -> NDArray[np.uint8]: ...
def crc32c(data: NDArray[np.uint8], value: int = 0) -> int: ...
def read_blocks(
    path: str, offset: int, out: NDArray[np.uint8], block_bytes: int, checksums: NDArray[np.uint32], direct: bool
) -> list[int]: ...

class Session:
    def __init__(self, direct: bool) -> None: ...
    def add(self, data: NDArray[np.uint8], owned: bool) -> None: ...
    def seal(self, block_bytes: int, pool_bytes: int) -> None: ...
    def unseal(self) -> None: ...
    def cut(
        self,
        *,
        path: str,
        epoch: int,
        step: int,
        rank: int,
        run: int,
        digest: bytes,
        data_offsets: list[int],
        checksum_offsets: list[int],
        record_offset: int,
        objects: bytes,
        objects_offset: int,
        spill_path: str | None,
    ) -> None: ...
    def hurry(self, on: bool) -> None: ...
    def wait(self, timeout_ns: int) -> bool: ...
    def progress(self) -> dict[str, Any]: ...
