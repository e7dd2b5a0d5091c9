"""The notes of runs in a checkpoint directory: their paths, and reading them; `notes` defines their content."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mpickpt.errors import StoreError
from mpickpt.report.notes import FORMAT, EndNote, EpochNote, Header, RankNotes, RunNotes, Sums, note_of
from mpickpt.store.files import os_errors
from mpickpt.store.preface import plain
from mpickpt.texts import visible

MOST_BYTES = 4 << 20  # of a rank's notes that are read; the recorder keeps them much smaller
KEPT_RUNS = 16  # notes of older runs are deleted when a run begins
_RUN_NAME = re.compile(r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}")
_RANK_NAME = re.compile(r"rank-(\d+)\.jsonl")


def run_name(run: int, started_ns: int) -> str:
    """Return the name of a run: when it began, so that names are in order, and its number."""
    began = datetime.fromtimestamp(started_ns // 1_000_000_000, UTC)
    return f"{began:%Y%m%dT%H%M%S}.{started_ns // 1_000_000 % 1000:03d}Z-{run % 2**32:08x}"


def notes_path(directory: Path, run: str, rank: int) -> Path:
    """Return the path of one rank's notes."""
    return directory / "runs" / run / f"rank-{rank:05d}.jsonl"


def runs(directory: Path) -> list[str]:
    """List the runs that have notes, the oldest first.

    Raises
    ------
    StoreError
        If the folder cannot be read.
    """
    folder = directory / "runs"
    with os_errors(f"The notes of {directory} cannot be read", folder):
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if _RUN_NAME.fullmatch(path.name))


def forget_old_runs(directory: Path) -> None:
    """Delete the notes of the oldest runs, where possible, so that `KEPT_RUNS` are left with the one that begins."""
    with suppress(StoreError):
        for name in runs(directory)[: 1 - KEPT_RUNS]:
            shutil.rmtree(directory / "runs" / name, ignore_errors=True)


def read_run(directory: Path, name: str) -> RunNotes:
    """Read the notes of all ranks of a run; a program may be writing them.

    Raises
    ------
    StoreError
        If the notes cannot be read, are corrupt, or were written by a newer version.
    """
    folder = directory / "runs" / name
    with os_errors(f"The notes in {folder} cannot be read", folder):
        paths = sorted(path for path in folder.iterdir() if _RANK_NAME.fullmatch(path.name))
    found: dict[int, RankNotes] = {}
    for path in paths:
        notes = _read_rank(path)
        if notes is not None:
            found[notes.header.rank] = notes
    return RunNotes(name, found)


def _read_rank(path: Path) -> RankNotes | None:
    """Read one file; None if its first line is not written yet."""
    with os_errors(f"{path} cannot be read", path):
        with plain(path) as fd, open(fd, "rb", closefd=False) as file:
            raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise StoreError(f"{path} is corrupt: notes do not become longer than {MOST_BYTES} bytes.", path=path)
    text = raw.decode(errors="replace")
    *lines, _ = text.split("\n")  # a line without an end was cut off by a crash, or is being written
    if not lines:
        return None
    _check_format(path, lines[0])
    header: Header | None = None
    sums, end = Sums(), None
    epochs: list[EpochNote] = []
    for number, line in enumerate(lines, 1):
        try:
            note = note_of(line)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is corrupt in line {number}: {error}.", path=path) from None
        if isinstance(note, Header):
            header = replace(note, host=visible(note.host), interval=visible(note.interval))
        elif isinstance(note, Sums):
            sums = note
        elif isinstance(note, EpochNote):
            epochs.append(note)
        elif isinstance(note, EndNote):
            end = note
    if header is None:
        raise StoreError(f"{path} is corrupt: it does not say which rank it is of.", path=path)
    if not 0 <= header.rank < header.ranks or path.name != f"rank-{header.rank:05d}.jsonl":
        raise StoreError(f"{path} is corrupt: it says that it is of rank {header.rank} of {header.ranks}.", path=path)
    return RankNotes(header, tuple(epochs), sums, end)


def _check_format(path: Path, line: str) -> None:
    """Refuse the notes of a newer version, whatever else is in them."""
    version: object = None
    with suppress(ValueError, RecursionError, AttributeError):
        version = json.loads(line).get("format")
    if isinstance(version, int) and version > FORMAT:
        raise StoreError(
            f"{path} has format version {version}, and this mpickpt reads up to {FORMAT}: install a newer one.",
            path=path,
        )
