"""Readable quantities: bytes, and time spans."""

from __future__ import annotations


def human_bytes(nbytes: float) -> str:
    """Format a number of bytes with about three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """Format a time span in its largest fitting unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds * 1000:.1f} ms"
