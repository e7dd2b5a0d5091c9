"""Messages in flight as bytes, for the checkpoint.

A header of 16 bytes (magic, version, length), the lists as JSON, and then the content of the late messages one after
another. Nothing is pickled: reading a checkpoint runs no code of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mpickpt.errors import EpochError

_HEADER = struct.Struct("<4sIQ")
_MAGIC, _VERSION = b"MPKC", 2
_SUPPRESSED = {1: "swallow", _VERSION: "suppressed"}  # the name of that list, by version


@dataclass(frozen=True, slots=True)
class Late:
    """A message to this rank that was sent before the sender's cut and received after this rank's."""

    path: str
    source: int
    tag: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Early:
    """Messages to this rank that were received before its cut and sent after the sender's.

    Attributes
    ----------
    path, source, tag : str, int, int
        Their channel.
    count : int
        Number of messages.
    checksums : tuple of int or None
        CRC-32C of the last of them, in order; None where the content was not known.
    """

    path: str
    source: int
    tag: int
    count: int
    checksums: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Messages from this rank that it will send again although they have arrived: `checksums` has one item for each."""

    path: str
    dest: int
    tag: int
    checksums: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class InFlight:
    """What was in flight at a cut, as one rank knows it.

    Attributes
    ----------
    late : tuple of Late
        In the order in which they are to be replayed.
    early : tuple of Early
        What other ranks have to suppress.
    suppressed : tuple of Suppressed
        What this rank still had to suppress after an earlier restart.
    """

    late: tuple[Late, ...] = ()
    early: tuple[Early, ...] = ()
    suppressed: tuple[Suppressed, ...] = ()

    def to_bytes(self) -> bytes:
        """Return it as bytes; empty if nothing is in flight."""
        if not (self.late or self.early or self.suppressed):
            return b""
        lists = {
            "late": [[m.path, m.source, m.tag, len(m.data)] for m in self.late],
            "early": [[m.path, m.source, m.tag, m.count, m.checksums] for m in self.early],
            _SUPPRESSED[_VERSION]: [[m.path, m.dest, m.tag, m.checksums] for m in self.suppressed],
        }
        text = json.dumps(lists, separators=(",", ":")).encode()
        return b"".join((_HEADER.pack(_MAGIC, _VERSION, len(text)), text, *(m.data for m in self.late)))

    @classmethod
    def from_bytes(cls, data: bytes) -> InFlight:
        """Parse what `to_bytes` returned.

        Raises
        ------
        EpochError
            If the data are corrupt, or of another version.
        """
        if not data:
            return cls()
        try:
            magic, version, length = _HEADER.unpack_from(data)
            if magic != _MAGIC or version not in _SUPPRESSED:
                raise ValueError(f"it begins with {magic!r}, version {version}")
            begin = _HEADER.size + length
            lists = json.loads(data[_HEADER.size : begin])
            late = []
            for path, source, tag, size in lists["late"]:
                late.append(Late(path, source, tag, data[begin : begin + size]))
                begin += size
            if begin != len(data):
                raise ValueError(f"it has {len(data)} bytes instead of {begin}")
            early = tuple(Early(path, rank, tag, n, tuple(sums)) for path, rank, tag, n, sums in lists["early"])
            again = lists[_SUPPRESSED[version]]
            suppressed = tuple(Suppressed(path, rank, tag, tuple(sums)) for path, rank, tag, sums in again)
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise EpochError(
                f"The messages in flight of this epoch cannot be read: {error}. They were written by another version "
                f"of mpickpt, or are corrupt; restore an older epoch."
            ) from error
        return cls(tuple(late), early, suppressed)


def route(received: Sequence[Sequence[Early]]) -> list[list[Suppressed]]:
    """Turn the early messages of each rank into what each rank has to suppress.

    Parameters
    ----------
    received : sequence
        For each rank, its early messages.

    Returns
    -------
    list
        For each rank, those that it sent.
    """
    out: list[list[Suppressed]] = [[] for _ in received]
    for rank, messages in enumerate(received):
        for m in messages:
            unknown = (None,) * (m.count - len(m.checksums))
            out[m.source].append(Suppressed(m.path, rank, m.tag, (*unknown, *m.checksums)))
    return out
