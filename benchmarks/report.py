"""From runs to figures: medians per GiB of one rank's state, and the table."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from configuration import GIB, Configuration

MILLI = 1000.0
NONE = "none"


@dataclass(frozen=True)
class Row:
    """One contender under one pattern: the medians of a checkpoint.

    Attributes
    ----------
    pattern, contender : str
        Names of both.
    blocked_ms, added_ms, durable_ms, cpu_s : float
        Per GiB of one rank's state.
    memory : float
        Memory in addition to the state, as a multiple of it.
    first_cut_ms : float or None
        Time blocked at the first cut of a session, per GiB of one rank's state; None for the other contenders.
    written, copied, faults_ms : float or None
        Shares of the state, and time in write faults per GiB; None if the contender does not count them.
    """

    pattern: str
    contender: str
    blocked_ms: float
    added_ms: float
    durable_ms: float
    cpu_s: float
    memory: float
    first_cut_ms: float | None
    written: float | None
    copied: float | None
    faults_ms: float | None


@dataclass(frozen=True)
class Bandwidth:
    """GiB per second of all ranks together, for mpickpt and for raw O_DIRECT in the same run."""

    drain: float
    raw_write: float
    restart: float
    raw_read: float

    @property
    def drain_ratio(self) -> float:
        """The bandwidth of the drain relative to pwrite."""
        return self.drain / self.raw_write

    @property
    def restart_ratio(self) -> float:
        """The bandwidth of the restart relative to pread."""
        return self.restart / self.raw_read


def configuration(result: dict[str, Any]) -> Configuration:
    """Return what was measured."""
    return Configuration(**result["configuration"])


def rows(result: dict[str, Any]) -> list[Row]:
    """Return the medians of a configuration's runs, in the order of its patterns and contenders."""
    nbytes = configuration(result).nbytes
    gib = nbytes / GIB
    found = []
    for pattern, runs_of in result["patterns"].items():
        for contender, runs in runs_of.items():
            if contender == NONE:
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
                    memory=middle["memory"] / nbytes,
                    first_cut_ms=middle["first_cut"] * MILLI / gib if "first_cut" in middle else None,
                    written=middle["written"] / nbytes if "written" in middle else None,
                    copied=middle["copied"] / nbytes if "copied" in middle else None,
                    faults_ms=middle["faults"] * MILLI / gib if "faults" in middle else None,
                )
            )
    return found


def bandwidth(result: dict[str, Any]) -> Bandwidth:
    """Return the medians of a configuration's bandwidths."""
    measured = configuration(result)
    gib = measured.nbytes / GIB * measured.ranks
    seconds = {name: median(values) for name, values in result["bandwidth"].items()}
    return Bandwidth(
        drain=gib / seconds["drain"],
        raw_write=gib / seconds["raw write"],
        restart=gib / seconds["restart"],
        raw_read=gib / seconds["raw read"],
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _ms(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.1f}"


def table(results: list[dict[str, Any]]) -> Table:
    """Return all configurations as one table."""
    made = Table(title="One checkpoint, per GiB of a rank's state; medians")
    for heading in ("ranks x state, pages", "rewritten", "contender"):
        made.add_column(heading)
    for heading in ("blocked ms", "first cut ms", "added ms", "in faults", "on disk ms"):
        made.add_column(heading, justify="right")
    for heading in ("written", "copied", "CPU s", "memory x"):
        made.add_column(heading, justify="right")
    for result in results:
        where = str(configuration(result))
        for row in rows(result):
            blocked = (_ms(row.blocked_ms), _ms(row.first_cut_ms))
            times = (*blocked, f"{row.added_ms:.0f}", _ms(row.faults_ms), f"{row.durable_ms:.0f}")
            shares = (_percent(row.written), _percent(row.copied), f"{row.cpu_s:.2f}", f"{row.memory:.2f}")
            made.add_row(where, row.pattern, row.contender, *times, *shares)
        made.add_section()
    return made


def bandwidth_lines(results: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each configuration on how fast idle ranks drain and restart."""
    lines = []
    for result in results:
        if "bandwidth" in result:
            rate = bandwidth(result)
            drain = f"drain {rate.drain:.2f} GiB/s, {rate.drain_ratio:.0%} of raw pwrite ({rate.raw_write:.2f})"
            restart = f"restart {rate.restart:.2f} GiB/s, {rate.restart_ratio:.0%} of raw pread ({rate.raw_read:.2f})"
            lines.append(f"{configuration(result)}, idle ranks: {drain}; {restart}")
    return lines
