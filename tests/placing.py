"""Memory at a chosen address."""

from __future__ import annotations

import ctypes
import mmap
import os

_MAP_FIXED_NOREPLACE = 0x100000  # not in Python's mmap


def map_at(address: int, nbytes: int, protection: int) -> int:
    """Map private memory where nothing is mapped now, on the page of `address`, and return the page's address.

    Raises
    ------
    OSError
        If something is mapped there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    page = address // mmap.PAGESIZE * mmap.PAGESIZE
    how = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
    found = libc.mmap(ctypes.c_void_p(page), ctypes.c_size_t(nbytes), protection, how, -1, ctypes.c_long(0))
    if found != page:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return page


def unmap(address: int, nbytes: int) -> None:
    """Unmap memory of `map_at`."""
    ctypes.CDLL(None).munmap(ctypes.c_void_p(address), ctypes.c_size_t(nbytes))
