"""The communicator of a program that goes on when a rank dies, and how the survivors get the next one.

ULFM, the fault tolerance of Open MPI, gives the survivors an error, and lets them revoke and shrink their communicator.
`Survival` is one process's end of it: it says whether an error follows from the loss of a rank, agrees with the others on
the end of the program's function, and makes the communicator with which the function is called again. With ``shrink``
that has the survivors in it; with ``respawn`` another process takes the place and the number of each dead rank.

It knows nothing of sessions. `mpickpt.session.main` drives it; `mpickpt.mpi.world` and a `Coordinator` ask it for the
communicator of the program.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mpickpt.errors import MpickptError, UsageError, everywhere
from mpickpt.mpi.identity import Identity, end_process, own_identity
from mpickpt.mpi.limits import Watch, limited
from mpickpt.mpi.started import import_mpi

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpickpt.mpi.revocable import Family

Mode = Literal["shrink", "respawn"]
NEEDS = "mpirun --with-ft ulfm"

_NOTICE_SECONDS = 5.0  # for the death of a rank to be known, after an error that may come of it
_REBUILD_SECONDS = 120.0  # for the next communicator
_FINALIZE_SECONDS = 10.0  # for MPI_Finalize
_LONGEST_PAUSE = 1e-3  # between two polls of an agreement
_RETURNED, _GOES_ON = 1, 2  # what a rank brings to the agreement at the end of the function


@dataclass(frozen=True, slots=True)
class _News:
    """What a rank that joins has to know.

    Attributes
    ----------
    dead : tuple of int
        The numbers of the ranks that died, in the communicator before.
    losses : int
        How many times ranks were lost.
    saved : bool
        Whether a survivor knows of an epoch of this run that is complete.
    """

    dead: tuple[int, ...]
    losses: int
    saved: bool


@dataclass(frozen=True, slots=True)
class _Made:
    """The next communicator, with its family, and what happened before."""

    comm: MPI.Intracomm
    family: Family
    news: _News


class Survival:
    """What one process knows of the ranks that it goes on with; creating it initializes MPI.

    Parameters
    ----------
    mode : "shrink" or "respawn"
        Whether to go on without the ranks that die, or with others in their places.

    Attributes
    ----------
    comm : Revocable
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
        from mpickpt.mpi.revocable import Family  # which cannot be imported without MPI

        self._mpi = mpi
        self._mode = mode
        self._new_family = Family
        self.losses = 0
        self.saved = False
        self.is_entered = self.was_entered = False
        self._identities: list[Identity] = []
        self._is_lost = False
        self._lost = ""
        self._watch: Watch | None = None
        atexit.register(self._finalize)  # before those of the program, and so called after them
        self._folder = os.getcwd()  # noqa: PTH109  (as a string, for the launcher)
        self._parent: MPI.Intercomm = mpi.Comm.Get_parent()
        self._family = Family()
        self.comm: MPI.Intracomm = self._family.adopt(mpi.COMM_WORLD.Dup())

    @property
    def joins(self) -> bool:
        """Whether this process takes the place of a rank that died, and has not done so yet."""
        return self._parent != self._mpi.COMM_NULL

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
        if self.joins:
            with limited(_REBUILD_SECONDS, "the survivors of a lost rank did not take this process in", 1):
                self._join()

    def meet(self) -> None:
        """Tell each other which processes these ranks are, before each call of the function; collective."""
        self._identities = self.comm.allgather(own_identity())
        lost, self._lost = self._lost, ""
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
        self._family.revoke()
        return True

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
        """Have the process end with exit code `code` even if MPI_Finalize hangs, as it may after a loss."""
        if self.losses:
            self._watch = Watch(_FINALIZE_SECONDS, "", code)

    def _finalize(self) -> None:
        if self._watch is not None and not self._mpi.Is_finalized():
            self._watch.begin()
            self._mpi.Finalize()

    def leave(self) -> None:
        """End calling the program's function."""
        self.is_entered = False

    # -- the next communicator ------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Make the next communicator, on all ranks that live; the processes of the dead ones have ended then."""
        with limited(_REBUILD_SECONDS, "the survivors of a lost rank did not find together again", 1):
            began = time.perf_counter()
            self._family.revoke()
            base, made = self.comm, None
            while made is None:
                base = base.Shrink()
                base.Set_errhandler(self._mpi.ERRORS_RETURN)
                made = self._attempt(base)
            self._use(made, began)

    def _attempt(self, shrunk: MPI.Intracomm) -> _Made | None:
        """Make it from the survivors' communicator; None on all of them if one could not, as another rank died."""
        family = self._new_family()
        dead = self._dead_of(shrunk)
        for rank in dead:
            end_process(self._identities[rank])
        made = None
        try:
            own = family.adopt(shrunk)
            saved = np.array([self.saved], np.intc)
            own.Allreduce(self._mpi.IN_PLACE, saved, self._mpi.MAX)
            news = _News(dead, self.losses + 1, bool(saved[0]))
            made = _Made(own if self._mode == "shrink" or not dead else self._replace(own, news, family), family, news)
        except self._mpi.Exception:
            family.revoke()
        _, agreed = self._agree(shrunk, int(made is not None))
        if not agreed:
            family.revoke()
            return None
        return made

    def _replace(self, shrunk: MPI.Intracomm, news: _News, family: Family) -> MPI.Intracomm:
        """Start a process for each dead rank by the command of this one; each rank keeps its number."""
        info = self._mpi.Info.Create()
        info.Set("wdir", self._folder)
        inter = family.adopt(shrunk.Spawn(sys.executable, sys.orig_argv[1:], maxprocs=len(news.dead), info=info))
        info.Free()
        merged = inter.Merge(high=False)
        merged.Set_errhandler(self._mpi.ERRORS_RETURN)
        merged.bcast(news)
        joined = merged.Split(0, self.comm.rank)
        joined.Set_errhandler(self._mpi.ERRORS_RETURN)
        return joined

    def _join(self) -> None:
        """Become the rank in whose place this process was started."""
        number = self._mpi.COMM_WORLD.rank
        family = self._new_family()
        merged = family.adopt(self._parent).Merge(high=True)
        self._parent = self._mpi.COMM_NULL
        merged.Set_errhandler(self._mpi.ERRORS_RETURN)
        news: _News = merged.bcast(None)
        joined = merged.Split(0, news.dead[number])
        joined.Set_errhandler(self._mpi.ERRORS_RETURN)
        self._family, self.comm, self.losses, self.saved = family, joined, news.losses, news.saved

    def _use(self, made: _Made, began: float) -> None:
        """Go on with what was made since `began`, and have rank 0 tell it when all are there."""
        ranks = f"{made.comm.size} rank{'s' if made.comm.size > 1 else ''}"
        named = ", ".join(f"rank {rank} ({self._identities[rank].text})" for rank in made.news.dead)
        again = " again, with other processes in their places" if made.comm.size == self.comm.size else ""
        seconds = time.perf_counter() - began
        self._lost = f"lost {named or 'no rank'}; going on on {ranks}{again} after {seconds:.2f} s"
        self._family, self.comm = made.family, made.comm
        self.losses, self.saved = made.news.losses, made.news.saved
        self._is_lost = False

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
