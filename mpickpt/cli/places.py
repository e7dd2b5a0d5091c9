"""The paths that verbs take: a checkpoint directory, a slot or archived epoch, or DIR:EPOCH."""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

from mpickpt.errors import StoreError
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, Store, read_slot

PLACE = "a checkpoint directory (its newest complete epoch), DIR:EPOCH, a slot file or an archived epoch"


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare --json."""
    parser.add_argument("--json", action="store_true", help="write JSON, for scripts")


def split_place(place: str) -> tuple[Path, int | None]:
    """Split DIR:EPOCH; a path that exists under its full name is not split."""
    head, colon, number = place.rpartition(":")
    if colon and head and number.isdecimal() and not os.path.lexists(place):
        return Path(head), int(number)
    return Path(place), None


def open_checkpoint(place: str) -> Checkpoint:
    """Open the epoch that `place` names; a `MpickptError` says why that is not possible."""
    path, epoch = split_place(place)
    _check_there(path)
    return Checkpoint(path, epoch)


def open_slot(path: Path) -> SlotInfo:
    """Read what a slot file says about itself, complete or not."""
    _check_there(path)
    slot = read_slot(path, crc32c)
    if not slot.readable:
        raise StoreError(slot.why_not, path=path)
    return slot


def open_directory(path: Path) -> Store:
    """Open a checkpoint directory that exists and can be read."""
    _check_there(path)
    if not path.is_dir():
        raise StoreError(f"{path} is not a directory.", errno=errno.ENOTDIR, path=path)
    return Store(path, crc32c)


def _check_there(path: Path) -> None:
    """Raise a `StoreError` if `path` cannot be read."""
    try:
        is_directory = path.stat() and path.is_dir()
        if not os.access(path, os.R_OK | os.X_OK if is_directory else os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileNotFoundError:
        raise StoreError(f"There is no file or directory {path}.", errno=errno.ENOENT, path=path) from None
    except OSError as error:
        advice = f" User {os.geteuid()} needs permission to read it." if error.errno == errno.EACCES else ""
        reason = os.strerror(error.errno or 0)
        raise StoreError(f"{path} cannot be read: {reason}.{advice}", errno=error.errno, path=path) from None
