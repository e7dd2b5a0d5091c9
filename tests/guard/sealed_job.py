"""A program with a library whose relocations are sealed permanently; `test_sealed.py` runs it."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import mpickpt

NBYTES = 1 << 20


class Library:
    """The library of `sealed.c`."""

    def __init__(self) -> None:
        lib = ctypes.CDLL(sys.argv[2])
        self._read, self._seal = lib.call_read, lib.seal
        self._read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_long]
        self._read.restype = self._seal.restype = ctypes.c_long
        self.start = 0

    def seal(self, *, whole: bool = True) -> None:
        """Seal its relocations, or the last page of them."""
        self.start = self._seal(int(whole))
        if self.start < 0:
            print("no mseal:", os.strerror(-self.start))
            sys.exit(77)

    def read(self, file: int, address: int) -> str:
        """Read into memory and tell how that went."""
        got = self._read(file, address, NBYTES)
        return "all" if got == NBYTES else os.strerror(-got) if got < 0 else f"{got} bytes"

    def first_page(self) -> str:
        """Tell how the first page of its relocations may be used."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, mode = line.split(maxsplit=2)[:2]
            first, last = (int(end, 16) for end in span.split("-"))
            if first <= self.start < last:
                return mode
        raise AssertionError(hex(self.start))


def session(lib: Library | None = None, *, seals_in: int = -1) -> Library:
    """Read into a saved array right behind safe points, when it is protected, and compare what was saved."""
    with mpickpt.open("c", every=1, restart="never") as ckpt, Path("/dev/zero").open("rb", buffering=0) as zero:
        u = ckpt.array("u", NBYTES, "u1", fill=1)
        for step in ckpt.range(5):
            if step == seals_in:
                lib = lib or Library()
                lib.seal()
            elif lib is not None and step > max(seals_in, 1):
                print("read:", lib.read(zero.fileno(), u.ctypes.data), flush=True)
            assert zero.readinto(memoryview(u)) == NBYTES  # Python's own calls are guarded in any case
            u += step
    saved = mpickpt.Checkpoint("c").rank(0)["u"][...]
    assert (saved == 3).all(), "the image of step 4 is that of the end of step 3"
    assert lib is not None
    return lib


def main() -> None:
    """Seal when the first argument says."""
    how = sys.argv[1]
    if how in ("before", "last page"):
        lib = Library()
        lib.seal(whole=how == "before")
        session(lib)
        print(lib.first_page())
    elif how == "loaded within":
        session(seals_in=1)
    else:
        lib = session(Library(), seals_in=2)
        target = bytearray(NBYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(target))
        with Path("/dev/zero").open("rb") as zero:
            print("closed:", lib.read(zero.fileno(), address), flush=True)
        session(lib)


main()
