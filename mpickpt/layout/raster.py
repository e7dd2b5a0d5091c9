"""Maps the cells of an array to its bytes: which part of a file must be read for some of its cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from mpickpt.layout.arrays import blocks_in
from mpickpt.layout.parts import Box


@dataclass(frozen=True)
class Raster:
    """The byte offsets of the cells of a C-ordered array."""

    steps: tuple[int, ...]
    itemsize: int

    @classmethod
    def of(cls, shape: Sequence[int], itemsize: int) -> Raster:
        """Return the raster of an array of a shape."""
        return cls(tuple(itemsize * prod(shape[k + 1 :]) for k in range(len(shape))), itemsize)

    def span(self, box: Box) -> tuple[int, int]:
        """Return the first byte of the first cell of a box, and the byte after the last cell."""
        start = sum(lo * step for lo, step in zip(box.start, self.steps, strict=True))
        last = sum((hi - 1) * step for hi, step in zip(box.stop, self.steps, strict=True))
        return start, last + self.itemsize

    def pieces(self, box: Box, limit: int) -> Iterator[Box]:
        """Halve a box along its first axis of more than one cell, until no piece spans more than `limit` bytes."""
        start, stop = self.span(box)
        axis = next((k for k, n in enumerate(box.extent) if n > 1), None)
        if stop - start <= limit or axis is None:
            yield box
            return
        middle = (box.start[axis] + box.stop[axis]) // 2
        yield from self.pieces(Box(box.start, (*box.stop[:axis], middle, *box.stop[axis + 1 :])), limit)
        yield from self.pieces(Box((*box.start[:axis], middle, *box.start[axis + 1 :]), box.stop), limit)

    def blocks(self, box: Box, block_bytes: int) -> list[tuple[int, int]]:
        """List the runs (first, end) of the blocks that hold cells of a box, in ascending order."""
        # From the last axis up, cells whose gaps are smaller than a block form one range: no block lies between.
        length, outer = self.itemsize, len(self.steps)
        while outer and (box.extent[outer - 1] == 1 or self.steps[outer - 1] - length < block_bytes):
            length += (box.extent[outer - 1] - 1) * self.steps[outer - 1]
            outer -= 1
        base, _ = self.span(box)
        runs: list[tuple[int, int]] = []
        for index in product(*(range(n) for n in box.extent[:outer])):
            start = base + sum(k * step for k, step in zip(index, self.steps[:outer], strict=True))
            first, end = start // block_bytes, blocks_in(start + length, block_bytes)
            if runs and first <= runs[-1][1]:
                runs[-1] = runs[-1][0], max(end, runs[-1][1])
            else:
                runs.append((first, end))
        return runs
