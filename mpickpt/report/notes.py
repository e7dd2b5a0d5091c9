"""The notes of a run for ``mpickpt report``: lines of JSON, one file per rank. Pure data: no I/O.

A rank's notes are a `Header`, an `EpochNote` for each epoch whose drain has ended, and an `EndNote`. To bound their
size, the oldest epochs are summed up in one `Sums`. Times are seconds since all ranks learned the name of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MOST = 2**53  # largest count or number of seconds: a float holds it exactly
LAST_NS = 253_402_300_799 * 10**9  # the end of the year 9999
LONGEST = 255  # characters of a text: a node's name has fewer
FORMAT = 1  # of the notes; a reader refuses a higher one


@dataclass(frozen=True)
class Header:
    """The rank, and the options of its run.

    Attributes
    ----------
    format : int
        Version of the notes' format.
    rank, ranks : int
        The rank, and how many there are.
    host : str
        Its node.
    started_ns : int
        When the run began by the clock of rank 0's node, in nanoseconds since 1970.
    every : int or None
        Steps between two cuts; None if they are made by time.
    interval : str
        The time between two cuts in seconds, or "auto"; empty if they are made by steps.
    mtbf : float
        Mean time between failures in seconds that the session was opened with.
    restored : int or None
        The epoch that the run restored.
    restart_seconds : float
        Time to open the session, including reading the epoch.
    state_bytes, block_bytes : int
        Size of the arrays of this rank, and of a block.
    """

    format: int
    rank: int
    ranks: int
    host: str
    started_ns: int
    every: int | None
    interval: str
    mtbf: float
    restored: int | None = None
    restart_seconds: float = 0.0
    state_bytes: int = 0
    block_bytes: int = 0


@dataclass
class Costs:
    """Costs that add up over epochs.

    Attributes
    ----------
    blocked : float
        Seconds in which the program was blocked while its image was fixed.
    waited : float
        Seconds in which its safe points were blocked since the last note.
    drain : float
        Seconds from the cut until the image was on disk, or the epoch failed.
    stall : float
        Seconds that writes waited for room in the pool, until the drain had ended; part of `fault_seconds`.
    faults, fault_seconds : int, float
        Write faults until the drain had ended, and their time; summed over threads.
    late_faults, late_fault_seconds : int, float
        The same for the time from the end of the last drain to this note's cut.
    bytes_written, bytes_waiting, bytes_urgent : int
        Bytes handed to the storage; those drained while the program waited in calls of MPI; and of the others those
        that the urgent threads drained.
    blocks_due, blocks_copied : int
        Blocks that the slot lacked; those of them that the program copied because it wrote to them first.
    """

    blocked: float = 0.0
    waited: float = 0.0
    drain: float = 0.0
    stall: float = 0.0
    faults: int = 0
    fault_seconds: float = 0.0
    late_faults: int = 0
    late_fault_seconds: float = 0.0
    bytes_written: int = 0
    bytes_waiting: int = 0
    bytes_urgent: int = 0
    blocks_due: int = 0
    blocks_copied: int = 0

    @property
    def bytes_idle(self) -> int:
        """Bytes that the idle threads drained while the program computed."""
        return self.bytes_written - self.bytes_waiting - self.bytes_urgent

    @property
    def lost(self) -> float:
        """Seconds that the program lost."""
        return self.blocked + self.waited + self.fault_seconds + self.late_fault_seconds


COSTS = tuple(one.name for one in fields(Costs))


@dataclass
class EpochNote(Costs):
    """One epoch on one rank, noted when its drain had ended.

    Attributes
    ----------
    epoch, step, slot : int
        Its number, the step that it was cut at, and the slot that it was written to.
    cut, drained : float
        When it was cut, and when its drain had ended.
    errno : int
        Why it failed on this rank; 0 if it is complete.
    waits : tuple of tuple of float
        Start and seconds of each wait; if there are too many, the last one holds the sum of the others.
    """

    epoch: int = 0
    step: int = 0
    slot: int = 0
    cut: float = 0.0
    drained: float = 0.0
    errno: int = 0
    waits: tuple[tuple[float, float], ...] = ()


@dataclass
class Sums(Costs):
    """The oldest epochs of a rank, once there are too many to note each.

    Attributes
    ----------
    epochs, failed : int
        How many, and those of them that failed on this rank.
    last : int
        The number of the newest.
    until : float
        When its drain had ended.
    """

    epochs: int = 0
    failed: int = 0
    last: int = 0
    until: float = 0.0


@dataclass
class EndNote(Costs):
    """The end of a rank's session; its costs are those since the last epoch was noted.

    Attributes
    ----------
    closing, closed : float
        When the program began to close its session, and when the session was closed.
    by_itself : bool
        Whether this rank left alone, by an exception.
    complete, failed : int
        Epochs known to be complete on all ranks, and those that failed on any.
    waits : tuple of tuple of float
        As in `EpochNote`.
    """

    closing: float = 0.0
    closed: float = 0.0
    by_itself: bool = False
    complete: int = 0
    failed: int = 0
    waits: tuple[tuple[float, float], ...] = ()


Note = Header | EpochNote | Sums | EndNote
KINDS: dict[str, type[Note]] = {"run": Header, "epoch": EpochNote, "sums": Sums, "end": EndNote}
_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class RankNotes:
    """All that one rank noted."""

    header: Header
    epochs: tuple[EpochNote, ...] = ()
    sums: Sums = field(default_factory=Sums)
    end: EndNote | None = None

    @property
    def seconds(self) -> float:
        """Seconds for which the rank is known to have run."""
        if self.end is not None:
            return self.end.closed
        return max([self.sums.until, *(epoch.drained for epoch in self.epochs)])


@dataclass(frozen=True)
class RunNotes:
    """All that one run noted, by rank; ranks whose notes are missing are not in it."""

    name: str
    ranks: dict[int, RankNotes]


def total(notes: Sequence[Costs]) -> Costs:
    """Add up costs."""
    return Costs(**{name: sum(getattr(note, name) for note in notes) for name in COSTS})


def fold(sums: Sums, epochs: Sequence[EpochNote]) -> Sums:
    """Add the epochs that come after `sums` to it."""
    if not epochs:
        return sums
    return Sums(
        **asdict(total([sums, *epochs])),
        epochs=sums.epochs + len(epochs),
        failed=sums.failed + sum(epoch.errno != 0 for epoch in epochs),
        last=epochs[-1].epoch,
        until=epochs[-1].drained,
    )


def line_of(note: Note) -> str:
    """Format a note as a line of JSON, with its end; a template is faster than a JSON encoder."""
    template, texts = _TEMPLATES[type(note)]
    values = dict(vars(note))
    for name, text in texts:
        values[name] = text(values[name])
    return template % values


def note_of(line: str) -> Note | None:
    """Parse a line; None for a kind of note that this version does not know.

    Raises
    ------
    ValueError
        If it is not a note.
    """
    told = json.loads(line)
    if not isinstance(told, dict) or not isinstance(told.get("note"), str):
        raise ValueError("it is no note")
    kind = KINDS.get(told["note"])
    if kind is None:
        return None
    values = {}
    for one in fields(kind):
        if one.name not in told or not _fits(one.name, str(one.type), told[one.name]):
            raise ValueError(f"its {one.name} is missing or wrong")
        values[one.name] = told[one.name]
    if "waits" in values:
        values["waits"] = tuple((start, seconds) for start, seconds in values["waits"])
    return kind(**values)


def _fits(name: str, kind: str, value: object) -> bool:
    if name == "started_ns":
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_NS
    return _FITS[kind](value)


def _text_of_waits(waits: Sequence[tuple[float, float]]) -> str:
    return f"[{','.join([f'[{start:.6f},{seconds:.6f}]' for start, seconds in waits])}]"


def _template(kind: type[Note]) -> tuple[str, list[tuple[str, Callable[[Any], str]]]]:
    """Return the template of a kind of note, and how to format the values that are not plain numbers."""
    odd = [one for one in fields(kind) if one.type not in _NUMBERS]
    texts: list[tuple[str, Callable[[Any], str]]] = [(one.name, _TEXTS.get(str(one.type), json.dumps)) for one in odd]
    places = [f'"{one.name}":%({one.name}){_NUMBERS.get(str(one.type), "s")}' for one in fields(kind)]
    return f'{{"note":"{_NAMES[kind]}",{",".join(places)}}}\n', texts


_NUMBERS = {"int": "d", "float": ".6f"}
_TEXTS = {"tuple[tuple[float, float], ...]": _text_of_waits}
_TEMPLATES = {kind: _template(kind) for kind in KINDS.values()}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST


def _is_float(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and abs(value) <= MOST)


def _are_waits(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(_is_float, pair)) for pair in value
    )


# Checks of values, by the types of their fields.
_FITS: dict[str, Callable[[object], bool]] = {
    "int": _is_int,
    "int | None": lambda value: value is None or _is_int(value),
    "float": _is_float,
    "str": lambda value: isinstance(value, str) and len(value) <= LONGEST,
    "bool": lambda value: isinstance(value, bool),
    "tuple[tuple[float, float], ...]": _are_waits,
}
