"""What the program under measurement does between two cuts: real work that rewrites some of a rank's state.

The work is numpy that multiplies and adds in place, in pieces that fit the second-level cache, so it competes for
memory bandwidth and cores as a simulation does. A *pass* goes once over the blocks of the pattern, in some steps. The
work between two cuts is a whole number of passes, so every epoch begins at the front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_DOUBLES = 32 * 1024  # 256 KiB: mpickpt's block up to 4 GiB a rank, and small enough for the second-level cache
STEP_BLOCKS = 16  # at least: compared with work on 4 MiB, the time between two steps is negligible
HOT = 0.1  # the share of the state that `tenth`, `random tenth` and `mix` rewrite all the time
COLD = 0.05  # the share of the rest that `mix` rewrites in each epoch
WRITES = 2  # single writes in each epoch for every block, by `random`
SEED = 2026


class Pattern:
    """Rewrites all of the state, pass after pass.

    Parameters
    ----------
    state : NDArray[np.float64]
        The rank's state, page aligned.
    passes : int
        Number of passes between two cuts.
    """

    cuts: ClassVar[int] = 1  # in one run of mpickpt: several if little changes and an epoch is short
    most_steps: ClassVar[int] = 16  # of a pass

    def __init__(self, state: NDArray[np.float64], passes: int) -> None:
        self.blocks = [state[begin : begin + BLOCK_DOUBLES] for begin in range(0, len(state), BLOCK_DOUBLES)]
        self.state = state
        self.random = np.random.default_rng(SEED)
        self.worked_on = self.choose()
        self.pass_steps = max(1, min(self.most_steps, len(self.worked_on) // STEP_BLOCKS))
        self.steps = passes * self.pass_steps

    def choose(self) -> list[int]:
        """Return the numbers of the blocks that a pass goes over."""
        return list(range(len(self.blocks)))

    def step(self, index: int) -> None:
        """Do step `index` since the cut."""
        for block in self._share_of(self.worked_on, index):
            rewrite(self.blocks[block])

    def _share_of(self, blocks: list[int], index: int) -> list[int]:
        """Return the blocks that are one step's share of a pass over them."""
        step = index % self.pass_steps
        return blocks[len(blocks) * step // self.pass_steps : len(blocks) * (step + 1) // self.pass_steps]


def rewrite(block: NDArray[np.float64]) -> None:
    """Multiply and add in place."""
    np.multiply(block, 0.999, out=block)
    np.add(block, 0.5, out=block)


class Tenth(Pattern):
    """Rewrites the first tenth."""

    cuts = 4

    def choose(self) -> list[int]:
        """Return the first blocks."""
        return list(range(round(len(self.blocks) * HOT)))


class RandomTenth(Pattern):
    """Rewrites a tenth of the blocks, drawn once: the same in every epoch."""

    cuts = 4

    def choose(self) -> list[int]:
        """Draw them."""
        drawn = self.random.choice(len(self.blocks), round(len(self.blocks) * HOT), replace=False)
        return sorted(int(block) for block in drawn)


class Mix(Tenth):
    """Rewrites the first tenth all the time, and in each epoch the next twentieth of the other blocks once."""

    def __init__(self, state: NDArray[np.float64], passes: int) -> None:
        super().__init__(state, passes)
        self.rest = list(range(len(self.worked_on), len(self.blocks)))
        self.cold: list[int] = []

    def step(self, index: int) -> None:
        """Do a step; the first pass of an epoch rewrites the cold blocks too."""
        if index == 0:
            due = max(1, round(len(self.rest) * COLD))
            self.cold, self.rest = self.rest[:due], self.rest[due:] + self.rest[:due]
        super().step(index)
        if index < self.pass_steps:
            for block in self._share_of(self.cold, index):
                rewrite(self.blocks[block])


class Nothing(Pattern):
    """Reads all of the state."""

    cuts = 4

    def step(self, index: int) -> None:
        """Read one share."""
        for block in self._share_of(self.worked_on, index):
            np.dot(self.blocks[block], self.blocks[block])


class Sweep(Pattern):
    """Goes once through the state between two cuts, from front to back; rewrites each block `passes` times in a row."""

    most_steps = 64

    def __init__(self, state: NDArray[np.float64], passes: int) -> None:
        super().__init__(state, 1)
        self.times = passes

    def step(self, index: int) -> None:
        """Rewrite one share, in the cache from the second time on."""
        for block in self._share_of(self.worked_on, index):
            for _ in range(self.times):
                rewrite(self.blocks[block])


class SweepBack(Sweep):
    """The same from back to front."""

    def choose(self) -> list[int]:
        """Return all blocks, the last first."""
        return super().choose()[::-1]


class Random(Nothing):
    """Reads all of the state, and writes single numbers all over it, two for every block in an epoch."""

    cuts = 1

    def step(self, index: int) -> None:
        """Read one share, write some numbers."""
        super().step(index)
        count = -(-WRITES * len(self.blocks) // self.steps)
        self.state[self.random.integers(0, len(self.state), count)] += 1.0


PATTERNS: dict[str, type[Pattern]] = {
    "all": Pattern,
    "tenth": Tenth,
    "random tenth": RandomTenth,
    "mix": Mix,
    "none": Nothing,
    "sweep": Sweep,
    "sweep back": SweepBack,
    "random": Random,
}
