"""Signal handlers that were replaced after the session was opened."""

from __future__ import annotations

import ctypes
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

import mpickpt

LIBC = ctypes.CDLL(None)
LIBC.signal.argtypes, LIBC.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p


def theirs(number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def by_python(number: int) -> None:
    signal.signal(number, theirs)


def by_default(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)


def ignored_by_c(number: int) -> None:
    LIBC.signal(number, 1)


def by_c(number: int) -> None:
    LIBC.signal(number, ctypes.cast(LIBC.abs, ctypes.c_void_p))


@pytest.mark.parametrize("when", ["before the loop", "in the loop"])
@pytest.mark.parametrize(
    ("take", "who"),
    [
        (by_python, rf"{__name__}\.theirs"),
        (by_default, "the default action"),
        (ignored_by_c, "the action to ignore it"),
        (by_c, r"code of /.*libc[.-].*"),
    ],
)
@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (signal.SIGTERM, r"no last epoch is saved when SIGTERM comes.*ckpt\.request\(stop=True\)"),
        (signal.SIGUSR1, r"no checkpoint is made when SIGUSR1 comes.*ckpt\.request\(\)"),
    ],
)
def test_it_is_told_once(
    tmp_path: Path, number: signal.Signals, lost: str, take: Callable[[int], None], who: str, when: str
) -> None:
    told = rf"Rank 0: the handler of {number.name} was replaced after mpickpt\.open, by {who}\. Unless .* {lost}; sig"
    before = signal.getsignal(number)
    try:
        with mpickpt.open(tmp_path, every=1) as ckpt:
            if when == "in the loop":
                ckpt.step()
                ckpt.step()
            take(number)
            with pytest.warns(RuntimeWarning, match=told) as found:
                ckpt.step()
            assert len(found) == 1
            for _ in range(2):
                ckpt.step()
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("signals", [True, False])
def test_nothing_is_said_without_need(tmp_path: Path, signals: bool) -> None:
    """Of a handler that was there before, and where signals are left alone."""
    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with warnings.catch_warnings(), mpickpt.open(tmp_path, every=1, signals=signals) as ckpt:
            warnings.simplefilter("error")
            ckpt.step()
            ckpt.step()
            if not signals:
                by_default(signal.SIGTERM)
            ckpt.step()
    finally:
        signal.signal(signal.SIGTERM, before)
