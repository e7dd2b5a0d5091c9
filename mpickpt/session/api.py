"""How a session is opened."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpickpt.errors import MpickptError, UsageError, everywhere
from mpickpt.mpi import Coordinator, about_mpi, current_survival, find_loss, world_rank_and_size
from mpickpt.options import OnRebind, Options, command_line, resolve
from mpickpt.session.launcher import find_launch
from mpickpt.session.session import Session

if TYPE_CHECKING:
    from mpickpt.mpi import Communicator

NO_MAIN = (
    "Under --survive a program is called again when a rank has died, but this one calls mpickpt.open outside of "
    "mpickpt.main(). Put what it does into a function of the communicator, and hand that to mpickpt.main(f); or run it "
    "without --survive."
)


def open(
    directory: str | os.PathLike[str],
    comm: Communicator | None = None,
    *,
    every: int | None = None,
    interval: str | float | None = None,
    keep: int | None = None,
    restart: int | Literal["auto", "never"] | None = None,
    pool: int | str | None = None,
    direct: bool | None = None,
    mtbf: str | float | None = None,
    signals: bool | None = None,
    predict: bool | None = None,
    lazy: bool | None = None,
    margin: str | float | None = None,
    record: bool | None = None,
    progress: bool | None = None,
    alone: bool | None = None,
    on_rebind: OnRebind | None = None,
    archive_every: str | float | None = None,
    keep_archives: int | None = None,
    archive_to: str | os.PathLike[str] | None = None,
    stall_limit: str | float | None = None,
    term_limit: str | float | None = None,
) -> Session:
    """Open a checkpoint directory: restore from it if it holds something, and save to it from now on.

    Collective over `comm`. Rank 0's arguments count; the command line of ``mpickpt run`` and the variables
    ``MPICKPT_DIR``, ``MPICKPT_EVERY``, ``MPICKPT_INTERVAL``, ``MPICKPT_KEEP``, ``MPICKPT_RESTART``, ``MPICKPT_POOL``,
    ``MPICKPT_DIRECT``, ``MPICKPT_MTBF``, ``MPICKPT_SIGNALS``, ``MPICKPT_PREDICT``, ``MPICKPT_LAZY``,
    ``MPICKPT_MARGIN``, ``MPICKPT_RECORD``, ``MPICKPT_PROGRESS``, ``MPICKPT_ALONE``, ``MPICKPT_ON_REBIND``,
    ``MPICKPT_ARCHIVE_EVERY``, ``MPICKPT_KEEP_ARCHIVES``, ``MPICKPT_ARCHIVE_TO``, ``MPICKPT_STALL_LIMIT`` and
    ``MPICKPT_TERM_LIMIT`` win over them, in this order.

    Parameters
    ----------
    directory : path
        Made if it does not exist. One program at a time may use it.
    comm : mpi4py.MPI.Intracomm, optional
        The ranks that are saved together; ``MPI.COMM_WORLD`` by default.
    every : int, optional
        Cut at the steps `every`, 2 · `every`, …
    interval : str or float, optional
        Cut when so much time went by: seconds, or ``"90s"``, ``"10min"``, ``"1h30min"``; or ``"auto"``: the interval
        that minimises the expected lost time (Young/Daly), from `mtbf` and from what checkpoints cost
        (`mpickpt.protocol.policy.best_interval`). Ten minutes if neither `every` nor `interval` is given.
    keep : int, optional
        Number of slots, at least 2, which is the default; with `archive_every` 3 is.
    restart : "auto", "never" or int, optional
        The newest complete epoch (the default), none of them, or the one with this number.
    pool : int or str, optional
        Room on each rank for copies of what the program changes before it is saved: bytes, ``"256MiB"``, or a share
        of the rank's arrays, ``"25%"``. A quarter of them, and at least 16 blocks, by default. A larger one stalls
        less.
    direct : bool, optional
        Write past the page cache where the file system can (the default).
    mtbf : str or float, optional
        Mean time between failures of the job, as `interval`; a day by default. Only ``interval="auto"`` asks for it.
    signals : bool, optional
        Cut when a rank gets SIGUSR1, and cut and end with exit status 75 when it gets SIGTERM (the default). Handlers
        of the program that were there before are called too.
    predict : bool, optional
        Save first what the program wrote to first in the last interval (the default); otherwise in the order of
        addresses.
    lazy : bool, optional
        Compute at once after a restart on the same number of ranks: what `Session.array` returns is read when it is
        accessed, and checked in the background. Damage is then found only while the program runs, and ends it with
        `CorruptionError` before anything is saved. False by default: all is read and checked before this returns.
    margin : str or float, optional
        A batch job stops, as by SIGTERM, when less time of it is left than a drain takes and this; a minute by
        default. It has to be longer than a few steps.
    record : bool, optional
        Note what the run does and what it costs in the folder ``runs`` of the directory, for ``mpickpt report`` (the
        default).
    progress : bool, optional
        Have rank 0 tell on stderr where the program is: its step and pace, the drain, the age of the last complete
        epoch. False by default.
    on_rebind : "error", "warn" or "ignore", optional
        What a cut does when the program does not hold an array or object any more, as after ``u = u * 2``, so that what
        it computes is not saved. An error by default; each declaration may say otherwise for its name.
    alone : bool, optional
        Have this process run alone although the launcher that started it started others, of which MPI does not know.
        False by default: that is an error, because a launcher that does not belong to the MPI library starts all ranks
        as programs of their own.
    archive_every : str or float, optional
        Archive a complete epoch each time so much time went by, as `interval`, beside the program: it is cloned, or
        copied at idle priority. An archive that is late is skipped with a warning, and never holds up an epoch. Where
        files cannot be cloned, `keep` has to be 3 or more. See docs/limits.md.
    keep_archives : int, optional
        Delete the oldest of the archives that `archive_every` made, when there are more of them; all stay by default.
    archive_to : path, optional
        Where they are made, and made if it does not exist; the checkpoint directory by default. Each program needs a
        directory of its own.
    stall_limit : str or float, optional
        Give an epoch up when the storage hangs: when it holds the program up, because the pool is full or at a safe
        point, and no write has ended for so long. A minute by default; ``"never"`` waits. See docs/limits.md.
    term_limit : str or float, optional
        End a program that still runs so long after the first SIGTERM, as that would without a session; ``"never"`` by
        default: a rank that waits for others is not hung. Not while a last epoch is being saved.

    Returns
    -------
    Session

    Raises
    ------
    UsageError
        If an option makes no sense.
    StoreError
        If the directory cannot be used; `InUseError` if another program does.
    NothingToRestore
        If there are checkpoints, but none can be restored.

    Examples
    --------
    >>> with mpickpt.open("heat.ckpt", every=100) as ckpt:  # doctest: +SKIP
    ...     u = ckpt.array("u", (1000, 1000), fill=0.0)
    ...     for step in ckpt.range(10_000):
    ...         advance(u)
    """
    code: dict[str, Any] = {"dir": directory, "every": every, "interval": interval, "keep": keep}
    code |= {"restart": restart, "pool": pool, "direct": direct, "mtbf": mtbf, "signals": signals}
    code |= {"predict": predict, "lazy": lazy, "margin": margin, "record": record, "progress": progress}
    code |= {"on_rebind": on_rebind, "alone": alone, "stall_limit": stall_limit, "term_limit": term_limit}
    code |= {"archive_every": archive_every, "keep_archives": keep_archives, "archive_to": archive_to}
    survival = current_survival()
    if survival is not None and not survival.is_entered:
        raise everywhere(UsageError(NO_MAIN))
    coordinator = Coordinator(comm)
    try:
        options = coordinator.on_root(lambda: _options(code), "rank 0 to read the options")
        if not options.alone and survival is None:
            _check_launcher()
        return Session(coordinator, options)
    except BaseException as error:
        find_loss(error)
        if isinstance(error, MpickptError) and error.everywhere:  # then all ranks come here, and nobody waits
            coordinator.close()
        else:
            coordinator.leave()
        raise


def _check_launcher() -> None:
    """Refuse to be alone where the launcher that started this process started several."""
    if world_rank_and_size()[1] > 1:
        return
    launch = find_launch(os.environ, os.getpid())
    if launch is None or launch.ranks <= 1:
        return
    raise everywhere(
        UsageError(
            f"The launcher started {launch.ranks} processes ({launch.variable}, set by {launch.launcher}), but MPI "
            f"sees 1 rank: the MPI library of this program, {about_mpi()['library']}, does not understand that "
            f"launcher, so that each process would run by itself and all would save to the same directory. Nothing was "
            f"read or written. Start the program by the mpiexec of its own library, or under Slurm by the srun --mpi= "
            f"that fits it (srun --mpi=list tells which there are). If each process is to be alone, in a directory of "
            f"its own: --alone, MPICKPT_ALONE=yes."
        )
    )


def _options(code: dict[str, Any]) -> Options:
    options = resolve(code, os.environ, command_line.given, base=Path.cwd())
    survival = current_survival()
    if survival is not None and survival.has_saved:  # it goes on from there, wherever it was to begin
        options = replace(options, restart="auto")
    return options
