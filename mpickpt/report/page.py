"""The page of ``mpickpt report``: one self-contained HTML file, for light and dark mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from mpickpt.report.figures import EpochFigures, Interval, RankFigures, RunFigures
from mpickpt.texts import counted
from mpickpt.units import human_bytes, human_seconds

MOST_ROWS = 500  # of a table
STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --card: #fff; --ink: #1c2126; --soft: #5b656e; --line: #dde1e4; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181b; --card: #1c2226; --ink: #e6e9eb; --soft: #9aa5ad; --line: #333b41; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { max-width: 60rem; } .soft, figcaption { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.3rem; line-height: 1.4; white-space: nowrap; }
.card span { color: var(--soft); font-size: .85rem; }
.warning { border-left: 4px solid #d55e00; padding-left: .8rem; }
figure { margin: 1rem 0; padding: .75rem; }
figure, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; margin-top: .5rem; }
.scroll { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--card); font-weight: 600; }
"""
TIME_LINE = """For each rank, from above: what the program did; the drains, each as long as it took, its height
shared out by the bytes that were drained in idle time, urgently, and while the program waited in calls of MPI; and
below, how many writes a second the protection held up."""
EPOCHS = """For each epoch: what the program lost, on the rank that lost most; the bytes of all ranks, by who
drained them and when; and the blocks that the slot lacked. A block that the program writes to before it is saved is
copied first."""
LOST = """Lost is the time in which the program was blocked at its cuts, in which its writes were held up by the
protection (summed over its threads), in which it waited at safe points for the last drain or for other ranks, and in
which it waited for the last drain at its end. Processor time that the drain takes from the program is not in it."""
FORMULA = """The formula is that of <code>interval="auto"</code>: max(1.1 C, √(2 S (μ − D − R − C + S))), by G.
Aupy, A. Benoit, T. Herault, Y. Robert, J. Dongarra: Optimal Checkpointing Period: Time vs. Energy (PMBS 2013). C is
the drain, S what is lost, R the restart, D the time from a failure to the next start, μ that between two failures.
What safe points waited is not in S: it depends on the interval."""


@dataclass(frozen=True)
class Section:
    """A run on the page: its figures, and its pictures as SVG; `epochs` is None if there are none."""

    number: int
    figures: RunFigures
    time_line: str
    epochs: str | None
    left_out: int


def page(directory: str, sections: Sequence[Section]) -> str:
    """Return the page in HTML."""
    title = f"{escape(directory)}: what checkpointing cost"
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    run = section.figures
    parts = [f'<section id="run-{section.number}">', _head(section), _warnings(run), _cards(run)]
    parts += [f"<p class=soft>{LOST}</p>", "<h2>Time line</h2>", _figure(section.time_line, TIME_LINE)]
    if section.left_out:
        parts.append(
            f"<p class=soft>{counted(section.left_out, 'rank')} of {len(run.ranks)} left out of the picture.</p>"
        )
    if section.epochs is not None:
        parts += ["<h2>Epochs</h2>", _figure(section.epochs, EPOCHS), _epoch_table(run)]
    if run.interval is not None:
        parts += ["<h2>How often to cut</h2>", _advice(run.interval)]
    parts += ["<h2>Ranks</h2>", _rank_table(run), "</section>"]
    return "\n".join(part for part in parts if part)


def _head(section: Section) -> str:
    run = section.figures
    began = datetime.fromtimestamp(run.started_ns // 1_000_000_000, UTC)
    hosts = len({rank.host for rank in run.ranks})
    told = f"Run {section.number}, begun {began:%Y-%m-%d %H:%M:%S} UTC on {counted(run.world_size, 'rank')}"
    told += f" and {counted(hosts, 'node')}" if hosts > 1 else ""
    told += f", from epoch {run.restored}" if run.restored is not None else ""
    return f"<p class=soft>{told}; {human_seconds(run.seconds)} of it {'are' if run.ended else 'so far are'} noted.</p>"


def _warnings(run: RunFigures) -> str:
    told = []
    missing = run.world_size - len(run.ranks)
    if missing:
        told.append(f"The notes of {counted(missing, 'rank')} are missing: sums are without them.")
    if not run.ended:
        told.append(
            "Not all ranks noted their end: the program runs, or was killed, or a rank left it by an exception."
        )
    failed = [epoch for epoch in run.epochs if epoch.errno]
    if failed:
        told.append(f"{counted(len(failed), 'epoch')} failed; the last was {failed[-1].epoch}.")
    if run.summed:
        told.append(f"Noted as sums alone, as notes are bounded: {counted(run.summed, 'older epoch')}.")
    return "\n".join(f'<p class="warning">{text}</p>' for text in told)


def _cards(run: RunFigures) -> str:
    most = run.most_lost
    cards = [
        (percent(most.share), f"of its time lost by rank {most.rank}, the most; {percent(run.mean_share)} on average")
    ]
    if run.epochs:
        complete = sum(epoch.complete for epoch in run.epochs)
        singly = " one by one" if run.summed else ""
        cards.append((f"{complete}", f"epochs complete, of {len(run.epochs)} noted{singly}"))
        cards.append((human_seconds(_mean(epoch.blocked for epoch in run.epochs)), "blocked by a cut, on average"))
        cards.append((human_seconds(_mean(epoch.added for epoch in run.epochs)), "lost to an epoch, on average"))
        nbytes, drained = sum(epoch.nbytes for epoch in run.epochs), sum(epoch.drain for epoch in run.epochs)
        text = f"drained, by all ranks; {human_bytes(nbytes / len(run.epochs))} an epoch"
        cards.append((f"{human_bytes(nbytes / drained if drained else 0.0)}/s", text))
    if run.interval is not None:
        cards.append((human_seconds(run.interval.best), "between two cuts would lose the least"))
    drawn = "".join(f"<div class=card><b>{big}</b><span>{small}</span></div>" for big, small in cards)
    return f'<div class="cards">{drawn}</div>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def _epoch_table(run: RunFigures) -> str:
    heads = (
        "epoch",
        "step",
        "cut at",
        "blocked",
        "writes",
        "waited",
        "lost",
        "drain",
        "bytes",
        "bandwidth",
        "copied",
        "saved",
    )
    shown = run.epochs[-MOST_ROWS:]
    note = f"<p class=soft>The newest {MOST_ROWS} of {len(run.epochs)}.</p>" if len(shown) < len(run.epochs) else ""
    return _table(heads, (_epoch_row(epoch) for epoch in shown)) + note


def _epoch_row(epoch: EpochFigures) -> tuple[str, ...]:
    name = f"{epoch.epoch}" if epoch.complete else f"{epoch.epoch} ({'failed' if epoch.errno else 'not on all ranks'})"
    seconds = (epoch.cut, epoch.blocked, epoch.faulted, epoch.waited, epoch.added, epoch.drain)
    return (
        name,
        f"{epoch.step:,}",
        *(human_seconds(value) if value else "0" for value in seconds),
        human_bytes(epoch.nbytes),
        f"{human_bytes(epoch.bandwidth)}/s",
        f"{epoch.blocks_copied:,}",
        f"{epoch.blocks_drained:,}",
    )


def _rank_table(run: RunFigures) -> str:
    heads = (
        "rank",
        "node",
        "blocked",
        "writes",
        "waited",
        "at the end",
        "lost",
        "share",
        "bytes",
        "idle",
        "urgent",
        "while waiting",
    )
    ordered = sorted(run.ranks, key=lambda rank: -rank.share)
    note = f"<p class=soft>The {MOST_ROWS} of {len(ordered)} that lost most.</p>" if len(ordered) > MOST_ROWS else ""
    return _table(heads, (_rank_row(rank) for rank in sorted(ordered[:MOST_ROWS], key=lambda rank: rank.rank))) + note


def _rank_row(rank: RankFigures) -> tuple[str, ...]:
    costs = rank.costs
    seconds = (costs.blocked, costs.fault_seconds + costs.late_fault_seconds, costs.waited, rank.end, rank.lost)
    parts = (costs.bytes_idle, costs.bytes_urgent, costs.bytes_waiting)
    return (
        f"{rank.rank}",
        rank.host,
        *(human_seconds(value) if value else "0" for value in seconds),
        percent(rank.share),
        human_bytes(costs.bytes_written),
        *(percent(part / costs.bytes_written if costs.bytes_written else 0.0) for part in parts),
    )


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _advice(interval: Interval) -> str:
    now = f"This run cut every {human_seconds(interval.measured)}, on average. " if interval.measured else ""
    drain, lost, restart, downtime, mtbf = map(
        human_seconds, (interval.drain, interval.lost, interval.restart, interval.downtime, interval.mtbf)
    )
    return (
        f"<p>{now}With what its epochs cost, one cut every <b>{human_seconds(interval.best)}</b> would lose the "
        f"least. This takes a drain of {drain} and {lost} lost to cut and write faults (of the slowest rank, averaged "
        f"over the epochs), a restart of {restart}, {downtime} from a failure to the next start, and <b>one failure "
        f"in {mtbf}</b>: that is an assumption, which <code>--mtbf</code> changes.</p>\n<p class=soft>{FORMULA}</p>"
    )


def percent(share: float) -> str:
    """Format a share as a percentage with about two digits."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
