"""A process that is kept ready to take the place of a dead rank.

To start one takes seconds, most of them for MPI and for the modules of the program. One rank, the keeper, starts it
ahead of time, in a thread, while the program computes. It runs the program as far as `mpickpt.main`, and waits there.
Both have a communicator, the link. After the loss of a rank the keeper tells the process a port, to which it connects,
and confirms it when all survivors have taken it in. If its keeper dies or gives up before that, the process ends: no
survivor counts on it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from mpickpt.mpi.started import import_mpi

if TYPE_CHECKING:
    from mpi4py import MPI

_DELAY_SECONDS = 0.3  # for the ranks to begin, which the start of another process would slow down
_START_SECONDS = 60.0  # for a process to start
_POLL_SECONDS = 0.005
_KEEPER, _KEPT = 0, 1  # their ranks
_OPTION = "mpickpt_kept"  # of Python (-X), which tells a process that it is one


class Standby:
    """The keeper's end: starts the process, without waiting for it.

    Parameters
    ----------
    folder : str
        The current folder of the process.

    Attributes
    ----------
    error : str
        Why there is no such process; empty if there is, or will be.
    link : mpi4py.MPI.Intracomm or None
        The communicator of both, when the process has started.
    """

    def __init__(self, folder: str) -> None:
        self.error = ""
        self.link: MPI.Intracomm | None = None
        self._folder = folder
        self._needed, self._is_wanted = threading.Event(), True
        self._thread = threading.Thread(target=self._start, name="standby", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether the process has started, and is not known to have died."""
        return self.link is not None and not self.is_dead

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to have died after it had started."""
        if self.link is None:
            return False
        failed = self.link.Get_failed()
        dead: int = failed.size
        failed.Free()
        return dead > 0

    def has_started(self) -> bool:
        """Wait for the process to start, and return whether it has."""
        self._needed.set()
        self._thread.join(_START_SECONDS)
        if self._thread.is_alive():
            self.error = f"it does not start within {_START_SECONDS:g} s"
        if self.is_dead:
            self.error = "it has died"
        return self.is_ready

    def call(self, news: object) -> bool:
        """Tell the process that it is needed, and `news`, when it has started; return whether it comes."""
        if not self.has_started():
            return False
        assert self.link is not None
        try:
            self.tell(news)
            self.link.recv(source=_KEPT)  # which says that it still lives
        except import_mpi().Exception:
            self.error = "it has died"
            return False
        return True

    def tell(self, news: object) -> None:
        """Tell the process what `Kept.hear` returns; `has_started` was called before."""
        assert self.link is not None
        self.link.send(news, _KEPT)

    def confirm(self) -> None:
        """Tell the process that all survivors have taken it in."""
        self.tell(True)

    def refuse(self) -> None:
        """End a process that not all survivors have taken in."""
        if self.link is not None:
            self.link.Revoke()

    def dismiss(self) -> None:
        """End the process, or do not start it."""
        if not self._needed.is_set():
            self._is_wanted = False
        if self.has_started():
            with suppress(import_mpi().Exception):  # it has just died
                self.tell(None)

    def _start(self) -> None:
        self._needed.wait(_DELAY_SECONDS)
        if not self._is_wanted:
            return
        self._needed.set()
        mpi = import_mpi()
        info = mpi.Info.Create()
        info.Set("wdir", self._folder)
        try:
            inter = mpi.COMM_SELF.Spawn(sys.executable, _arguments(), info=info)
            link = inter.Merge(high=False)
            inter.Disconnect()
        except mpi.Exception as error:
            self.error = str(error)
        else:
            link.Set_errhandler(mpi.ERRORS_RETURN)
            self.link = link
        info.Free()


class Kept:
    """The other end: a process that is kept ready; made before MPI is initialized.

    That may wait for ever for a keeper that dies meanwhile, and no Python runs then: a timer of the system ends it.

    Attributes
    ----------
    link : mpi4py.MPI.Intracomm
        The communicator of both, after `meet`.
    """

    link: MPI.Intracomm

    def __init__(self) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _START_SECONDS)

    def meet(self, parent: MPI.Intercomm) -> None:
        """Make the link to the keeper, which has started this process."""
        self.link = parent.Merge(high=True)
        parent.Disconnect()
        self.link.Set_errhandler(import_mpi().ERRORS_RETURN)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def answer(self) -> None:
        """Tell the keeper that this process comes."""
        with suppress(import_mpi().Exception):  # the keeper has died
            self.link.send(True, _KEEPER)

    def hear(self) -> object:
        """Return what the keeper tells next; end the process if it is not needed, or its keeper dies or gives up."""
        mpi = import_mpi()
        try:
            while not self.link.Iprobe(_KEEPER):
                time.sleep(_POLL_SECONDS)
            news = self.link.recv(source=_KEEPER)
        except (mpi.Exception, KeyboardInterrupt):  # an interrupt is for all ranks
            end_unneeded()
        if news is None:
            end_unneeded()
        return news


def kept() -> Kept | None:
    """Return this end of a process that was started to be kept ready; None in others."""
    return Kept() if _OPTION in sys._xoptions else None


def end_unneeded() -> NoReturn:
    """End this process, which nobody counts on, without MPI_Finalize: that would wait for others."""
    os._exit(0)  # which counts for the status of the job


def _arguments() -> list[str]:
    """Return what follows the interpreter on the command line of a process that this one keeps."""
    own = sys.orig_argv[1:]
    return own if _OPTION in sys._xoptions else ["-X", _OPTION, *own]
