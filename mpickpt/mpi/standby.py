"""A process that is kept ready to take the place of a dead rank.

To start one takes seconds, most of them for MPI and for the modules of the program. One rank, the keeper, starts it
ahead of time, in a thread, while the program computes. It runs the program as far as `mpickpt.main`, and waits there.
After the loss of a rank the keeper tells it a port, to which it connects.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from mpickpt.mpi.started import import_mpi

if TYPE_CHECKING:
    from mpi4py import MPI

_DELAY_SECONDS = 1.0  # for the ranks to begin, which the start of another process would slow down
_POLL_SECONDS = 0.005
_KEEPER, _KEPT = 0, 1  # their ranks


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
    """

    def __init__(self, folder: str) -> None:
        self.error = ""
        self._folder = folder
        self._link: MPI.Intracomm | None = None
        self._needed, self._is_wanted = threading.Event(), True
        self._thread = threading.Thread(target=self._start, name="standby", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether the process has started."""
        return self._link is not None

    @property
    def links(self) -> list[MPI.Comm]:
        """The communicator of both, if the process has started."""
        return [] if self._link is None else [self._link]

    def call(self, port: str, news: object) -> None:
        """Have the process connect to a port, and tell it `news`; `has_started` was called before."""
        assert self._link is not None
        self._link.send((port, news), _KEPT)

    def has_started(self) -> bool:
        """Wait for the process to start, and return whether it has."""
        self._needed.set()
        self._thread.join()
        return self._link is not None

    def dismiss(self) -> None:
        """End the process, or do not start it."""
        if not self._needed.is_set():
            self._is_wanted = False
        if self.has_started():
            self.call("", None)

    def _start(self) -> None:
        self._needed.wait(_DELAY_SECONDS)
        if not self._is_wanted:
            return
        self._needed.set()
        mpi = import_mpi()
        info = mpi.Info.Create()
        info.Set("wdir", self._folder)
        try:
            inter = mpi.COMM_SELF.Spawn(sys.executable, sys.orig_argv[1:], info=info)
            link = inter.Merge(high=False)
            inter.Disconnect()
        except mpi.Exception as error:
            self.error = str(error)
        else:
            link.Set_errhandler(mpi.ERRORS_RETURN)
            self._link = link
        info.Free()


class Kept:
    """The other end: a process that is kept ready.

    Parameters
    ----------
    parent : mpi4py.MPI.Intercomm
        Leads to its keeper.
    """

    def __init__(self, parent: MPI.Intercomm) -> None:
        self._link = parent.Merge(high=True)
        parent.Disconnect()
        self._link.Set_errhandler(import_mpi().ERRORS_RETURN)

    def wait(self) -> tuple[str, object]:
        """Wait until it is needed, and return the port and the news; end the process if it is not."""
        mpi = import_mpi()
        try:
            while not self._link.Iprobe(_KEEPER):
                time.sleep(_POLL_SECONDS)
            port, news = self._link.recv(source=_KEEPER)
        except (mpi.Exception, KeyboardInterrupt):  # its keeper has died, or all are being ended
            os._exit(0)  # which counts for the status of the job
        if not port:
            os._exit(0)  # MPI_Finalize would wait for its keeper
        return port, news
