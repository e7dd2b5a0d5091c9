"""A second SIGTERM must not end a program that saves its last epoch: the handler is told when."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import mpickpt
from mpickpt import _native
from mpickpt.protocol import Epoch
from mpickpt.signals import termination


def test_the_handler_knows_when_a_last_epoch_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    with pytest.raises(mpickpt.Stopped), mpickpt.open(tmp_path, every=2) as ckpt:
        original = ckpt._checkpointer.cut

        def cut(epoch: Epoch) -> None:
            told.append(saved[-1] if saved else False)
            original(epoch)

        saved: list[bool] = []
        monkeypatch.setattr(termination, "set_saving", saved.append)
        monkeypatch.setattr(ckpt._checkpointer, "cut", cut)
        u = ckpt.array("u", 10)
        for step in ckpt.range(100):
            u += 1
            if step == 3:
                ckpt.request(stop=True)
    assert saved == [True, False]
    assert told == [False, True], "already while it is cut"


def test_the_handlers_of_sigterm_are_put_back(tmp_path: Path) -> None:
    for before in (signal.SIG_DFL, signal.SIG_IGN):
        found = signal.signal(signal.SIGTERM, before)
        try:
            for _ in range(2):
                with mpickpt.open(tmp_path, every=10, term_limit="1min") as ckpt:
                    ckpt.step()
                assert signal.getsignal(signal.SIGTERM) == before
                _native.term_watch(10.0, 0.0, True)  # nobody does any more
                _native.term_unwatch()
        finally:
            signal.signal(signal.SIGTERM, found)
