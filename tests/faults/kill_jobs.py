"""The jobs of the crash tests: sizes, command lines, and what a complete epoch of each must hold."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from slots import Seen

JOBS = Path(__file__).resolve().parents[2] / "jobs"
Field = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """A job, its size, and how often it is cut: at every so many steps, or after an interval if there is one.

    `holds` is called with a slot that holds a complete epoch and the twin's result, and asserts that the values in the
    slot are those of the step at which it was cut.
    """

    name: str
    size: tuple[str, ...]
    every: int
    holds: Callable[[Seen, Field], None]
    interval: str | None = None

    def plain(self, out: Path) -> list[str | Path]:
        """Give the command line of the plain twin."""
        return [JOBS / self.name / "plain.py", *self.size, "--out", out]

    def checkpointed(self, directory: Path, out: Path) -> list[str | Path]:
        """Give the command line of the checkpointed twin under ``mpickpt run``."""
        program = [JOBS / self.name / "checkpointed.py", *self.size, "--out", out]
        often = ["--every", str(self.every)] if self.interval is None else ["--interval", self.interval]
        return ["-m", "mpickpt", "run", "--dir", directory, *often, *program]


def with_size(job: Job, *size: str) -> Job:
    """Give the same job with other sizes."""
    return replace(job, size=size)


HEAT_ROWS, HEAT_COLS, HEAT_STEPS, HEAT_EVERY = 501, 256, 2400, 80
HEAT_SHORT_STEPS = 1200  # of a job that is killed once


@cache
def heat_fields() -> dict[int, Field]:
    """Compute the complete plate in one piece, by other code than the job's, and keep it at every possible cut."""
    u = np.empty((HEAT_ROWS + 2, HEAT_COLS))
    u[1:-1] = np.outer(np.arange(HEAT_ROWS), np.arange(HEAT_COLS)) % 101
    u[0] = u[-1] = 20.0
    fields = {}
    for step in range(HEAT_STEPS):
        if step % HEAT_EVERY == 0:
            fields[step] = u[1:-1].copy()
        north, south, west, east, here = u[:-2, 1:-1], u[2:, 1:-1], u[1:-1, :-2], u[1:-1, 2:], u[1:-1, 1:-1]
        here += 0.2 * (north + south + west + east - 4 * here)
    fields[HEAT_STEPS] = u[1:-1].copy()
    return fields


def heat_holds(slot: Seen, result: Field, steps: int = HEAT_STEPS) -> None:
    """Compare the plate with the one computed in one piece."""
    np.testing.assert_array_equal(heat_fields()[steps], result, err_msg="the twin itself is wrong")
    np.testing.assert_array_equal(slot.fields["u"], heat_fields()[slot.step], err_msg=str(slot.path))


CG_GRID = 201


@cache
def cg_matrix() -> sp.csr_array:
    """Assemble the matrix in one piece."""
    line = sp.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(CG_GRID, CG_GRID))
    return (sp.kron(sp.eye_array(CG_GRID), line) + sp.kron(line, sp.eye_array(CG_GRID))).tocsr()


def cg_holds(slot: Seen, result: Field) -> None:
    """Check that residual and solution belong together: r = b - A x holds to rounding at the head of each step."""
    b = np.arange(CG_GRID**2) * 7919 % 1009 / 1009.0
    x, r, p = slot.fields["x"], slot.fields["r"], slot.fields["p"]
    assert x.shape == r.shape == p.shape == result.shape
    # One step changes x and r by far more than rounding does, unless the solution is reached.
    np.testing.assert_allclose(b - cg_matrix() @ x, r, rtol=0, atol=1e-9 * np.abs(x).max(), err_msg=str(slot.path))


def nbody_holds(slot: Seen, result: Field) -> None:
    """Compare the paths so far with the twin's; the rest is not yet written."""
    np.testing.assert_array_equal(slot.fields["path"][: slot.step], result[: slot.step], err_msg=str(slot.path))
    assert not slot.fields["path"][slot.step :].any(), slot.path
    np.testing.assert_array_equal(slot.fields["pos"], result[slot.step - 1], err_msg=str(slot.path))


def farm_holds(slot: Seen, result: Field) -> None:
    """Compare the results that the master had taken with the twin's: so many in a step as there are workers."""
    results = slot.fields["results"]
    taken = results != 0.0
    assert taken.sum() == slot.step * len(results), slot.path
    np.testing.assert_array_equal(results[taken], result[taken], err_msg=str(slot.path))


def pipeline_holds(slot: Seen, result: Field) -> None:
    """Compare the peaks of the blocks that had come to the last rank with the twin's: up to eight ahead of the step."""
    peaks = slot.fields["peaks"]
    come = int(peaks.any(axis=1).sum())
    assert slot.step <= come <= slot.step + 8, slot.path
    np.testing.assert_array_equal(peaks[:come], result[:come], err_msg=str(slot.path))
    assert not peaks[come:].any(), slot.path


HEAT = Job(
    "heat",
    ("--rows", str(HEAT_ROWS), "--cols", str(HEAT_COLS), "--steps", str(HEAT_STEPS)),
    HEAT_EVERY,
    heat_holds,
)
HEAT_SHORT = replace(
    HEAT, size=(*HEAT.size[:-1], str(HEAT_SHORT_STEPS)), holds=partial(heat_holds, steps=HEAT_SHORT_STEPS)
)
CG = Job("cg", ("--grid", str(CG_GRID), "--tolerance", "1e-14", "--steps", "2000"), 20, cg_holds)
NBODY = Job("nbody", ("--bodies", "101", "--steps", "900"), 8, nbody_holds)
FARM = Job("farm", ("--steps", "400", "--pause", "0.01"), 16, farm_holds)
PIPELINE = Job("pipeline", ("--channels", "64", "--steps", "500", "--pause", "0.002"), 25, pipeline_holds)
