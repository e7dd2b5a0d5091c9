"""The progress that a run shows: on a terminal, which is a pseudo-terminal here, and in a log."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyte
import pytest

import mpickpt
from mpickpt import terminal as progress
from mpickpt.restart import sources
from mpickpt.terminal import Bar, RunLine, RunState

COLUMNS, LINES = 80, 40
LINE = re.compile(r"(?:mpickpt: )?step (\d+)(?: \([\d,.e+-]+/s\))?; ")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
PROGRAM = """
import sys, time, mpickpt
with mpickpt.open("c", every=3) as ckpt:
    u = ckpt.array("u", 100_000)
    for step in ckpt.range(12):
        u += 1
        time.sleep(0.1)
        {body}
"""


def environment(**changes: str) -> dict[str, str]:
    """Give the environment of a program that nothing was said to."""
    told = ("MPICKPT_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_", "PYTHON")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    return clean | {"TERM": "xterm"} | changes


class Terminal:
    """A terminal of 80 columns, what is shown on it, and all that was written to it."""

    def __init__(self, columns: int = COLUMNS) -> None:
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
        self.screen = pyte.Screen(columns, LINES)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)

    def read(self, seconds: float) -> bool:
        """Take in what comes within so many seconds; False if nothing does, or the other side is closed."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 100_000)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    @property
    def shown(self) -> list[str]:
        """The lines that are not empty, as a person sees them."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def drawn(self) -> list[str]:
        """All that was ever drawn in place, each drawing from where it begins to where it was taken away."""
        pieces = re.split(r"\r\x1b\[2K", COLOUR.sub("", self.raw.decode()))
        return [piece.partition("\r")[0].partition("\n")[0] for piece in pieces if LINE.match(piece)]


@contextmanager
def terminal(columns: int = COLUMNS) -> Iterator[Terminal]:
    """Open a terminal."""
    opened = Terminal(columns)
    try:
        yield opened
    finally:
        os.close(opened.slave)
        os.close(opened.master)


@contextmanager
def standard(screen: Terminal) -> Iterator[pytest.MonkeyPatch]:
    """Make the terminal stdout and stderr of this process."""
    with pytest.MonkeyPatch.context() as patch, os.fdopen(os.dup(screen.slave), "w") as tty:
        patch.setattr(sys, "stdout", tty)
        patch.setattr(sys, "stderr", tty)
        for name in ("NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", str(COLUMNS))
        yield patch


def run_on(
    screen: Terminal, folder: Path, body: str, *, options: Sequence[str] = ("--progress",), **changes: str
) -> subprocess.Popen[bytes]:
    """Start a program whose stdout and stderr are the terminal."""
    (folder / "app.py").write_text(PROGRAM.format(body=body))
    command = [sys.executable, "-m", "mpickpt", "run", *options, "app.py"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=screen.slave,
        stderr=screen.slave,
    )


def finish(screen: Terminal, process: subprocess.Popen[bytes]) -> int:
    """Read until the program has ended, and give its exit status."""
    until = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < until:
        screen.read(0.1)
    while screen.read(0.1):
        pass
    return process.wait(timeout=1)


# -- the line on a terminal --------------------------------------------------------------------------------------------


def test_the_line_is_redrawn_in_place_and_the_programs_own_lines_stay_whole(tmp_path: Path) -> None:
    with terminal() as screen:
        began = time.monotonic()
        process = run_on(screen, tmp_path, "print('out', step); print('err', step, file=sys.stderr)")
        assert finish(screen, process) == 0
        lasted = time.monotonic() - began
        assert screen.shown == [f"{stream} {step}" for step in range(12) for stream in ("out", "err")]
        drawn = screen.drawn
    steps = [int(found[1]) for line in drawn if (found := LINE.match(line))]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] > 0
    assert len(drawn) <= lasted / progress.REDRAW_SECONDS + 1
    assert drawn[0] == "mpickpt: step 0; no epoch yet"
    assert any(re.search(r"\(\S+/s\); .*\d: complete, \d\S* m?s old$", line) for line in drawn)


def test_the_line_is_on_the_screen_while_the_program_works(tmp_path: Path) -> None:
    with terminal() as screen:
        process = run_on(screen, tmp_path, "print('begins', flush=True) if step == 0 else sys.stdin.read()")
        until = time.monotonic() + 60
        while not (screen.shown and LINE.match(screen.shown[-1]) and "complete" in screen.shown[-1]):
            assert time.monotonic() < until, screen.shown
            screen.read(0.1)
        assert screen.shown[0] == "begins"
        assert len(screen.shown) == 2
        assert finish(screen, process) == 0
        assert screen.shown == ["begins"]


def test_a_line_that_the_program_has_not_ended_is_left_alone(tmp_path: Path) -> None:
    with terminal() as screen:
        process = run_on(screen, tmp_path, "print('.', end='' if step % 4 < 3 else chr(10), flush=True)")
        assert finish(screen, process) == 0
        assert screen.shown == ["....", "....", "...."]
        assert len(screen.drawn) >= 2


def test_what_goes_to_a_file_goes_there(tmp_path: Path) -> None:
    with terminal() as screen, (tmp_path / "out").open("wb") as out:
        (tmp_path / "app.py").write_text(PROGRAM.format(body="print(step, end=' ')"))  # never ends its line
        command = [sys.executable, "-m", "mpickpt", "run", "--progress", "app.py"]
        files = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": screen.slave}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(), **files)
        assert finish(screen, process) == 0
        assert len(screen.drawn) >= 2
        assert screen.shown == []
    assert (tmp_path / "out").read_text().split() == [str(step) for step in range(12)]


@pytest.mark.parametrize("columns", [80, 40, 20])
def test_the_line_fits(columns: int) -> None:
    state = RunState(step=123_456, epoch=1235, share=0.456, complete=1234, age=192.0)
    with terminal(columns) as screen, standard(screen) as patch:
        patch.setenv("COLUMNS", str(columns))
        line = RunLine()
        line.show(RunState(step=0), now=0.0, decided=0)
        line.show(state, now=10.0, decided=0)
        while screen.read(0.2):
            pass
        (shown,) = screen.shown
        line.close()
        while screen.read(0.2):
            pass
        assert screen.shown == []
    whole = "step 123456 (12,346/s); epoch 1235: 46% saved; 1234: complete, 3.2 min old"
    assert shown == (whole if columns == 80 else f"{whole[: columns - 2]}…")


def test_without_colour(tmp_path: Path) -> None:
    with terminal() as screen:
        assert finish(screen, run_on(screen, tmp_path, "pass", NO_COLOR="1")) == 0
        assert len(screen.drawn) >= 2
        assert not COLOUR.search(screen.raw.decode())


def test_on_a_terminal_that_cannot_draw_there_are_plain_lines(tmp_path: Path) -> None:
    with terminal() as screen:
        assert finish(screen, run_on(screen, tmp_path, "pass", TERM="dumb")) == 0
        assert b"\x1b" not in screen.raw
        assert screen.shown[0] == "mpickpt: step 0; no epoch yet"
        assert all(LINE.match(line) for line in screen.shown)


@pytest.mark.parametrize(("options", "variables"), [((), {}), (("--no-progress",), {"MPICKPT_PROGRESS": "1"})])
def test_nobody_asked(tmp_path: Path, options: Sequence[str], variables: dict[str, str]) -> None:
    with terminal() as screen:
        assert finish(screen, run_on(screen, tmp_path, "pass", options=options, **variables)) == 0
        assert screen.raw == b""


def test_the_environment_and_the_program_may_ask(tmp_path: Path) -> None:
    with terminal() as screen:
        assert finish(screen, run_on(screen, tmp_path, "pass", options=(), MPICKPT_PROGRESS="1")) == 0
        assert screen.drawn
    with mpickpt.open(tmp_path / "d", progress=True) as ckpt:
        assert ckpt.options.progress


# -- the end of it -----------------------------------------------------------------------------------------------------


def test_an_exception_takes_the_line_away(tmp_path: Path) -> None:
    with terminal() as screen:
        assert finish(screen, run_on(screen, tmp_path, "assert step < 5, 'no more'")) == 1
        assert screen.drawn
        assert screen.shown[0] == "Traceback (most recent call last):"
        assert "AssertionError: no more" in screen.shown
        assert not any(LINE.match(line) for line in screen.shown)


def test_a_stop_takes_the_line_away(tmp_path: Path) -> None:
    with terminal() as screen:
        process = run_on(screen, tmp_path, "time.sleep(0.1)")
        until = time.monotonic() + 60
        while not screen.drawn and time.monotonic() < until:
            screen.read(0.1)
        process.send_signal(signal.SIGTERM)
        assert finish(screen, process) == 75
        assert re.sub(r"\s+", " ", " ".join(screen.shown)).startswith("mpickpt: stopped as asked, after epoch")
        assert not any(LINE.match(line) for line in screen.shown)


def test_the_streams_are_given_back(tmp_path: Path) -> None:
    with terminal() as screen, standard(screen) as patch:
        tty = sys.stdout
        with mpickpt.open(tmp_path, every=2, progress=True) as ckpt:
            for step in ckpt.range(3):
                assert sys.stdout is not tty
                assert sys.stdout.isatty() and sys.stdout.fileno() == tty.fileno()
                sys.stdout.writelines([f"{step} ", "told\n"])
        assert sys.stdout is tty
        assert sys.stderr is tty
        while screen.read(0.2):
            pass
        assert screen.shown == ["0 told", "1 told", "2 told"]
        with mpickpt.open(tmp_path, every=2, progress=True) as ckpt:
            ckpt.step()
            patch.setattr(sys, "stdout", sys.__stdout__)  # somebody else's from here on
        assert sys.stdout is sys.__stdout__


# -- the line in a log -------------------------------------------------------------------------------------------------


def test_in_a_log_a_line_comes_rarely_and_when_an_epoch_is_settled(capsys: pytest.CaptureFixture[str]) -> None:
    line = RunLine()
    shown = []
    for tenth in range(400):
        now, decided = tenth / 10, (tenth >= 152) + (tenth >= 154) + (tenth >= 300)
        if line.due(now, decided):
            shown.append(now)
            line.show(RunState(step=3 * tenth), now, decided)
    assert shown == [0.0, 10.0, 15.2, 16.2, 26.2, 30.0]  # the second of two epochs in a row a second after the first
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(shown)
    assert told[:2] == ["mpickpt: step 0; no epoch yet", "mpickpt: step 300 (30/s); no epoch yet"]


def test_the_pace_is_that_of_the_last_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    line = RunLine()
    for second in range(41):
        line.show(RunState(step=second * 1000 if second < 20 else 20_000 + second - 20), float(second), 0)
    told = capsys.readouterr().err.splitlines()
    assert told[15] == "mpickpt: step 15000 (1,000/s); no epoch yet"
    assert told[40] == "mpickpt: step 20020 (1/s); no epoch yet"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (RunState(0), "no epoch yet"),
        (RunState(0, creating=0.371), "slot: 37% created; no epoch yet"),
        (RunState(0, 1, creating=0.371), "slot: 37% created; epoch 1: 0% saved"),
        (RunState(0, 1, 0.25), "epoch 1: 25% saved"),
        (RunState(0, 2, 1.0, 1, 90.0), "epoch 2: saved here; 1: complete, 1.5 min old"),
        (RunState(0, None, 0.0, 2, 3.0), "epoch 2: complete, 3.0 s old"),
        (RunState(0, 8, 0.5, 7), "epoch 8: 50% saved; 7: complete, before this run"),
    ],
)
def test_what_is_told_of_epochs(state: RunState, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    RunLine().show(state, 0.0, 0)
    assert capsys.readouterr().err == f"mpickpt: step 0; {text}\n"


def test_the_line_of_a_run_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for end in (4, 8):
        with mpickpt.open(tmp_path, every=3, progress=True) as ckpt:
            _u = ckpt.array("u", 1000)
            for _ in ckpt.range(end):
                pass
    told = [line for line in capsys.readouterr().err.splitlines() if LINE.match(line)]
    assert told[0] == "mpickpt: step 0; no epoch yet"
    assert "mpickpt: step 3; epoch 1: complete, before this run" in told


# -- bars --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have bars shown at once, and at each update."""
    for name in ("PATIENCE", "REDRAW_SECONDS"):
        monkeypatch.setattr(progress, name, -1.0)


@pytest.mark.usefixtures("impatient")
def test_a_bar_in_a_log_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    for visible in (True, False):
        with Bar("saving epoch 7 before the end", visible) as bar:
            bar.update(0, 4 << 30)
            bar.update(1 << 30, 4 << 30)
        told = capsys.readouterr().err
        assert told == ("mpickpt: saving epoch 7 before the end: 0% of 4.0 GiB done\n" if visible else "")


def test_a_bar_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter((0.0, 0.5, 0.9, 2.5, 12.4, 12.5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with Bar("reading epoch 7", True) as bar:
        for tenths in (1, 1, 3, 7, 8):
            bar.update(tenths << 30, 10 << 30)
    assert capsys.readouterr().err.splitlines() == [
        "mpickpt: reading epoch 7: 30% of 10.0 GiB done, 1.0 GiB/s, 7.0 s left",
        "mpickpt: reading epoch 7: 80% of 10.0 GiB done, 597.3 MiB/s, 3.4 s left",
    ]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_bar_on_a_terminal(variables: dict[str, str]) -> None:
    with terminal() as screen, standard(screen) as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with Bar("saving epoch 1234 before the end", True) as bar:
            for gibibytes in (1, 2, 3):
                bar.update(gibibytes << 30, 4 << 30)
                time.sleep(0.05)  # a rate of as many digits as there are
            while screen.read(0.2):
                pass
            shown = screen.shown
        while screen.read(0.2):
            pass
        if "TERM" in variables:
            assert shown == ["mpickpt: saving epoch 1234 before the end: 25% of 4.0 GiB done"]
            assert b"\x1b" not in screen.raw
            return
        (line,) = shown
        assert re.fullmatch(r"mpickpt: saving epoch 1234 before the end \S+ +75% \S+ \S?B/s \d:\d\d:\d\d", line)
        assert screen.shown == []
        assert bool(re.search(r"\x1b\[[\d;]*3\d", screen.raw.decode())) == ("NO_COLOR" not in variables)


@pytest.mark.usefixtures("impatient")
def test_closing_and_restart_show_how_far_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "OWN_PIECE_BYTES", 4 << 20)
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    with mpickpt.open(tmp_path, every=1) as ckpt:
        _u = ckpt.array("u", 2 << 20, fill=1.0)
        ckpt.step()
        ckpt.step()
    assert re.search(r"^mpickpt: saving epoch 1 before the end: \d+% of 16.0 MiB done", capsys.readouterr().err, re.M)
    with mpickpt.open(tmp_path) as ckpt:
        assert (ckpt.array("u", 2 << 20) == 1.0).all()
    told = re.findall(r"^mpickpt: reading epoch 1: (\d+)% of 16.0 MiB done", capsys.readouterr().err, re.M)
    assert told == ["25", "50", "75", "100"]


def test_nothing_is_said_of_what_is_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with mpickpt.open(tmp_path, every=1) as ckpt:
            _u = ckpt.array("u", 1000)
            ckpt.step()
    assert "ing epoch" not in capsys.readouterr().err
