"""Signals whose handlers were replaced after the session was opened: reported once, with the new handler.

A handler that the program or a library installs later runs before the session's, or in its place; whether it calls the
handler that it replaced is not known. For SIGUSR1 and SIGTERM, a request may be lost. For SIGSEGV, a write to protected
memory reaches a handler that knows nothing of it. So handlers are compared when the loop begins, and at each cut, where
that of SIGSEGV is installed again.
"""

from __future__ import annotations

import signal
from _signal import getsignal  # type: ignore[import-not-found]  # signal.getsignal makes enums: too slow at a cut
from collections.abc import Iterable
from pathlib import Path

from mpickpt import _native

_LOST = {
    signal.SIGTERM: (
        "no last epoch is saved when SIGTERM comes, as it does before the end of a job. Install your handler before "
        "mpickpt.open, which calls it too, or let it call ckpt.request(stop=True)"
    ),
    signal.SIGUSR1: (
        "no checkpoint is made when SIGUSR1 comes. Install your handler before mpickpt.open, which calls it too, or "
        "let it call ckpt.request()"
    ),
}


class Handlers:
    """Watches the handlers of one session.

    Parameters
    ----------
    numbers : iterable of int
        The signals that the session handles in Python.
    rank : int
        For messages.
    """

    def __init__(self, numbers: Iterable[int], rank: int) -> None:
        self._ours = {number: self._now(number) for number in numbers}
        self._rank = rank
        self._faults: int | None = None  # the handler of SIGSEGV since the last cut
        self._told_faults = False

    def taken(self) -> list[str]:
        """Return a warning for each replaced handler, once; called before a cut, which may change our own handlers."""
        told = []
        for number in [n for n, ours in self._ours.items() if self._now(n) != ours]:
            _, function = self._ours.pop(number)
            name, who = signal.Signals(number), _who(number, function)
            told.append(
                f"Rank {self._rank}: the handler of {name.name} was replaced after mpickpt.open, by {who}. "
                f"Unless that calls the handler which was there, {_LOST[name]}; signals=False leaves signals alone."
            )
        if self._faults is not None and not self._told_faults:
            if _native.signal_handler(signal.SIGSEGV) != self._faults:
                self._told_faults = True
                who = _who(signal.SIGSEGV, signal.getsignal(signal.SIGSEGV))
                told.append(
                    f"Rank {self._rank}: the handler of SIGSEGV was replaced since the last cut, by {who}. Until "
                    f"this cut, which takes it back and hands on to that one, a write to saved memory could end the "
                    f"program, unless that one hands on what is not its own: install such handlers before the first "
                    f"safe point."
                )
        self._faults = None  # a new layout gives SIGSEGV back
        return told

    def cut(self) -> None:
        """Note the handler of SIGSEGV after a cut: that of the session, which runs first."""
        self._faults = _native.signal_handler(signal.SIGSEGV)

    @staticmethod
    def _now(number: int) -> tuple[int, object]:
        """Return the handler of the system, and that of Python: all those of Python share one of the system."""
        return _native.signal_handler(number), getsignal(number)


def _who(number: int, before: object) -> str:
    """Name the current handler of a signal; Python called `before` when it was ours."""
    address, function = _native.signal_handler(number), signal.getsignal(number)
    if address == 0:
        return "the default action"
    if address == 1:
        return "the action to ignore it"
    if callable(function) and function != before:
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
        return f"{module}.{name}" if module and name else repr(function)
    return _file_at(address)


def _file_at(address: int) -> str:
    """Name the file whose code lies at an address."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            span, *_, path = line.rstrip("\n").split(maxsplit=5)
            first, last = (int(end, 16) for end in span.split("-"))
            if first <= address < last and path.startswith("/"):
                return f"code of {path}"
    return "code of no file"
