"""What you see of a run at a terminal or in a log: a status line, and progress bars for what takes long.

All of it goes to stderr. On a terminal it is redrawn in place by rich, which only the command line imports otherwise; a
log file, a pipe and a terminal without capabilities (``TERM=dumb``) get plain lines, and fewer of them. Nothing here
has a thread: the code that does the work reports its progress, and most reports only compare two numbers.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TextIO

from mpickpt.units import human_bytes, human_seconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PATIENCE = 1.0  # seconds before a bar is shown
REDRAW_SECONDS = 0.25  # between two drawings on a terminal
LINE_SECONDS = 10.0  # between two lines in a log
DECIDED_SECONDS = 1.0  # the same after an epoch was decided
PACE_SECONDS = 10.0  # over which steps per second are averaged


def _is_terminal() -> bool:
    """Whether stderr can be drawn on in place."""
    draws = os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    return draws and sys.stderr is not None and sys.stderr.isatty()


def _print(line: str) -> None:
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


# -- while the program runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunState:
    """What the line shows.

    Attributes
    ----------
    step : int
        The step that begins.
    epoch : int or None
        The epoch in progress, if there is one.
    share : float
        How much of it is saved on this rank, 0 to 1.
    complete : int or None
        The newest epoch known to be complete on all ranks.
    age : float or None
        Seconds since that was cut; None if it is of an earlier run.
    creating : float or None
        How much of a slot that is being created beside the program is described, 0 to 1; None if none is.
    """

    step: int
    epoch: int | None = None
    share: float = 0.0
    complete: int | None = None
    age: float | None = None
    creating: float | None = None


class RunLine:
    """A status line: step and pace of the program, the drain, the age of the last complete epoch.

    On a terminal it is redrawn in place. Output of the program on the same terminal by `sys.stdout` or `sys.stderr` has
    precedence: the line is erased before it, and redrawn when the program has ended its own line.
    """

    def __init__(self) -> None:
        self._due_at = self._decided_due_at = -float("inf")
        self._decided = 0
        self._pace: deque[tuple[float, int]] = deque()
        self._terminal: _TerminalLine | None = None

    def due(self, now: float, decided: int) -> bool:
        """Whether to call `show`, at `now` of a clock in seconds, when `decided` epochs have been decided."""
        if self._terminal is not None and self._terminal.is_taken:
            return False
        return now >= self._due_at or (decided != self._decided and now >= self._decided_due_at)

    def show(self, state: RunState, now: float, decided: int) -> None:
        """Draw or print the line; see `due`."""
        text = f"step {state.step}{self._steps_per_second(state.step, now)}; {'; '.join(_epochs(state))}"
        if self._terminal is None and _is_terminal():
            self._terminal = _TerminalLine()
        if self._terminal is not None:
            self._terminal.draw(text)
        else:
            _print(f"mpickpt: {text}")
        self._decided = decided
        self._due_at = now + (REDRAW_SECONDS if self._terminal is not None else LINE_SECONDS)
        self._decided_due_at = now + (REDRAW_SECONDS if self._terminal is not None else DECIDED_SECONDS)

    def close(self) -> None:
        """Erase the line."""
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None

    def _steps_per_second(self, step: int, now: float) -> str:
        self._pace.append((now, step))
        while len(self._pace) > 2 and self._pace[1][0] <= now - PACE_SECONDS:
            self._pace.popleft()
        since, first = self._pace[0]
        if now <= since:
            return ""
        pace = (step - first) / (now - since)
        return f" ({pace:,.0f}/s)" if pace >= 100 else f" ({pace:.3g}/s)"


def _epochs(state: RunState) -> Iterable[str]:
    """Describe the slot that is being created, the epoch in progress, and the newest complete one."""
    if state.creating is not None:
        yield f"slot: {100 * state.creating:.0f}% created"
    if state.epoch is not None:
        yield f"epoch {state.epoch}: " + ("saved here" if state.share >= 1 else f"{100 * state.share:.0f}% saved")
    if state.complete is not None:
        age = "before this run" if state.age is None else f"{human_seconds(state.age)} old"
        named = state.complete if state.epoch is not None else f"epoch {state.complete}"  # to fit 80 columns
        yield f"{named}: complete, {age}"
    elif state.epoch is None:
        yield "no epoch yet"


class _TerminalLine:
    """A line of text on stderr that is erased before other output."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console: Console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._is_shown = False
        self.is_taken = False  # the program is inside a line of its own
        self._streams: dict[str, _CourteousStream] = {}
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty():
                self._streams[name] = _CourteousStream(stream, self)
                setattr(sys, name, self._streams[name])

    def draw(self, text: str) -> None:
        """Draw the line where the cursor is; not while it `is_taken`."""
        width = self._console.width - 1  # in the last column a terminal may begin a new line
        line = f"mpickpt: {text}"
        with self._console:  # in one piece
            self._erase()
            shown = line if len(line) <= width else text
            self._console.print(shown, width=width, no_wrap=True, overflow="ellipsis", end="")
        self._is_shown = True

    def make_way(self, text: str) -> None:
        """Erase the line before `text` is printed."""
        if self._is_shown:
            self._erase()
            self._is_shown = False
        if text:
            self.is_taken = not text.endswith("\n")

    def close(self) -> None:
        """Erase the line, and restore the streams."""
        self.make_way("")
        for name, stream in self._streams.items():
            if getattr(sys, name) is stream:  # nobody has put another one in its place
                setattr(sys, name, stream.stream)

    def _erase(self) -> None:
        from rich.control import Control
        from rich.segment import ControlType

        self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


class _CourteousStream:
    """A text stream that erases the line before each write; otherwise the stream itself."""

    def __init__(self, stream: TextIO, line: _TerminalLine) -> None:
        self.stream = stream
        self._line = line

    def write(self, text: str) -> int:
        self._line.make_way(text)
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  (whatever the stream has)
        return getattr(self.stream, name)


# -- while it is blocked -----------------------------------------------------------------------------------------------


class Bar:
    """A progress bar with rate and remaining time, for what takes longer than a second.

    Parameters
    ----------
    what : str
        What is done.
    visible : bool
        Whether to show anything: rank 0 does.
    """

    def __init__(self, what: str, visible: bool) -> None:
        self._what = f"mpickpt: {what}"
        self._due_at = time.monotonic() + PATIENCE if visible else float("inf")
        self._first: tuple[float, int] | None = None
        self._drawing: Progress | None = None

    def __enter__(self) -> Self:
        """Return the bar itself."""
        return self

    def update(self, done: int, total: int) -> None:
        """Report that `done` bytes of `total` are done."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if now < self._due_at:
            return
        if self._drawing is None and _is_terminal():
            self._drawing = self._start(self._first[1], total)
        if self._drawing is not None:
            self._due_at = now + REDRAW_SECONDS
            self._drawing.update(self._drawing.task_ids[0], completed=done, total=total, refresh=True)
        else:
            self._due_at = now + LINE_SECONDS
            since, before = self._first
            share = 100 * done // total if total else 100
            text = f"{self._what}: {share}% of {human_bytes(total)} done"
            if done > before:
                rate = (done - before) / (now - since)
                text += f", {human_bytes(rate)}/s, {human_seconds((total - done) / rate)} left"
            _print(text)

    def _start(self, done: int, total: int) -> Progress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            *(TextColumn("{task.description}"), BarColumn(bar_width=12), TaskProgressColumn()),
            *(TransferSpeedColumn(), TimeRemainingColumn()),
        )
        console = Console(stderr=True)
        drawing = Progress(*columns, console=console, transient=True, auto_refresh=False, redirect_stdout=False)
        drawing.add_task(self._what, completed=done, total=total)
        drawing.start()
        return drawing

    def __exit__(self, *_: object) -> None:
        """Erase the bar."""
        if self._drawing is not None:
            self._drawing.stop()
