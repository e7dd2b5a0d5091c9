"""A lazy restart, on all ranks: nothing is overwritten before all that was restored is read and checked."""

from __future__ import annotations

import time

from mpickpt.errors import MpickptError
from mpickpt.mpi import Coordinator
from mpickpt.restart.lazy import Loading


class Restoring:
    """One rank's part in it; there is none if `loading` is None.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    loading : Loading or None
        What this rank still has to read and check.
    """

    def __init__(self, coordinator: Coordinator, loading: Loading | None) -> None:
        self._coordinator = coordinator
        self._loading = loading
        self._since = 0.0

    def start(self) -> None:
        """Begin to keep time, at the first safe point."""
        self._since = time.perf_counter()

    @property
    def is_running(self) -> bool:
        """Whether arrays are still being read and checked."""
        return self._loading is not None

    def poll(self, now: float, remaining: float) -> bool:
        """See that all is loaded in the `remaining` seconds to the next cut; once True, if some of it is corrupt."""
        return self._loading is not None and self._loading.poll(now - self._since, remaining)

    def finish(self) -> None:
        """Have the arrays of all ranks in memory of their own, and valid, before any slot is written to.

        Collective, once. One rank's word is not enough: if another one's arrays are corrupt, the older epoch is needed,
        which the first cut overwrites.

        Raises
        ------
        CorruptionError
            On all ranks, if what one of them restored is corrupt.
        """
        loading, self._loading = self._loading, None
        if loading is None:
            return
        error: MpickptError | None = None
        try:
            loading.finish()
        except MpickptError as found:
            error = found
        self._coordinator.agree(error, "all ranks to read and check what they restored")
