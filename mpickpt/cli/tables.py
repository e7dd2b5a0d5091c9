"""How tables and figures look."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 160  # columns of a table that goes to a file or a pipe


def console() -> Console:
    """Give a console on stdout."""
    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)


def human_bytes(nbytes: float) -> str:
    """Write a number of bytes with three digits or so."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """Write a time span in its largest fitting unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds * 1000:.1f} ms"
