"""The communicator of a program that goes on when a rank dies, and how the survivors get the next one.

ULFM, the fault tolerance of Open MPI, gives the survivors an error, and lets them revoke and shrink their
communicator. `Survival` is one process's end of it: it says whether an error follows from the loss of a rank, agrees
with the others on the end of the program's function, and makes the communicator with which the function is called
again. With ``shrink`` that has the survivors in it; with ``respawn`` another process takes the place and the number of
each dead rank.

It knows nothing of sessions. `mpickpt.session.main` drives it; `mpickpt.mpi.world` and a `Coordinator` ask it for the
communicator of the program.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from mpickpt.errors import MpickptError, UsageError, everywhere
from mpickpt.mpi.identity import Identity, end_process, own_identity
from mpickpt.mpi.limits import limited
from mpickpt.mpi.standby import Kept, Standby
from mpickpt.mpi.started import import_mpi

if TYPE_CHECKING:
    from mpi4py import MPI

Mode = Literal["shrink", "respawn"]
NEEDS = "mpirun --with-ft ulfm"

_NOTICE_SECONDS = 5.0  # for the death of a rank to be known, after an error that may come of it
_REBUILD_SECONDS = 120.0  # for the next communicator
_KEEPERS = (0, 1)  # ranks that keep a process ready; two, as one of them may be the one that dies
_LONGEST_PAUSE = 1e-3  # between two polls of an agreement
_RETURNED, _GOES_ON = 1, 2  # what a rank brings to the agreement at the end of the function


@dataclass(frozen=True, slots=True)
class _News:
    """What a rank that joins has to know.

    Attributes
    ----------
    numbers : tuple of int
        The ranks that get other processes, in the order in which these join.
    keeper : int
        Which rank calls them.
    losses : int
        How many times ranks were lost.
    saved : bool
        Whether a survivor knows of an epoch of this run that is complete.
    """

    numbers: tuple[int, ...]
    keeper: int
    losses: int
    saved: bool


class Survival:
    """What one process knows of the ranks that it goes on with; creating it initializes MPI.

    Parameters
    ----------
    mode : "shrink" or "respawn"
        Whether to go on without the ranks that die, or with others in their places.

    Attributes
    ----------
    comm : mpi4py.MPI.Intracomm
        The communicator of the program.
    losses : int
        How many times ranks were lost.
    saved : bool
        Whether an epoch of this run is known to be complete, so that the run goes back to it after a loss.
    is_entered : bool
        Whether the program's function is being called.
    was_entered : bool
        Whether it has been.

    Raises
    ------
    UsageError
        If the MPI library or its launcher ends all ranks when one dies; on all ranks.
    """

    def __init__(self, mode: Mode) -> None:
        mpi = import_mpi()
        _check_library(mpi, mode)
        from mpickpt.mpi import revoking  # which cannot be imported without MPI

        self._mpi = mpi
        self._mode = mode
        self._revoking = revoking
        self.losses = 0
        self.saved = False
        self.is_entered = self.was_entered = False
        self._identities: list[Identity] = []
        self._is_lost = False
        self._lost = ""
        self._exit_code: int | None = None
        atexit.register(self._exit)  # before what the program registers, and so called after that
        self._folder = os.getcwd()  # noqa: PTH109  (as a string, for the launcher)
        parent: MPI.Intercomm = mpi.Comm.Get_parent()
        self._standby: Standby | None = None
        self._kept = None if parent == mpi.COMM_NULL else Kept(parent)
        self.comm: MPI.Intracomm = revoking.safe(mpi.COMM_WORLD.Dup())

    def enter(self) -> None:
        """Begin to call the program's function; a process that joins gets its rank here.

        Raises
        ------
        UsageError
            If it was called before: a process that joins could not know which call the others are in.
        """
        if self.was_entered:
            raise everywhere(
                UsageError(
                    "mpickpt.main() was called a second time under --survive, where a process that takes the place of "
                    "a dead rank can join one call only. Hand it one function that does all of it."
                )
            )
        self.is_entered = self.was_entered = True
        if self._kept is not None:
            port, news = self._kept.wait()
            with limited(_REBUILD_SECONDS, "the survivors of a lost rank did not take it in"):
                self._join(port, cast("_News", news))

    def meet(self) -> None:
        """Tell each other which processes these ranks are, before each call of the function; collective."""
        if self._mode == "respawn" and self.comm.rank in _KEEPERS and self._standby is None:
            self._standby = Standby(self._folder)
        met = self.comm.allgather((own_identity(), self._lost))
        self._identities, self._lost = [identity for identity, _ in met], ""
        lost = next((text for _, text in met if text), "")  # a rank that has just joined knows nothing of it
        if lost and self.comm.rank == 0:
            print(f"mpickpt: {lost}", file=sys.stderr, flush=True)

    # -- the loss of a rank ---------------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether a rank of `comm` is known to be lost, so that its ranks can agree on nothing more."""
        return self._is_lost

    def find_loss(self, error: BaseException | None) -> bool:
        """Return whether `error` follows from the loss of a rank; if so, have all ranks get an error where they wait.

        An error of MPI may come before the death of the rank is known, and its class tells nothing: at the root of a
        barrier it is MPI_ERR_OTHER. So what is asked is whether a rank has failed, or another one has found that.
        """
        if self._is_lost:
            return True
        end = time.monotonic() + (_NOTICE_SECONDS if _may_follow(error, self._mpi.Exception) else 0.0)
        while not self._knows_of_loss():
            if time.monotonic() >= end:
                return False
            time.sleep(_LONGEST_PAUSE)
        self._is_lost = True
        self._revoke()
        return True

    def _revoke(self) -> None:
        self._revoking.revoke_all([] if self._standby is None else self._standby.links)

    def _knows_of_loss(self) -> bool:
        try:
            self.comm.Iprobe()  # MPI learns of a death only inside its calls
        except self._mpi.Exception:
            pass
        failed = self.comm.Get_failed()
        dead = failed.size
        failed.Free()
        return dead > 0 or bool(self.comm.Is_revoked())

    # -- the end of the function ----------------------------------------------------------------------------------

    def agree(self, *, returned: bool, stops: bool) -> tuple[bool, bool]:
        """Tell how the program's function ended on this rank, and learn how it did on all.

        Parameters
        ----------
        returned : bool
            It was not ended by the loss of a rank.
        stops : bool
            It was ended because the program is to stop.

        Returns
        -------
        returned, stops : bool
            Whether it returned on all ranks, of which none has died; whether the program is to stop on any of them.
        """
        complete, agreed = self._agree(self.comm, _RETURNED * returned | _GOES_ON * (not stops))
        return complete and bool(agreed & _RETURNED), not agreed & _GOES_ON

    def _agree(self, comm: MPI.Intracomm, value: int) -> tuple[bool, int]:
        """Agree on the bits that all living ranks bring, also on a revoked communicator; and whether none has died."""
        word = np.array([value], np.intc)
        request = comm.Iagree(word)
        complete, pause = True, _LONGEST_PAUSE / 50
        try:
            while not request.Test():
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        except self._mpi.Exception:  # a rank has died; the others know it, too
            complete = False
        return complete, int(word[0])

    def end(self, code: int) -> None:
        """Have the process end with exit code `code`, after all else that it does at its end, without MPI_Finalize.

        That may wait for ever for the dead, and for a process that was kept ready. Nobody waits for this one any more.
        """
        if self.losses or self._mode == "respawn":
            self._exit_code = code

    def _exit(self) -> None:
        if self._exit_code is not None:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # closed, or nobody reads any more
                    stream.flush()
            os._exit(self._exit_code)

    def leave(self) -> None:
        """End calling the program's function."""
        self.is_entered = False
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.dismiss()

    # -- the next communicator ------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Make the next communicator, on all ranks that live; the processes of the dead ones have ended then."""
        with limited(_REBUILD_SECONDS, "the survivors of a lost rank did not find together again"):
            began = time.perf_counter()
            self._revoke()
            base, made = self.comm, None
            while made is None:
                base = self._quiet(base.Shrink())
                made = self._attempt(base)
            joined, self.losses, self.saved, dead = made
            ranks = f"{joined.size} rank{'s' if joined.size > 1 else ''}"
            again = " again" if joined.size == self.comm.size else ""
            named = ", ".join(f"rank {rank} ({self._identities[rank].text})" for rank in dead) or "no rank"
            self._lost = f"lost {named}; going on on {ranks}{again} after {time.perf_counter() - began:.2f} s"
            self.comm, self._is_lost = joined, False

    def _attempt(self, shrunk: MPI.Intracomm) -> tuple[MPI.Intracomm, int, bool, tuple[int, ...]] | None:
        """Make it from the survivors' communicator; None on all of them if one could not, as another rank died."""
        dead = self._dead_of(shrunk)
        for rank in dead:
            end_process(self._identities[rank])
        made = None
        try:
            saved = np.array([self.saved], np.intc)
            shrunk.Allreduce(self._mpi.IN_PLACE, saved, self._mpi.MAX)
            losses, is_saved = self.losses + 1, bool(saved[0])
            joined = self._replace(shrunk, dead, losses, is_saved) if self._mode == "respawn" else shrunk
            made = joined, losses, is_saved, dead
        except self._mpi.Exception:
            self._revoke()
        _, agreed = self._agree(shrunk, int(made is not None))
        if not agreed:
            self._revoke()
            return None
        return made

    def _replace(self, shrunk: MPI.Intracomm, dead: tuple[int, ...], losses: int, saved: bool) -> MPI.Intracomm:
        """Let a process join for each dead rank; all ranks keep their numbers."""
        has = shrunk.allgather(0 if self._standby is None else 1 + self._standby.is_ready)
        keeper = has.index(max(has))
        comm = shrunk
        for i, number in enumerate(dead):
            port = ""
            if shrunk.rank == keeper:
                port = self._call(_News((number, *dead[i + 1 :]), keeper, losses, saved))
            if not comm.bcast(bool(port), keeper):
                break
            comm = self._accept(comm, port, keeper)
        return self._quiet(comm.Split(0, self.comm.rank))

    def _call(self, news: _News) -> str:
        """Call the process that is kept ready, or start one now; return the port to which it connects, or nothing."""
        standby, self._standby = self._standby or Standby(self._folder), None
        if not standby.has_started():
            print(f"mpickpt: no process can be started for a dead rank: {standby.error}", file=sys.stderr, flush=True)
            return ""
        port: str = self._mpi.Open_port()
        standby.call(port, news)
        return port

    def _accept(self, comm: MPI.Intracomm, port: str, keeper: int) -> MPI.Intracomm:
        """Take in the process that connects to a port of rank `keeper`."""
        inter = comm.Accept(port, root=keeper)
        if port:
            self._mpi.Close_port(port)
        return self._quiet(inter.Merge(high=False))

    def _join(self, port: str, news: _News) -> None:
        """Become the rank in whose place this process was started, and take in those that join after it."""
        comm = self._quiet(self._mpi.COMM_SELF.Connect(port).Merge(high=True))
        for _ in news.numbers[1:]:
            if not comm.bcast(False, news.keeper):
                break
            comm = self._accept(comm, "", news.keeper)
        self.comm = self._quiet(comm.Split(0, news.numbers[0]))
        self.losses, self.saved = news.losses, news.saved

    def _quiet(self, comm: MPI.Comm) -> MPI.Intracomm:
        """Return a new communicator that returns errors, which mpi4py turns into exceptions, and may be revoked."""
        comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        safe: MPI.Intracomm = self._revoking.safe(comm)
        return safe

    def _dead_of(self, shrunk: MPI.Intracomm) -> tuple[int, ...]:
        """Return the ranks that are not among the survivors."""
        before, after = self.comm.Get_group(), shrunk.Get_group()
        found = self._mpi.Group.Translate_ranks(before, list(range(before.size)), after)
        before.Free()
        after.Free()
        return tuple(rank for rank, number in enumerate(found) if number == self._mpi.UNDEFINED)


def _may_follow(error: BaseException | None, of_mpi: type[BaseException]) -> bool:
    """Return whether an error is one of MPI, or of mpickpt, or was raised because of such a one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, of_mpi | MpickptError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _check_library(mpi: object, mode: Mode) -> None:
    """Refuse libraries that end the survivors, and a launcher that was not told to leave them alone."""
    library = mpi.Get_library_version().rstrip("\0").splitlines()[0].strip()  # type: ignore[attr-defined]
    if not library.startswith("Open MPI v5"):
        raise everywhere(
            UsageError(
                f"--survive={mode} needs Open MPI 5 and '{NEEDS}'. This program runs with {' '.join(library.split())}, "
                f"whose launcher ends all ranks when one dies. Nothing was run. Without --survive the same command "
                f"resumes the program after a loss."
            )
        )
    if os.environ.get("OMPI_MCA_mpi_ft_enable", "0").lower() not in ("1", "true", "yes"):
        raise everywhere(
            UsageError(
                f"--survive={mode} needs '{NEEDS}': without it mpirun ends all ranks when one dies. Nothing was run. "
                f"Start the program with it, on as many ranks as you like."
            )
        )


_current: Survival | None = None


def begin(mode: Mode) -> Survival:
    """Have this process go on when ranks die; see `Survival`."""
    global _current
    _current = Survival(mode)
    return _current


def current() -> Survival | None:
    """Return how this process goes on when ranks die; None if it does not."""
    return _current


def find_loss(error: BaseException | None) -> bool:
    """Return `Survival.find_loss`, and False where no rank is to survive another."""
    return _current is not None and _current.find_loss(error)


def note_saved() -> None:
    """Remember that an epoch of this run is complete."""
    if _current is not None:
        _current.saved = True


def is_lost() -> bool:
    """Return `Survival.is_lost`, and False where no rank is to survive another."""
    return _current is not None and _current.is_lost
