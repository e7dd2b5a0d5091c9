"""What a session gives back when it ends: together with all ranks, or on this rank alone."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mpickpt.errors import MpickptError
from mpickpt.mpi import Coordinator
from mpickpt.restart.lazy import Loading
from mpickpt.session.archiver import Archiver
from mpickpt.session.checkpointer import Checkpointer
from mpickpt.session.driver import Driver
from mpickpt.snapshot.guard import close_guard

if TYPE_CHECKING:
    from mpickpt.mpi import Traffic


class Ending:
    """Gives back threads, memory, locks, communicators and the guard of one session, in this order.

    Parameters
    ----------
    coordinator, checkpointer, driver, traffic
        The parts of the session.
    loading : Loading or None
        What a lazy restart may still be reading.
    archiver : Archiver or None
        What may still be copying an archive.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        checkpointer: Checkpointer,
        driver: Driver,
        traffic: Traffic,
        loading: Loading | None,
        archiver: Archiver | None = None,
    ) -> None:
        self._coordinator = coordinator
        self._checkpointer = checkpointer
        self._driver = driver
        self._traffic = traffic
        self._loading = loading
        self._archiver = archiver

    def together(self) -> None:
        """End the session, whose last epoch is decided; collective."""
        try:
            if self._loading is not None:
                self._loading.close()
            self._let_go()
            self._traffic.close()
            self._coordinator.close()
        finally:
            close_guard()

    def alone(self, *, started: bool) -> None:
        """End the session and wait for no other rank; if it has `started`, save what is being saved."""
        try:
            if started:
                with suppress(MpickptError):
                    self._driver.leave()
        finally:
            try:
                if self._loading is not None:
                    self._loading.leave()
                self._let_go()
                self._coordinator.leave()
            finally:
                close_guard()

    def _let_go(self) -> None:
        """Let go of arrays and directory, as far as the storage allows."""
        if self._archiver is not None:
            self._archiver.close()
        if not self._checkpointer.close(keep_lock=self._driver.storage_hung):
            self._driver.tell_hung_end()
