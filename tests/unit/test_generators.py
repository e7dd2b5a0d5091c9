"""Global generators of random numbers, and what a session tells of what it went back to."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpickpt


def draw(folder: Path, stop: int, sources: tuple[Any, ...]) -> list[tuple[float, ...]]:
    """Draw numbers at each step up to `stop`; give all of them."""
    np.random.seed(3)
    random.seed(4)
    with mpickpt.open(folder, every=5) as ckpt:
        drawn: list[tuple[float, ...]] = ckpt.object("drawn", [])
        ckpt.random()
        for _ in ckpt.range(stop):
            drawn.append(tuple(float(source()) for source in sources))
    return drawn


def test_numbers_go_on_where_they_were_cut(tmp_path: Path) -> None:
    sources = (np.random.standard_normal, random.random, lambda: random.gauss(0, 1))
    straight = draw(tmp_path / "straight", 23, sources)
    draw(tmp_path / "resumed", 12, sources)
    assert draw(tmp_path / "resumed", 23, sources) == straight
    assert len(set(straight)) == 23


def test_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="numbers of torch: install torch to run this")
    sources = (np.random.standard_normal, lambda: torch.rand(()), lambda: torch.randn(()))
    torch.manual_seed(5)
    straight = draw(tmp_path / "straight", 23, sources)
    torch.manual_seed(5)
    draw(tmp_path / "resumed", 12, sources)
    torch.manual_seed(6)
    assert draw(tmp_path / "resumed", 23, sources) == straight
    assert isinstance(mpickpt.Checkpoint(tmp_path / "resumed").objects(0)["mpickpt.random"]["torch"], bytes)


def test_states_are_plain_values(tmp_path: Path) -> None:
    draw(tmp_path, 6, (random.random,))
    states = mpickpt.Checkpoint(tmp_path).objects(0)["mpickpt.random"]
    assert {"numpy", "python"} <= set(states) <= {"numpy", "python", "torch"}
    assert states["numpy"]["bit_generator"] == "MT19937" and states["python"][0] == 3


def test_once_in_a_session_and_with_its_states(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=1) as ckpt:
        ckpt.object("mpickpt.random", {"numpy": "of another program"}, on_rebind="ignore")
        with pytest.raises(mpickpt.LayoutError, match="is taken"):
            ckpt.random()
        for _ in ckpt.range(2):
            pass
    before = random.getstate()
    with mpickpt.open(tmp_path) as ckpt, pytest.raises(mpickpt.LayoutError, match="generators cannot be set back"):
        ckpt.random()
    assert random.getstate() == before


def test_restored_tells_names_and_shapes(tmp_path: Path) -> None:
    for count in (3, 4):
        with mpickpt.open(tmp_path, every=1) as ckpt:
            n = ckpt.restored.shapes["x"][0] if ckpt.restored else count
            x = ckpt.array("x", n)
            y = ckpt.array("y", (4, n), part=mpickpt.Part((2, n), start=(0, 0), local=np.s_[1:-1]))
            scalar = ckpt.protect("scalar", np.zeros(()))
            if ckpt.restored:
                assert ckpt.restored.shapes == {"x": (3,), "y": (4, 3), "scalar": ()}
            for _ in ckpt.range(2):
                x += y[1] + scalar
