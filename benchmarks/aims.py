"""The aims, and how the measured figures compare with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

import report
from configuration import DIRECT, FORK, H5PY_IN_PLACE, MPICKPT, NUMPY, QUARTER_POOL, THROTTLED, WHOLE_POOL
from report import Row

MEMORY_BESIDE_POOL = 0.01  # of the state
FAULT_LIMIT = 1.3  # of the memcpy alone, medians
NOTHING_LIMIT = 2.0  # ms per GiB and checkpoint, where nothing is rewritten


@dataclass(frozen=True)
class Aim:
    """One aim: its name, limit and figure as text, and whether it was met."""

    what: str
    limit: str
    measured: str
    met: bool

    def named(self, prefix: str) -> Aim:
        """Return the aim with a prefix to its name."""
        return replace(self, what=prefix + self.what)


def _at_most(what: str, value: float, limit: float, words: Callable[[float], str]) -> Aim:
    return Aim(what, f"at most {words(limit)}", words(value), value <= limit)


def _at_least(what: str, value: float, limit: float, words: Callable[[float], str]) -> Aim:
    return Aim(what, f"at least {words(limit)}", words(value), value >= limit)


def _beside(value: float, other: float) -> float:
    """Return a ratio; infinite if the other figure is lost in the noise, so that no aim seems met."""
    return value / other if other > 0 else math.inf


def _ratio(value: float) -> str:
    return f"{value:.3f} x"


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def aims(result: dict[str, Any]) -> Iterator[Aim]:
    """Yield the aims that one configuration covers, from its medians."""
    found = {(row.pattern, row.contender): row for row in report.rows(result)}
    huge, repetitions = report.configuration(result).huge, report.configuration(result).repetitions
    yield from _of_all(found)
    yield from _of_little(found)
    yield from _blocked(found, huge=huge)
    yield from _of_the_order(found)
    yield from _of_the_storage(found)
    for row in found.values() if repetitions > 1 else ():  # a single run includes what is loaded at first
        if row.contender == WHOLE_POOL and row.pattern == "all":
            yield _at_most("memory beside state and pool", row.memory - 1.0, MEMORY_BESIDE_POOL, _percent)
    if "bandwidth" in result:
        rate = report.bandwidth(result)
        yield _at_least("drain of idle ranks, of raw pwrite", rate.drain_ratio, 0.9, _percent)
        yield _at_least("restart, of raw pread", rate.restart_ratio, 0.9, _percent)


def _of_all(found: dict[tuple[str, str], Row]) -> Iterator[Aim]:
    """Yield those for all rewritten, relative to the other contenders."""
    limits = [
        (WHOLE_POOL, FORK, 1 / 6),
        (WHOLE_POOL, NUMPY, 1 / 8),
        (WHOLE_POOL, DIRECT, 2 / 3),
        (WHOLE_POOL, H5PY_IN_PLACE, 1 / 5),
        (QUARTER_POOL, DIRECT, 1.0),
    ]
    for ours, theirs, limit in limits:
        one, other = found.get(("all", ours)), found.get(("all", theirs))
        if one and other:
            pool = ours.removeprefix(MPICKPT)
            yield _at_most(f"all: added, of {theirs} ({pool})", _beside(one.added_ms, other.added_ms), limit, _ratio)


def _of_little(found: dict[tuple[str, str], Row]) -> Iterator[Aim]:
    """Yield those for a tenth and for nothing rewritten, per GiB of the state."""
    for pattern in ("tenth", "random tenth"):
        if row := found.get((pattern, WHOLE_POOL)):
            yield _at_most(f"{pattern}: added", row.added_ms, 40.0, _ms)
            yield _at_most(f"{pattern}: written, of the state", row.written or 0.0, 0.15, _percent)
    if row := found.get(("none", WHOLE_POOL)):
        yield _at_most("none: added", row.added_ms, NOTHING_LIMIT, _ms)


def _blocked(found: dict[tuple[str, str], Row], *, huge: bool) -> Iterator[Aim]:
    """Yield those for being blocked at the cut, per GiB of the state."""
    for pattern, limit in (("all", 10.0), ("tenth", 1.0), ("none", 1.0)):
        if row := found.get((pattern, WHOLE_POOL)):
            yield _at_most(f"{pattern}: blocked at the cut", row.blocked_ms, limit, _ms)
    whole = found.get(("all", WHOLE_POOL))
    if huge and whole and whole.first_cut_ms is not None:  # before blocks are opened, for which the kernel splits pages
        yield _at_most("all: blocked at the first cut, huge pages whole", whole.first_cut_ms, 1.0, _ms)


LIMITS_OF_COPIES = {"sweep": 2 / 3, "sweep back": 2 / 3, "random": 1.05}


def _of_the_order(found: dict[tuple[str, str], Row]) -> Iterator[Aim]:
    """Yield those for copies, relative to the contenders that set an environment variable."""
    for (pattern, contender), row in found.items():
        predicted = found.get((pattern, WHOLE_POOL))
        if pattern in LIMITS_OF_COPIES and "=" in contender.removeprefix(WHOLE_POOL) and predicted and row.copied:
            ratio = (predicted.copied or 0.0) / row.copied
            yield _at_most(f"{pattern}: copied, of {contender}", ratio, LIMITS_OF_COPIES[pattern], _ratio)


def _of_the_storage(found: dict[tuple[str, str], Row]) -> Iterator[Aim]:
    """Yield those for slow storage: relative to fast storage, and to a program that stops to write."""
    for (pattern, contender), row in found.items():
        if contender == WHOLE_POOL + THROTTLED:
            if quick := found.get((pattern, WHOLE_POOL)):
                ratio = _beside(row.added_ms, quick.added_ms)
                yield _at_most(f"{pattern}: added, throttled, of unthrottled", ratio, 1.15, _ratio)
                held_up = _beside(_held_up(row), _held_up(quick))
                yield _at_most(f"{pattern}: blocked and in faults, throttled, of unthrottled", held_up, 1.15, _ratio)
            if blocking := found.get((pattern, DIRECT + THROTTLED)):
                ratio = _beside(row.added_ms, blocking.added_ms)
                yield _at_most(f"{pattern}: added, throttled, of {DIRECT}", ratio, 1 / 20, _ratio)


def _held_up(row: Row) -> float:
    """Return how long mpickpt itself blocked the program, without the noise of comparing two runs."""
    return row.blocked_ms + (row.faults_ms or 0.0)


def of_faults(ratio: float, pages: str) -> Aim:
    """Return the aim for a write fault, from the ratio of the medians that `faults.ratio` returns."""
    return _at_most(f"write fault with its copy, of memcpy ({pages} pages)", ratio, FAULT_LIMIT, _ratio)


def of_nothing(counted_ms: float) -> Aim:
    """Return the aim for a program that changes nothing, from the time counted per GiB of a rank and checkpoint."""
    return _at_most("none: counted, a checkpoint and GiB", counted_ms, NOTHING_LIMIT, _ms)


def table(found: Iterable[Aim]) -> Table:
    """Return the aims as one table."""
    made = Table()
    made.add_column("")
    made.add_column("measured", justify="right")
    made.add_column("aim", justify="right")
    made.add_column("")
    for aim in found:
        made.add_row(aim.what, aim.measured, aim.limit, "met" if aim.met else "missed")
    return made
