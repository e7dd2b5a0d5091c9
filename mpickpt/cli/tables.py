"""Output of the verbs: tables, figures, ages, JSON and progress bars. rich is imported only to draw."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mpickpt.units import human_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType


def draw(drawing: RenderableType) -> None:
    """Draw on stdout: in colour on a terminal; 80 columns, or COLUMNS, elsewhere."""
    from rich.console import Console

    Console(highlight=False, emoji=False, markup=False).print(drawing)


def draw_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Draw a table without lines; a head that begins with a blank marks a column of numbers."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    for head in heads:
        table.add_column(head.strip(), justify="right" if head.startswith(" ") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    draw(table)


def print_json(value: object) -> None:
    """Print JSON; numbers that JSON does not have become text."""
    print(json.dumps(_plain(value), indent=2, default=str, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def bar(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Draw a bar with rate and remaining time on a terminal only; yields a function that takes bytes done."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)),
        *(TransferSpeedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def age(time_ns: int) -> str:
    """Format how long ago an instant was; it is given in nanoseconds since 1970."""
    return f"{human_seconds(max(0.0, time.time() - time_ns / 1e9))} ago" if time_ns else "-"


def spans(numbers: Iterable[int]) -> str:
    """Format ascending numbers as spans: 0-2, 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in found)


def ranks(numbers: Sequence[int]) -> str:
    """Format ranks as spans: ranks 0-2, 5."""
    return f"rank{'s' if len(numbers) > 1 else ''} {spans(numbers)}"
