"""The memory guard as Python sees it: writes to protected memory that raise no fault.

While the guard is open, calls of MPI and of the C library that have the kernel, a peer or a network card write to a
region open that memory first. How, is told in ``native/src/guard.h``; what it cannot see, in ``docs/limits.md``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt import _native
from mpickpt.errors import UsageError, warn

_MOST_SHOWN = 3
_told: set[str] = set()


def open_guard(*, donate_cores: bool = True) -> None:
    """Guard the calls of all loaded libraries; from before the first receive that may reach a region.

    Parameters
    ----------
    donate_cores : bool
        While a thread waits in a call of MPI, let the drain have its core.

    Raises
    ------
    UsageError
        If the guard is open already, because another session is.
    """
    try:
        _native.guard_open(donate_cores)
    except OSError as error:
        raise UsageError(
            f"The memory guard cannot be opened: {error.strerror}. Is another session open in this process?"
        ) from error


#: Guard libraries that were loaded since, too; whether there were any. Called at each safe point, and so not even
#: wrapped.
refresh_guard = _native.guard_refresh


def tell_unguarded() -> None:
    """Warn of libraries whose calls cannot be guarded, of each once while the guard is open."""
    found = [(path or sys.executable, error) for path, error in _native.guard_unguarded() if path not in _told]
    if found:
        _told.update(path for path, _ in _native.guard_unguarded())
        shown = ", ".join(path for path, _ in found[:_MOST_SHOWN])
        more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        warn(
            f"The memory guard leaves {shown}{more} alone: what it calls cannot be rewritten "
            f"({os.strerror(found[0][1])}), as after a seal on its relocations. What it reads or receives "
            f"straight into a saved array fails with 'Bad address', or is missing in epochs. Put "
            f"'with ckpt.writable(array):' around its calls that do so."
        )


def close_guard() -> None:
    """Put every call back as it was."""
    _told.clear()
    _native.guard_close()


@contextmanager
def pinned(array: NDArray[Any]) -> Iterator[None]:
    """Keep the memory of a contiguous `array` writable inside the block; it is copied at cuts instead."""
    flat = np.asarray(array if array.flags.c_contiguous else array.T)
    data = flat.reshape(-1).view(np.uint8)
    _native.pin(data)
    try:
        yield
    finally:
        _native.unpin(data)
