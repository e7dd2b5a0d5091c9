"""From runs to figures: medians per GiB of one rank's state, the table, and what was aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

GIB = 1024**3
MILLI = 1000.0
AIM_CONFIGURATION = {"ranks": 2, "nbytes": GIB, "pages": "4k"}
WHOLE_POOL = "mpickpt, pool = state"


@dataclass(frozen=True)
class Row:
    """One contender under one pattern; times per GiB of one rank's state."""

    pattern: str
    contender: str
    blocked_ms: float
    added_ms: float
    durable_ms: float
    cpu_s: float
    memory: float  # beside the state, as a multiple of it


@dataclass(frozen=True)
class Bandwidth:
    """GiB per second of all ranks together, and beside raw O_DIRECT in the same run."""

    drain: float
    raw_write: float
    restart: float
    raw_read: float

    @property
    def drain_ratio(self) -> float:
        """The drain beside pwrite."""
        return self.drain / self.raw_write

    @property
    def restart_ratio(self) -> float:
        """The restart beside pread."""
        return self.restart / self.raw_read


def rows(result: dict[str, Any]) -> list[Row]:
    """Return the medians of a configuration's runs, in the order of its patterns and contenders."""
    gib = result["nbytes"] / GIB
    found = []
    for pattern, runs_of in result["patterns"].items():
        for contender, runs in runs_of.items():
            if "added" not in runs[0]:  # the plain runs
                continue
            middle = {key: median(run[key] for run in runs) for key in runs[0]}
            found.append(
                Row(
                    pattern=pattern,
                    contender=contender,
                    blocked_ms=middle["blocked"] * MILLI / gib,
                    added_ms=middle["added"] * MILLI / gib,
                    durable_ms=middle["durable"] * MILLI / gib,
                    cpu_s=middle["cpu_added"] / gib,
                    memory=middle["memory"] / result["nbytes"],
                )
            )
    return found


def bandwidth(result: dict[str, Any]) -> Bandwidth:
    """Return the medians of a configuration's bandwidths."""
    gib = result["nbytes"] / GIB * result["ranks"]
    seconds = {name: median(values) for name, values in result["bandwidth"].items()}
    return Bandwidth(
        drain=gib / seconds["drain"],
        raw_write=gib / seconds["raw write"],
        restart=gib / seconds["restart"],
        raw_read=gib / seconds["raw read"],
    )


def table(results: list[dict[str, Any]]) -> Table:
    """Return all configurations as one table."""
    made = Table(title="One checkpoint, per GiB of a rank's state; medians")
    for heading in ("ranks x state, pages", "rewritten", "contender"):
        made.add_column(heading)
    for heading in ("blocked ms", "added ms", "on disk ms", "CPU s", "memory x", "drain GiB/s", "restart GiB/s"):
        made.add_column(heading, justify="right")
    for result in results:
        where = f"{result['ranks']} x {result['nbytes'] // 2**20} MiB, {result['pages']}"
        for row in rows(result):
            figures = (f"{row.blocked_ms:.1f}", f"{row.added_ms:.0f}", f"{row.durable_ms:.0f}")
            rest = (f"{row.cpu_s:.2f}", f"{row.memory:.2f}", "", "")
            made.add_row(where, row.pattern, row.contender, *figures, *rest)
        rate = bandwidth(result)
        drain = f"{rate.drain:.2f} ({rate.drain_ratio:.0%})"
        restart = f"{rate.restart:.2f} ({rate.restart_ratio:.0%})"
        made.add_row(where, "idle ranks", "mpickpt", "", "", "", "", "", drain, restart)
        raw = (f"{rate.raw_write:.2f}", f"{rate.raw_read:.2f}")
        made.add_row(where, "idle ranks", "raw pwrite, pread", "", "", "", "", "", *raw, end_section=True)
    return made


def aims(results: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """Return what was aimed at, what was measured and whether it was met, for 2 ranks of 1 GiB in 4 KiB pages."""
    chosen = [result for result in results if AIM_CONFIGURATION.items() <= result.items()]
    if not chosen:
        return []
    by_key = {(row.pattern, row.contender): row for row in rows(chosen[0])}
    found = []
    blocked = max((row.blocked_ms for key, row in by_key.items() if key[1] == WHOLE_POOL), default=None)
    if blocked is not None:
        found.append(("blocked at the cut under 25 ms per GiB", f"{blocked:.1f} ms", blocked < 25))
    whole = by_key.get(("all", WHOLE_POOL))
    for other, share in (("fork()", 1 / 4), ("h5py, in place", 1 / 5), ("h5py, new file", 1 / 5)):
        row = by_key.get(("all", other))
        if whole and row:
            ratio = whole.added_ms / row.added_ms
            found.append((f"all rewritten: added at most {share:.2f} of {other}", f"{ratio:.2f}", ratio <= share))
    tenth = by_key.get(("tenth", WHOLE_POOL))
    if tenth:
        met = tenth.added_ms < 100
        found.append(("a tenth rewritten: added under 100 ms per GiB", f"{tenth.added_ms:.0f} ms", met))
    rate = bandwidth(chosen[0])
    found.append(("drain at least 80% of raw pwrite", f"{rate.drain_ratio:.0%}", rate.drain_ratio >= 0.8))
    found.append(("restart at least 80% of raw pread", f"{rate.restart_ratio:.0%}", rate.restart_ratio >= 0.8))
    return found
