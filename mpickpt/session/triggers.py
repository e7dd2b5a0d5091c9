"""What makes a rank want a cut that the number of the step does not tell: signals, the program, a command, the clock.

SIGUSR1 asks for a cut, SIGTERM for a cut and the end of the program thereafter. A signal that reaches one rank counts
for all. The command ``mpickpt trigger`` leaves a file in the checkpoint directory, which rank 0 finds; rank 0 keeps
the clock, too, and knows when the batch job ends.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from mpickpt.errors import StoreError
from mpickpt.protocol.policy import Clock
from mpickpt.signals import forks, termination
from mpickpt.signals.deferral import Deferral
from mpickpt.slurm import Environment
from mpickpt.store import replace_text, revalidate

TRIGGER = "trigger"  # the file in the checkpoint directory
STOP = "stop"  # its content, if the program is to stop
FILE_SECONDS = 0.5  # between two polls of the file, and of the time that remains

CUT_SIGNAL, STOP_SIGNAL = signal.SIGUSR1, signal.SIGTERM

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Triggers:
    """Collects what asks for a cut.

    Parameters
    ----------
    directory : pathlib.Path or None
        Where the file is; None on all ranks but rank 0.
    clock : Clock or None
        The clock; None on all ranks but rank 0.
    environment : Environment or None
        The batch job; None on all ranks but rank 0.
    margin : float
        The program stops when less than so many seconds of the job are left, beside those of a drain.
    term_limit : float
        So many seconds after the first SIGTERM it takes the effect that it had before, if the program still runs.
    signals : bool
        Whether to install handlers. Only the main thread can: elsewhere signals are left alone, and so is one whose
        handler is not Python's and could not be put back.

    Attributes
    ----------
    asked : bool
        A signal or the program asked for something that was not taken yet.
    stalls : callable
        Whether the storage does not answer at present: then the file is not polled, as that might hang the program.
    """

    def __init__(
        self,
        directory: Path | None,
        clock: Clock | None,
        environment: Environment | None = None,
        *,
        margin: float = 0.0,
        signals: bool,
        term_limit: float = math.inf,
    ) -> None:
        self.clock = clock
        self._environment = environment
        self._margin = margin
        self._file = None if directory is None else directory / TRIGGER
        self._look_at = 0.0
        self.stalls: Callable[[], bool] = lambda: False
        self.asked = self._stop = self._signalled = False
        self._ever_stop = False  # the end of the program was asked for, be it that it was taken
        self._before: dict[int, _Handler] = {}
        self._ignored: dict[int, _Handler] = {}  # since the program was stopped
        self._process = os.getpid()
        self._refused = False  # somebody else's file was found, and that was told
        if self._file is not None:
            with suppress(OSError):  # which cannot be deleted: then it is read like a new one
                self._file.unlink(missing_ok=True)  # of another run
        if signals and threading.current_thread() is threading.main_thread():
            for number in (n for n in (CUT_SIGNAL, STOP_SIGNAL) if signal.getsignal(n) is not None):
                before = signal.signal(number, self._on_signal)
                if isinstance(before, Deferral):
                    if before.has_come:
                        self.request(stop=number == STOP_SIGNAL)
                    before = before.before
                self._before[number] = before
                if number == STOP_SIGNAL:
                    termination.watch_term(before, term_limit)
                forks.disinherit_signal(number, before)

    @property
    def signals(self) -> tuple[int, ...]:
        """The signals whose handlers are this object's."""
        return tuple(self._before)

    def request(self, *, stop: bool) -> None:
        """Ask for a cut, and perhaps for the end of the program thereafter."""
        self.asked = True
        self._stop = self._stop or stop
        self._ever_stop = self._ever_stop or stop

    def saves_last(self, on: bool) -> None:
        """Say that a last epoch is being cut or drained: a second SIGTERM has no effect meanwhile."""
        if STOP_SIGNAL in self._before:
            termination.set_saving(on)

    @property
    def due_at(self) -> float:
        """Until when `stirs` is false, unless something is `asked` for."""
        by_clock = math.inf if self.clock is None else self.clock.due_at
        return by_clock if self._file is None else min(by_clock, self._look_at)

    def stirs(self, now: float) -> bool:
        """Whether `take` may have something to return; polls the file, if it is time to."""
        in_job = self._environment is not None and self._environment.job
        if self._file is not None and now >= self._look_at and not in_job and not self._finds(self._file):
            self._look_at = now + FILE_SECONDS
        return self.asked or now >= self.due_at

    def take(self, now: float) -> bool | None:
        """Return what was asked for since the last call: None for nothing, False for a cut, True to stop as well."""
        if self._file is not None and now >= self._look_at:
            self._look_at = now + FILE_SECONDS
            self._take_file(self._file)
            if self._environment is not None and not self._stop:
                self._look_at_time_left(self._environment, now)
        if self.clock is not None and self.clock.due(now):
            self.asked = True
        if not self.asked:
            return None
        if self._signalled and self._environment is not None and self._environment.job:
            self._signalled = False
            _tell(f"{self._environment.job} received SIGTERM: taking a final checkpoint, then exiting with status 75")
        stop, self.asked, self._stop = self._stop, False, False
        return stop

    def defer(self) -> None:
        """Leave what is asked for, and signals that come from here on, to the next session of the program."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                has_come = self._ever_stop if number == STOP_SIGNAL else self.asked
                with suppress(ValueError):  # not the main thread
                    signal.signal(number, Deferral(before, has_come=has_come))

    def close(self, *, stopped: bool = False) -> None:
        """Give the signals back to their former owners, unless somebody has taken them over since.

        A program that was stopped ignores SIGTERM from here on: it is on its way out, and the one that was meant for
        all ranks may reach this one late.
        """
        if STOP_SIGNAL in self._before:
            termination.unwatch_term()
        for number, before in self._before.items():
            forks.inherit_signal(number)
            if signal.getsignal(number) == self._on_signal:
                ignored = stopped and number == STOP_SIGNAL
                with suppress(ValueError):  # not the main thread
                    signal.signal(number, signal.SIG_IGN if ignored else before)
                if ignored:
                    self._ignored[number] = before
        self._before.clear()
        if self._environment is not None:
            self._environment.close()
            self._environment = None
        if self._file is not None and not self.stalls():
            with suppress(OSError):
                self._file.unlink(missing_ok=True)

    def disown(self) -> None:
        """In a child process made by fork: have signals do what they did before, or what somebody else has them do."""
        if STOP_SIGNAL in self._before:
            termination.unwatch_term()
        for number, before in self._before.items():
            now = signal.getsignal(number)  # set again in any case: C may have the default since the fork
            signal.signal(number, before if now == self._on_signal else now)
        for number, before in self._ignored.items():
            if signal.getsignal(number) == signal.SIG_IGN:
                signal.signal(number, before)
        self._before.clear()
        self._ignored.clear()

    def _look_at_time_left(self, environment: Environment, now: float) -> None:
        """Ask for the end, once, when there is just time enough for it."""
        drain = 0.0 if self.clock is None else self.clock.drain
        left = environment.seconds_left(now)
        if left < drain + self._margin:
            _tell(
                f"{environment.job} reaches its time limit in {left:.0f} s, a drain took {drain:.1f} s: taking a final "
                f"checkpoint, then exiting with status 75"
            )
            self.request(stop=True)
            environment.close()
            self._environment = None

    def _finds(self, file: Path) -> bool:
        return not self.stalls() and _is_there(file)

    def _take_file(self, file: Path) -> None:
        if not self._finds(file):
            return
        try:
            text = _read_own(file)
            file.unlink(missing_ok=True)
        except OSError:
            return
        if text is None:
            if not self._refused:
                self._refused = True
                _tell(f"{file} is ignored: only the user of the program, or root, may request a checkpoint with it")
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return
        self.request(stop=text.strip() == STOP)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a child of which Python does not know
            self.disown()
            os.kill(os.getpid(), number)
            return
        if number != STOP_SIGNAL or not termination.take_again():
            self._signalled = self._signalled or number == STOP_SIGNAL
            self.request(stop=number == STOP_SIGNAL)
        before = self._before.get(number)
        if callable(before):
            before(number, frame)


def _is_there(file: Path) -> bool:
    """Look for a file that may come from another machine."""
    revalidate(file.parent)
    return os.access(file, os.F_OK)


def _read_own(file: Path) -> str | None:
    """Read what this user, or root, has left; None if the file is another one's or no file."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.ELOOP):
            raise
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
            return None
        return os.read(fd, 1000).decode(errors="replace")
    finally:
        os.close(fd)


def _tell(text: str) -> None:
    print(f"mpickpt: {text}", file=sys.stderr, flush=True)


def leave_file(directory: Path, *, stop: bool) -> None:
    """Ask the program that uses `directory` for a cut.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    path = directory / TRIGGER
    try:
        replace_text(path, STOP if stop else "cut")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}.", errno=error.errno, path=path) from error
