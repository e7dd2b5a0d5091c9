"""Giving a rank's arrays to the snapshotter: what can be write-protected, what is pinned, and how large the pool is.

Memory that others may write to without a fault cannot be write-protected. It is *pinned*: copied at each cut, while the
program waits, and the pool has room for all of it at once. ``native/src/mapping.c`` finds out which memory that is.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import LayoutError, UsageError
from mpickpt.layout.arrays import ArraySpec
from mpickpt.options import PoolSize
from mpickpt.protocol.policy import KEPT_BYTES, Ceiling, PoolGrant, PoolRequest
from mpickpt.session.memory import ceilings, resident_bytes
from mpickpt.snapshot import Mapping, Memory, Snapshotter
from mpickpt.texts import told_names
from mpickpt.units import human_bytes

LEAST_BLOCKS = 4  # of a pool: with fewer, one write would wait for another
STEP_BYTES = 32 << 20  # that are taken between two checks of what remains
_HOW = {
    Mapping.SHARED: "memory that others may have mapped as well",
    Mapping.HUGE: "huge pages of hugetlbfs, which cannot be write-protected in parts",
    Mapping.WINDOW: "the memory of an MPI window",
}


@dataclass(frozen=True, eq=False)
class Region:
    """An array that is saved.

    Attributes
    ----------
    spec : ArraySpec
        What it is.
    memory : ndarray of uint8
        Its bytes.
    owned : bool
        The session allocated them.
    kind : type
        The class of the array that the program was handed.
    identity : callable
        Gives that array, while there is one.
    """

    spec: ArraySpec
    memory: NDArray[np.uint8]
    owned: bool
    kind: type[NDArray[Any]] = np.ndarray
    identity: Callable[[], object | None] = lambda: None


class Watch:
    """One rank's regions in the hands of its snapshotter.

    Parameters
    ----------
    snapshotter : Snapshotter
        Gets them.
    pool : PoolSize
        What was asked for.
    rank : int
        For messages.
    job_memory : Ceiling or None
        What the batch job may take on this node, if it says so.
    """

    def __init__(self, snapshotter: Snapshotter, pool: PoolSize, rank: int, job_memory: Ceiling | None = None) -> None:
        self._snapshotter = snapshotter
        self._pool = pool
        self._rank = rank
        self._regions: list[Region] = []  # those that are not empty: the snapshotter has no others
        self._pinned: list[tuple[Region, Memory]] = []
        self._job_memory = job_memory
        self._untouched = 0
        self._limit = ""  # that ended the taking of memory
        self._goal: int | None = None  # how much is to be taken, where that is known
        self._told: set[str] = set()

    def add(self, regions: Iterable[Region]) -> None:
        """Give other regions to the snapshotter in place of those it has, and look up how their memory is mapped.

        Raises
        ------
        UsageError
            If the kernel does not tell how memory is mapped.
        LayoutError
            If the memory of one cannot be saved.
        """
        self._snapshotter.unseal()
        self._regions = [region for region in regions if region.spec.nbytes]
        self._pinned = []
        try:
            for region in self._regions:
                self._snapshotter.add(region.memory, owned=region.owned)
            with self._asking(None):
                found = self._snapshotter.look_up()
        except OSError as error:
            raise _cannot_watch(error) from error
        pairs = list(zip(self._regions, found, strict=True))
        for region, memory in pairs:
            if memory.errno:
                raise LayoutError(_flaw(region.spec.name, memory))
        self._pinned = [(region, memory) for region, memory in pairs if memory.pinned]
        self._untouched = sum(memory.absent for memory in found)

    def request(self, block_bytes: int) -> PoolRequest:
        """Say how large a pool is asked for, and what limits it.

        Raises
        ------
        UsageError
            If it does not hold what is pinned.
        """
        state = sum(region.spec.nbytes for region in self._regions)
        pinned = sum(-(-region.spec.nbytes // block_bytes) * block_bytes for region, _ in self._pinned)
        pool = self._pool.bytes_for(state, block_bytes, pinned)
        if pool < pinned:
            names = told_names([region.spec.name for region, _ in self._pinned])
            raise UsageError(
                f"The pool of {human_bytes(pool)} does not hold {names} at once, which cannot be write-protected and "
                f"is copied at each cut: {human_bytes(pinned)} are needed. Give pool={pinned} or more (--pool, "
                f"MPICKPT_POOL), or none, which makes it large enough."
            )
        wanted = -(-pool // block_bytes) * block_bytes
        least = min(wanted, max(pinned, LEAST_BLOCKS * block_bytes))
        found = ceilings() if self._job_memory is None else [*ceilings(), self._job_memory]
        return PoolRequest(wanted, least, self._untouched, resident_bytes(), tuple(found))

    def seal(self, block_bytes: int, request: PoolRequest, grant: PoolGrant) -> None:
        """Reserve the pool and begin to watch; tell on stderr what is pinned, and if the pool is smaller.

        Parameters
        ----------
        block_bytes : int
            Of the layout.
        request, grant : PoolRequest, PoolGrant
            What was asked for, and what this rank gets of what is left.

        Raises
        ------
        UsageError
            If less is left than makes sense, the pool cannot be reserved, or another session is open.
        """
        if grant.nbytes < request.least:
            raise UsageError(_too_little(request, grant))
        self._limit = grant.limit
        try:
            with self._asking(grant.nbytes):
                pool = self._snapshotter.seal(block_bytes, grant.nbytes)
        except OSError as error:
            if error.errno == errno.EDQUOT:
                raise UsageError(_too_little(request, PoolGrant(0, self._limit))) from error
            raise _cannot_watch(error) from error
        self._tell()
        if pool < request.wanted:
            shared = f" for {grant.ranks} ranks" if grant.ranks > 1 else ""
            print(
                f"mpickpt: rank {self._rank}: the pool has {human_bytes(pool)} in place of "
                f"{human_bytes(request.wanted)}, which is what {self._limit} leaves{shared}: writes to what is not "
                f"saved yet may wait for the drain.",
                file=sys.stderr,
                flush=True,
            )

    @contextmanager
    def _asking(self, goal: int | None) -> Iterator[None]:
        """Have the snapshotter ask before it takes memory, `goal` bytes in all if that is known."""
        self._goal = goal
        self._snapshotter.ask_before_taking(self._may_take)
        try:
            yield
        finally:
            self._snapshotter.ask_before_taking(None)

    def _may_take(self, taken: int) -> bool:
        """Whether more memory may be taken now; other programs may have taken some meanwhile."""
        step = STEP_BYTES if self._goal is None else min(STEP_BYTES, self._goal - taken)
        for ceiling in ceilings():
            if not ceiling.counts_untouched and ceiling.left < self._untouched + step + KEPT_BYTES // 2:
                self._limit = ceiling.name
                return False
        return True

    def close(self) -> None:
        """Let go of the regions; the snapshotter is closed."""
        self._regions, self._pinned = [], []

    def name_of(self, region: int) -> str:
        """Return the name of the array that the snapshotter knows by a number."""
        return self._regions[region].spec.name

    def _tell(self) -> None:
        for mapping, how in _HOW.items():
            new = [(r.spec.name, m) for r, m in self._pinned if m.mapping is mapping and r.spec.name not in self._told]
            if not new:
                continue
            self._told |= {name for name, _ in new}
            path = new[0][1].path
            where = f" ({_printable(path)})" if path and len({memory.path for _, memory in new}) == 1 else ""
            rule = "" if mapping is Mapping.HUGE else (
                " No other rank may write to it after its own safe point until this one has passed the same safe point."
            )  # fmt: skip
            names = told_names([name for name, _ in new])
            print(
                f"mpickpt: rank {self._rank}: {names} lies in {how}{where}: it is copied at each cut, "
                f"while the program waits.{rule}",
                file=sys.stderr,
                flush=True,
            )


def _too_little(request: PoolRequest, grant: PoolGrant) -> str:
    ranks = f" for {grant.ranks} ranks" if grant.ranks > 1 else ""
    return (
        f"The pool needs {human_bytes(request.least)} at the least, and {grant.limit} leaves "
        f"{human_bytes(max(0, grant.left))}{ranks}, some of which the program needs. Ask for more memory, or start "
        f"fewer ranks on a node."
    )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _flaw(name: str, memory: Memory) -> str:
    if memory.errno == errno.EFAULT:
        return f"Array {name!r} lies in memory that is not mapped any more. Protect memory that lives until the end."
    path = _printable(memory.path)
    if memory.errno == errno.EIO:
        return f"Array {name!r} lies in a private mapping of {path}, which is shorter than the array or cannot be read."
    reason = os.strerror(memory.errno)
    return (
        f"Array {name!r} lies in a private mapping of {path}, whose pages must become memory of this process before "
        f"they can be saved: {reason}."
    )


def _cannot_watch(error: OSError) -> UsageError:
    return UsageError(
        f"The arrays cannot be watched: {error.strerror or error}. Is another session open in this process, or "
        f"is there no memory for the pool?"
    )
