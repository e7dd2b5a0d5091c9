"""Tells a person at the terminal that the program has ended its work and the last drain has not.

This is the only module of the library proper that draws with rich.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 1.0  # seconds before a word is said where there is no terminal


class DrainDisplay:
    """A progress bar on a terminal; elsewhere one line, and only if it takes a while.

    Parameters
    ----------
    epoch : int
        The epoch that is drained.
    visible : bool
        Whether to show anything: rank 0 does.
    """

    def __init__(self, epoch: int, visible: bool) -> None:
        self._epoch = epoch
        self._visible = visible
        self._since = time.monotonic()
        self._said = False
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Draw the empty bar."""
        if self._visible and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(f"mpickpt: saving epoch {self._epoch}", total=None)
            self._bar.start()
        return self

    def update(self, done: int, total: int) -> None:
        """Show that `done` blocks of `total` are saved on this rank."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif self._visible and not self._said and time.monotonic() - self._since > PATIENCE:
            self._said = True
            share = 100 * done // total if total else 100
            print(f"mpickpt: saving epoch {self._epoch} before the end: {share}% done", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
