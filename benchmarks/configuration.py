"""What one start of mpiexec measures, and what a contender's name means."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MIB = 1024**2
GIB = 1024**3

WHOLE_POOL = "mpickpt, pool = state"
QUARTER_POOL = "mpickpt, pool = state/4"
POOL = re.compile(re.escape(WHOLE_POOL) + "(?:/([1-9][0-9]*))?")
FORK, DIRECT, NUMPY = "fork()", "O_DIRECT write", "numpy.save"
H5PY_IN_PLACE, H5PY_NEW = "h5py, in place", "h5py, new file"
CONTENDERS = [WHOLE_POOL, QUARTER_POOL, FORK, DIRECT, H5PY_IN_PLACE, H5PY_NEW, NUMPY]
NAMES = f"{', '.join(CONTENDERS)}, {WHOLE_POOL}/N"
MPICKPT = "mpickpt, "
THROTTLED = ", throttled"


@dataclass(frozen=True)
class Configuration:
    """What one start of mpiexec measures.

    Attributes
    ----------
    ranks, nbytes : int
        Ranks, and bytes of a rank's state.
    huge : bool
        Whether the state lies in huge pages.
    patterns, contenders : list of str
        Keys of `patterns.PATTERNS`, and contenders as `contender_named` reads them.
    repetitions : int
        Rounds in which the contenders take turns.
    work_seconds : float
        Work between two cuts that changes all; less if a run has several cuts.
    bandwidth : bool
        Whether to measure the drain and the restart of idle ranks, too.
    cgroups : list of str
        A block-I/O cgroup for each rank, for the throttled contenders; empty without them.
    bytes_per_second : int
        What each of them may write.
    """

    ranks: int
    nbytes: int
    huge: bool
    patterns: list[str]
    contenders: list[str]
    repetitions: int
    work_seconds: float
    bandwidth: bool = True
    cgroups: list[str] = field(default_factory=list)
    bytes_per_second: int = 0

    def __str__(self) -> str:
        """Return ranks, size and pages as text."""
        return f"{self.ranks} x {self.nbytes // MIB} MiB, {'huge' if self.huge else '4k'} pages"


@dataclass(frozen=True)
class Named:
    """What a contender's name means.

    Attributes
    ----------
    pool : float or None
        Share of the state that the pool of mpickpt can hold; None for the other contenders.
    environment : dict of str to str
        Environment variables of its runs.
    throttled : bool
        Whether its writing is limited.
    kind : str
        The name without "throttled".
    """

    pool: float | None
    environment: dict[str, str]
    throttled: bool
    kind: str


def contender_named(name: str) -> Named:
    """Parse a contender's name: of `CONTENDERS`, a pool of state/N, or ``mpickpt, NAME=VALUE ...``; perhaps throttled.

    Raises
    ------
    ValueError
        If it is not such a name.
    """
    kind = name.removesuffix(THROTTLED)
    throttled = kind != name
    if pool := POOL.fullmatch(kind):
        return Named(1 / int(pool[1] or 1), {}, throttled, kind)
    if kind in CONTENDERS:
        return Named(None, {}, throttled, kind)
    settings = [word.partition("=") for word in kind.removeprefix(MPICKPT).split()]
    if not kind.startswith(MPICKPT) or not settings or any(not key or not equals for key, equals, _ in settings):
        raise ValueError(f"No contender is called {name!r}: there are {NAMES}, and {MPICKPT}NAME=VALUE.")
    return Named(1.0, {key: value for key, _, value in settings}, throttled, kind)
