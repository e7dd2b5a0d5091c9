"""A program that uses up the memory mappings of its process; `test_map_count.py` runs it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np

import mpickpt

PAGE = mmap.PAGESIZE
CELLS = 32 * 32768  # 32 blocks
LIMIT = int(Path("/proc/sys/vm/max_map_count").read_text())
C = ctypes.CDLL(None, use_errno=True)
C.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Mappings:
    """All mappings that there may be yet: every second page is read-only."""

    def __init__(self) -> None:
        pages = LIMIT + 4
        self.memory = mmap.mmap(-1, pages * PAGE)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        end = at + (pages - 1) * PAGE
        for edge in (at, end):  # so that nothing beside it is joined to it
            assert C.mprotect(edge, PAGE, 0) == 0
        while C.mprotect(at + 2 * PAGE, PAGE, mmap.PROT_READ) == 0:
            at += 2 * PAGE
        C.mprotect(at + 2 * PAGE, end - at - 2 * PAGE, mmap.PROT_READ)  # the last one

    def give_back(self) -> None:
        """Let them be used by others."""
        C.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        assert C.mprotect(at, len(self.memory), mmap.PROT_READ | mmap.PROT_WRITE) == 0  # one again


def main() -> None:
    """Cut and write while there is no room for another mapping."""
    if LIMIT > 1 << 20:
        print(f"vm.max_map_count is {LIMIT}: too many to use up")
        sys.exit(77)
    around = np.zeros(CELLS + 65536)  # what is saved lies inside a mapping: to protect it takes two more
    inner = around[32768 : 32768 + CELLS]
    each = np.zeros(CELLS)
    each[:: 2 * 32768] = 1  # a cell in every second block
    with mpickpt.open("c", every=1) as ckpt:
        u = ckpt.protect("u", inner)
        mappings = None
        for step in ckpt.range(8):
            if step in (0, 5):  # before the first cut, and when all is protected
                mappings = Mappings()
            elif step == 2 and mappings is not None:
                mappings.give_back()
            u[:: 2 * 32768] += 1
        assert mappings is not None
        mappings.give_back()
    assert (u == 8 * each).all()
    print("failed:", ckpt.stats().failed)
    with mpickpt.open("c") as again:
        assert again.restored is not None
        assert (again.protect("u", np.zeros(CELLS)) == again.restored.step * each).all()
        print("restored:", again.restored.step)


main()
