"""Putting together what decides on cuts, when a session is opened."""

from __future__ import annotations

import math
from contextlib import ExitStack

from mpickpt.mpi import Coordinator, current_survival
from mpickpt.options import Options
from mpickpt.protocol import Protocol, idle_poll_seconds
from mpickpt.protocol.policy import Clock
from mpickpt.report.recorder import Recorder
from mpickpt.restart.choose import Start
from mpickpt.session.archiver import Archiver
from mpickpt.session.checkpointer import Checkpointer
from mpickpt.session.driver import Driver
from mpickpt.session.hang import Hang
from mpickpt.session.triggers import Triggers
from mpickpt.slurm import Environment
from mpickpt.terminal import RunLine


def drive(
    coordinator: Coordinator,
    checkpointer: Checkpointer,
    environment: Environment,
    start: Start,
    archiver: Archiver | None,
    options: Options,
    undo: ExitStack,
) -> Driver:
    """Make the driver of one rank; collective.

    Parameters
    ----------
    coordinator : Coordinator
        The link to the other ranks.
    checkpointer : Checkpointer
        Cuts and drains.
    environment : Environment
        The batch job, if there is one.
    start : Start
        What the run begins with.
    archiver : Archiver or None
        Archives epochs beside the program, on rank 0.
    options : Options
        The options in force.
    undo : contextlib.ExitStack
        Gets what has to be done if the session does not begin after all.
    """
    chosen = math.inf if options.interval is None else options.interval
    protocol = Protocol(
        coordinator.rank,
        coordinator.size,
        keep=options.keep,
        every=options.every,
        slots=start.epochs,
        protected=start.protected,
        next_epoch=start.next_epoch,
        idle_poll=idle_poll_seconds(math.inf if chosen == "auto" else chosen),
    )
    clock = Clock(None if chosen == "auto" else chosen, options.mtbf)
    first = coordinator.rank == 0
    triggers = Triggers(
        options.directory if first else None,
        clock if first else None,
        environment if first else None,
        margin=options.margin,
        signals=options.signals,
        term_limit=options.term_limit,
    )
    undo.callback(start.close)
    undo.callback(triggers.close)
    if current_survival() is not None:
        undo.callback(triggers.defer)
    recorder = Recorder(options, coordinator.rank, coordinator.size, checkpointer.run, checkpointer.started_ns)
    line = RunLine() if first and options.progress else None
    hang = Hang(checkpointer.snapshotter, options.stall_limit, coordinator.rank, options.directory)
    return Driver(coordinator, checkpointer, protocol, triggers, clock, recorder, hang, start.loading, archiver, line)
