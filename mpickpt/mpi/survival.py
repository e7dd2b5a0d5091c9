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
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from mpickpt.errors import MpickptError, UsageError, everywhere
from mpickpt.mpi.identity import Identity, end_process, own_identity
from mpickpt.mpi.limits import limited
from mpickpt.mpi.past import News, Past
from mpickpt.mpi.standby import Standby, end_unneeded, kept
from mpickpt.mpi.started import import_mpi
from mpickpt.mpi.ulfm import agree, check_library, may_follow, ranks_in

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpickpt.mpi.standby import Kept

Mode = Literal["shrink", "respawn"]

_NOTICE_SECONDS = 5.0  # for the death of a rank to be known, after an error that may come of it
_REBUILD_SECONDS = 120.0  # for the next communicator
_CONNECT_SECONDS = 20.0  # for one process to connect: MPI waits for ever if another one dies meanwhile
_MOST_FRUITLESS = 10  # losses without an epoch between them
_CALLS = 3  # processes, before the survivors go on without any
_KEEPERS = (0, 1)  # ranks that keep a process ready; two, as one of them may be the one that dies
_SEVERAL_NODES = (
    "mpickpt: --survive=respawn on several machines: Open MPI 5.0 ends all ranks, with status 0, when a process joins "
    "there"
)
_PAUSE = 1e-3  # between two looks whether a death is known
_RETURNED, _GOES_ON = 1, 2  # what a rank brings to the agreement at the end of the function


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
        self._kept = kept()
        mpi = import_mpi()
        check_library(mpi, mode)
        from mpickpt.mpi import revoking  # which cannot be imported without MPI

        self._mpi = mpi
        self._mode = mode
        self._revoking = revoking
        self._past = Past()
        self.is_entered = self.was_entered = False
        self._identities: list[Identity | None] = []  # of the ranks of `comm`, as far as they have told it
        self._is_lost = False
        self._lost = ""
        self._exit_code: int | None = None
        atexit.register(self._exit)  # before what the program registers, and so called after that
        self._folder = os.getcwd()  # noqa: PTH109  (as a string, for the launcher)
        self._standby: Standby | None = None
        self._called: list[Standby] = []  # whose process is joining
        if self._kept is not None:
            self._kept.meet(mpi.Comm.Get_parent())
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
            port, news = cast("tuple[str, News]", self._kept.hear())
            with limited(_REBUILD_SECONDS, "the survivors of a lost rank did not take it in"):
                self._join(self._kept, port, news)

    def meet(self) -> None:
        """Tell each other which processes these ranks are, before each call of the function; collective."""
        if self._mode == "respawn" and self.comm.rank in _KEEPERS and self._standby is None:
            self._standby = Standby(self._folder)
        met = self.comm.allgather((own_identity(), self._lost))
        self._identities, self._lost = [identity for identity, _ in met], ""
        hosts = {identity.host for identity, _ in met}
        if self._mode == "respawn" and not self._past.losses and len(hosts) > 1 and self.comm.rank == 0:
            print(_SEVERAL_NODES, file=sys.stderr, flush=True)
        lost = next((text for _, text in met if text), "")  # a rank that has just joined knows nothing of it
        if lost and self.comm.rank == 0:
            print(f"mpickpt: {lost}", file=sys.stderr, flush=True)

    @property
    def has_saved(self) -> bool:
        """Whether an epoch of this run is known to be complete, so that the run goes back to it after a loss."""
        return self._past.saved

    def note_saved(self) -> None:
        """Remember that an epoch of this run has become complete."""
        self._past = Past(self._past.losses, saved=True)

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
        end = time.monotonic() + (_NOTICE_SECONDS if may_follow(error, self._mpi.Exception) else 0.0)
        while not self._knows_of_loss():
            if time.monotonic() >= end:
                return False
            time.sleep(_PAUSE)
        self._is_lost = True
        self._revoke()
        return True

    def _revoke(self) -> None:
        links = [standby.link for standby in (self._standby, *self._called) if standby is not None]
        self._revoking.revoke_all([link for link in links if link is not None])

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
        complete, agreed = agree(self.comm, _RETURNED * returned | _GOES_ON * (not stops))
        return complete and bool(agreed & _RETURNED), not agreed & _GOES_ON

    def end(self, code: int) -> None:
        """Have the process end with exit code `code`, after all else that it does at its end, without MPI_Finalize.

        That may wait for ever for the dead, and for a process that was kept ready. Nobody waits for this one any more.
        """
        if self._past.losses or self._mode == "respawn":
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
        text = "the survivors of a lost rank did not find together again"
        with limited(_REBUILD_SECONDS, text, lambda: self.comm.Abort(1)):
            began = time.perf_counter()
            self._revoke()
            base, made = self.comm, None
            while made is None:
                base = self._quiet(base.Shrink())
                made = self._attempt(base)
            joined, self._past, dead = made
            ranks = f"{joined.size} rank{'s' if joined.size > 1 else ''}"
            again = " again" if joined.size == self.comm.size else ""
            named = ", ".join(f"rank {rank} ({self._text(rank)})" for rank in dead) or "no rank"
            self._lost = f"lost {named}; going on on {ranks}{again} after {time.perf_counter() - began:.2f} s"
            self._identities = self._renumbered(joined)
            self.comm, self._is_lost = joined, False

    def _text(self, rank: int) -> str:
        identity = self._identities[rank]
        return "a process that had just joined" if identity is None else identity.text

    def _renumbered(self, joined: MPI.Intracomm) -> list[Identity | None]:
        """Return the processes of the ranks of `joined`: a rank may be lost before they can tell it again."""
        found = ranks_in(self.comm, joined)
        return [None if rank is None else self._identities[rank] for rank in found]

    def _attempt(self, shrunk: MPI.Intracomm) -> tuple[MPI.Intracomm, Past, tuple[int, ...]] | None:
        """Make it from the survivors' communicator; None on all of them if one could not, as another rank died."""
        numbers = ranks_in(shrunk, self.comm)
        dead = tuple(rank for rank, number in enumerate(numbers) if number is None)
        for identity in (self._identities[rank] for rank in dead):
            if identity is not None:  # otherwise it has not come as far as the checkpoint
                end_process(identity)
        made = None
        try:
            past = self._sum_up(shrunk)
            joined = self._replace(shrunk, dead, past) if self._mode == "respawn" else shrunk
            made = joined, past, dead
        except self._mpi.Exception:
            self._revoke()
        _, agreed = agree(shrunk, int(made is not None))
        if not agreed:
            self._revoke()
        called, self._called = self._called, []
        for standby in called:
            with suppress(self._mpi.Exception):  # it has just died, as the others learn, too
                standby.confirm() if agreed else standby.refuse()
        return made if agreed else None

    def _sum_up(self, shrunk: MPI.Intracomm) -> Past:
        """Return what the survivors know together of what has been, this loss included."""
        word = np.array([self._past.saved, -self._past.fruitless], np.intc)
        shrunk.Allreduce(self._mpi.IN_PLACE, word, self._mpi.MAX)
        past = Past(self._past.losses + 1, 1 - int(word[1]), bool(word[0]))
        if past.fruitless > _MOST_FRUITLESS:
            raise everywhere(
                MpickptError(
                    f"Ranks were lost {past.fruitless} times, and no epoch became complete between. All ranks end. The "
                    f"same command resumes the program, when what ends its ranks is found."
                )
            )
        return past

    def _replace(self, shrunk: MPI.Intracomm, dead: tuple[int, ...], past: Past) -> MPI.Intracomm:
        """Let a process join for each dead rank; all ranks keep their numbers."""
        has = shrunk.allgather(0 if self._standby is None else 1 + self._standby.is_ready)
        keeper = has.index(max(has))
        comm = shrunk
        for i, number in enumerate(dead):
            port = ""
            if shrunk.rank == keeper:
                port = self._call(News((number, *dead[i + 1 :]), keeper, past))
            if not comm.bcast(bool(port), keeper):
                break
            comm = self._accept(comm, port, keeper)
        return self._quiet(comm.Split(0, self.comm.rank))

    def _call(self, news: News) -> str:
        """Call the process that is kept ready, or start one now; return the port to which it connects, or nothing."""
        port: str = self._mpi.Open_port()
        for _ in range(_CALLS):
            standby, self._standby = self._standby or Standby(self._folder), None
            if standby.call((port, news)):
                self._called.append(standby)
                return port
        print(f"mpickpt: no process can be started for a dead rank: {standby.error}", file=sys.stderr, flush=True)
        self._mpi.Close_port(port)
        return ""

    def _accept(self, comm: MPI.Intracomm, port: str, keeper: int) -> MPI.Intracomm:
        """Take in the process that connects to a port of rank `keeper`."""
        if port:  # only the root has a limit, whose death the others are told
            with limited(_CONNECT_SECONDS, "no process connected to take the place of a dead rank"):
                inter = comm.Accept(port, root=keeper)
            self._mpi.Close_port(port)
        else:
            inter = comm.Accept(port, root=keeper)
        return self._quiet(inter.Merge(high=False))

    def _join(self, kept: Kept, port: str, news: News) -> None:
        """Become the rank in whose place this process was started, and take in those that join after it."""
        kept.answer()
        try:
            comm = self._quiet(self._mpi.COMM_SELF.Connect(port).Merge(high=True))
            for _ in news.numbers[1:]:
                if not comm.bcast(False, news.keeper):
                    break
                comm = self._accept(comm, "", news.keeper)
            self.comm = self._quiet(comm.Split(0, news.numbers[0]))
        except self._mpi.Exception:  # another rank has died, and the survivors begin again without this process
            end_unneeded()
        kept.hear()
        self._identities = [None] * self.comm.size
        self._past = news.past

    def _quiet(self, comm: MPI.Comm) -> MPI.Intracomm:
        """Return a new communicator that returns errors, which mpi4py turns into exceptions, and may be revoked."""
        comm.Set_errhandler(self._mpi.ERRORS_RETURN)
        safe: MPI.Intracomm = self._revoking.safe(comm)
        return safe


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
        _current.note_saved()


def is_lost() -> bool:
    """Return `Survival.is_lost`, and False where no rank is to survive another."""
    return _current is not None and _current.is_lost
