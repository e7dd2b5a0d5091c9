"""Meetings: what the ranks of a session agree on together, and how they wait for each other.

All messages go over private duplicates of the program's communicator, so that they never match a message of the
program. There are *meetings*, which all ranks attend at the same step (to fix the layout or create slots); *commits*,
one non-blocking agreement for each epoch; and *rounds*. Each kind has its own communicator, because collectives of one
communicator must be started in the same order everywhere.

Nothing here spins. A wait polls, sleeps a little longer each time, up to a millisecond, and raises an error after a
time limit, which says what was waited for, and for whom. An interrupted wait can be resumed: requests stay pending
until their result is fetched.
"""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from mpickpt.errors import MpickptError, UsageError, WaitTimeout, everywhere
from mpickpt.mpi.commits import Commits
from mpickpt.mpi.leftovers import Account, enter, leave_behind
from mpickpt.mpi.news import News
from mpickpt.mpi.pending import Pending, abandon
from mpickpt.mpi.reports import STORAGE, Reports
from mpickpt.mpi.rounds import Rounds
from mpickpt.mpi.started import check_started, import_mpi, meet
from mpickpt.mpi.survival import is_lost
from mpickpt.mpi.world import world_comm
from mpickpt.options import wait_limit
from mpickpt.waiting import REPORT_AFTER, SAY_AFTER, Stopwatch

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpickpt.mpi.tracked.traffic import Traffic

    Communicator = MPI.Intracomm

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 1e-3  # seconds between two polls of a request
# Bytes of all ranks together, up to which values are padded to one size. A collective with counts, which are NULL
# except at the root, crashes a program under a profiler that reads them everywhere (EZTrace 2.0 does).
_EVEN_BYTES = 64 << 20


class Coordinator:
    """One rank's end of the communication between the ranks of a session.

    Creating one is collective.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        The ranks that are saved together; ``MPI.COMM_WORLD`` by default, which is this process alone without mpirun.

    Attributes
    ----------
    rank, size : int
        This rank, and how many there are.
    commits : Commits
        The agreements on epochs.
    news : News
        What rank 0 tells all when it knows it.

    Raises
    ------
    UsageError
        If there is no working mpi4py, MPI is not initialized, or `comm` is not an intracommunicator.
    """

    def __init__(self, comm: MPI.Intracomm | None = None) -> None:
        mpi = import_mpi()
        check_started(mpi, comm)
        if comm is None:
            comm = world_comm()
        if not isinstance(comm, mpi.Intracomm) or comm == mpi.COMM_NULL:
            raise UsageError(f"comm must be an intracommunicator of mpi4py, not {comm!r}.")
        self._mpi = mpi
        self._limit = wait_limit()
        self._meetings = meet(comm, self._limit)
        self._number = enter(self._meetings)
        self.commits = Commits(comm, mpi.MIN)
        self._rounds: Rounds | None = None
        self._reports = Reports(self._meetings, mpi)
        self.news = News(self._meetings)
        self.rank: int = comm.rank
        self.size: int = comm.size
        self._orderly = True  # no meeting was given up, and no report sent
        self._traffic: Traffic | None = None

    def track(self, idle: Callable[[], None], crc32c: Callable[[bytes | bytearray | memoryview], int]) -> Traffic:
        """Make the tracked communicator of the session; collective. For the arguments see `Traffic`."""
        from mpickpt.mpi.tracked.traffic import Traffic  # which cannot be imported without MPI

        self._traffic = Traffic(self._meetings, idle, crc32c)
        return self._traffic

    @property
    def is_lost(self) -> bool:
        """Whether a rank is lost, and with it all that the others could agree on."""
        return is_lost()

    # -- meetings ------------------------------------------------------------------------------------------------

    def gather(self, value: object, what: str) -> list[Any] | None:
        """Gather one picklable value of each rank on rank 0; None on the others. `what` names it in a time-out."""
        data = np.frombuffer(b"" if self.rank == 0 else pickle.dumps(value, protocol=5), np.uint8)
        own, most = np.array([data.size], np.int64), np.zeros(1, np.int64)
        self._wait(Pending(self._meetings.Iallreduce(own, most, self._mpi.MAX), most, own), what)
        room = int(most[0])
        if self.size * room > _EVEN_BYTES:
            pieces = self._gather_uneven(data, own, what)
        else:
            rows = np.empty((self.size if self.rank == 0 else 0, room), np.uint8)
            mine = np.zeros(room, np.uint8)
            mine[: data.size] = data
            self._wait(Pending(self._meetings.Igather(mine, rows, root=0), rows, mine), what)
            pieces = list(rows)
        # Unpickling ignores the padding.
        return [value, *(pickle.loads(piece.data) for piece in pieces[1:])] if self.rank == 0 else None

    def _gather_uneven(self, data: NDArray[np.uint8], own: NDArray[np.int64], what: str) -> list[NDArray[np.uint8]]:
        sizes = np.zeros(self.size, np.int64)
        self._wait(Pending(self._meetings.Igather(own, sizes, root=0), sizes, own), what)
        everything = np.empty(int(sizes.sum()) if self.rank == 0 else 0, np.uint8)
        target = [everything, sizes.tolist()] if self.rank == 0 else None
        self._wait(Pending(self._meetings.Igatherv(data, target, root=0), everything, data), what)
        return np.split(everything, np.cumsum(sizes)[:-1])

    def broadcast(self, value: T, what: str) -> T:
        """Return rank 0's picklable `value` on all ranks."""
        data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8).copy() if self.rank == 0 else None
        size = np.array([0 if data is None else data.size], np.int64)
        self._wait(Pending(self._meetings.Ibcast(size, root=0), size), what)
        if data is None:
            data = np.empty(int(size[0]), np.uint8)
        self._wait(Pending(self._meetings.Ibcast(data, root=0), data), what)
        received: T = value if self.rank == 0 else pickle.loads(data.tobytes())
        return received

    def scatter(self, values: list[T] | None, what: str) -> T:
        """Return rank 0's ``values[r]`` on rank r; the others pass None."""
        texts = [b"" if rank == 0 else pickle.dumps(value, protocol=5) for rank, value in enumerate(values or ())]
        pieces = [np.frombuffer(text, np.uint8) for text in texts]
        sizes = np.array([piece.size for piece in pieces], np.int64)
        most = np.array([sizes.max(initial=0)], np.int64)
        self._wait(Pending(self._meetings.Ibcast(most, root=0), most), what)
        room = int(most[0])
        if self.size * room > _EVEN_BYTES:
            mine = self._scatter_uneven(pieces, sizes, what)
            return values[0] if values else cast("T", pickle.loads(mine.data))
        rows = np.zeros((len(pieces), room), np.uint8)
        for row, piece in zip(rows, pieces, strict=True):
            row[: piece.size] = piece
        mine = np.empty(room, np.uint8)
        self._wait(Pending(self._meetings.Iscatter(rows, mine, root=0), mine, rows), what)
        return values[0] if values else cast("T", pickle.loads(mine.data))

    def _scatter_uneven(
        self, pieces: list[NDArray[np.uint8]], sizes: NDArray[np.int64], what: str
    ) -> NDArray[np.uint8]:
        size = np.zeros(1, np.int64)
        self._wait(Pending(self._meetings.Iscatter(sizes if pieces else None, size, root=0), size, sizes), what)
        mine = np.empty(int(size[0]), np.uint8)
        everything = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        source = [everything, sizes.tolist()] if pieces else None
        self._wait(Pending(self._meetings.Iscatterv(source, mine, root=0), mine, everything), what)
        return mine

    def on_root(self, function: Callable[[], T], what: str) -> T:
        """Run `function` on rank 0, and return its result or raise its `MpickptError` on all ranks."""
        return self._or_raise(self.broadcast(self._attempt(function), what))

    def scatter_from_root(self, function: Callable[[], list[T]], what: str) -> T:
        """Run `function` on rank 0; return item r of its result on rank r, or raise its error on all ranks."""
        results: list[T | MpickptError] | None = None
        if self.rank == 0:
            found = self._attempt(function)
            results = [found] * self.size if isinstance(found, MpickptError) else list(found or ())
        return self._or_raise(self.scatter(results, what))

    def agree(self, error: MpickptError | None, what: str) -> None:
        """Raise on all ranks the error of the lowest rank that has one, with its rank in front."""
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
        return result  # type: ignore[return-value]  # None only where the function returned None

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def rounds(self) -> Rounds:
        """The rounds; the first use is collective."""
        if self._rounds is None:
            self._rounds = Rounds(self._meetings, self._mpi.MAX)
        return self._rounds

    def close(self) -> None:
        """Free the communicators; collective, and nothing may be pending."""
        if self._rounds is not None:
            self._rounds.close(lambda pending: self._wait(pending, "the last marker, while closing"))
        self.commits.close()
        self.news.finish(lambda pending: self._wait(pending, "rank 0 to say what became of the slots, while closing"))
        self._reports.take()
        self._meetings.Free()

    def leave(self) -> None:
        """End the session on this rank alone; MPI keeps what is pending until all ranks have left and meet again."""
        if self._rounds is not None and not self.is_lost:
            self._rounds.leave()
        if self._traffic is not None:
            self._traffic.leave()
        if self.is_lost:  # nobody can give back what the dead rank has, too
            abandon(self)
        else:
            leave_behind(self._number, self)

    def group(self) -> MPI.Group:
        """Return the ranks of the session; the caller frees the group."""
        group: MPI.Group = self._meetings.Get_group()
        return group

    def account(self) -> Account:
        """Return what this rank did, after `leave`."""
        orderly = self._orderly and not self.news.expected
        if self._rounds is None or self._traffic is None:
            return Account(orderly)
        return Account(orderly, True, self._rounds.calls, self.commits.posted, *self._traffic.account())

    def give_back(self, accounts: Sequence[Account]) -> None:
        """Make the calls that only other ranks made, and free the communicators, after `leave`; collective."""
        what = "all ranks to give back what they left behind of a session that ended by an exception"

        def wait(pending: Pending) -> None:
            self._wait(pending, what)

        if self._rounds is not None and self._traffic is not None and all(one.opened for one in accounts):
            self._rounds.finish(max(one.rounds for one in accounts), wait)
            self._traffic.finish(accounts, lambda done: self.wait(lambda: done() or None, what))
        self.commits.finish(max(one.shares for one in accounts), wait)
        if all(one.orderly for one in accounts):  # otherwise there may be messages of a meeting that nobody received
            self._meetings.Free()

    def wait(
        self, look: Callable[[], T], what: str, seconds: float | None = None, watch: Stopwatch | None = None
    ) -> T | None:
        """Wait until `look` returns something, and return that; None after `seconds`.

        Without `seconds` the limit is MPICKPT_WAIT_LIMIT, and exceeding it is an error. Time in which this process was
        suspended does not count. A long wait is reported once on stderr; `watch` measures a wait that spans several
        calls.

        Raises
        ------
        WaitTimeout
            Says what was waited for, and which ranks are late, if they are known.
        """
        this, pause = Stopwatch(), _FIRST_PAUSE
        whole = this if watch is None else watch
        try:
            while (found := look()) is None:
                waited = this.seconds()
                if seconds is not None and waited > seconds:
                    return None
                self._tell(whole, waited if whole is this else whole.seconds(), what)
                if seconds is None and waited > self._limit:
                    whole.reported = False  # not withdrawn: others that time out, too, would take this rank for late
                    raise WaitTimeout(self._timed_out(what))
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            if whole is this and this.reported:
                self._reports.withdraw()
        return found

    def end_watch(self, watch: Stopwatch) -> None:
        """End a wait that spanned several calls: this rank no longer counts as waiting."""
        if watch.reported:
            self._reports.withdraw()
            watch.reported = False

    def _tell(self, watch: Stopwatch, waited: float, what: str) -> None:
        """Report a long wait once on stderr, and before that to the ranks that find out which ranks are late."""
        if not watch.reported and waited > REPORT_AFTER * min(self._limit, SAY_AFTER):
            self._reports.tell(what)
            self._orderly = False
            watch.reported = True
        if not watch.said and waited > SAY_AFTER:
            watch.said = True
            late = self._reports.late_of_all()
            if late is not None or what.startswith(STORAGE):
                text = f"mpickpt: rank {self.rank} has waited {SAY_AFTER:g} s for {what}. {late or ''}"
                print(text.rstrip(), file=sys.stderr, flush=True)

    def _timed_out(self, what: str) -> str:
        late = self._reports.late()
        asked = "" if STORAGE in f"{what} {late}" else " Do all ranks take the same steps and make the same calls?"
        return (
            f"Rank {self.rank} waited {self._limit:g} s for {what}, but not all of the {self.size} ranks came to the "
            f"same point. {late}{asked} The environment variable MPICKPT_WAIT_LIMIT sets the limit in seconds."
        )

    def _wait(self, pending: Pending, what: str) -> NDArray[Any]:
        try:
            self.wait(lambda: pending.test() or None, what)
        except BaseException:
            self._orderly = False
            abandon(pending)
            raise
        return pending.result
