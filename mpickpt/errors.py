"""The exceptions of mpickpt, and `warn`. ``except MpickptError`` catches all errors.

Messages are complete sentences that say what happened, where, and what to do. Attributes hold the values that a program
may want to evaluate. All exceptions can be pickled, because ranks send them to each other.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep


class MpickptError(Exception):
    """Base class of all errors that mpickpt raises on purpose.

    Attributes
    ----------
    exit_code : int
        Exit status of `mpickpt run` when this error reaches it; for the other verbs see docs/cli.md.
    everywhere : bool
        All ranks raise this error, so one report of it is enough.
    elsewhere : bool
        It follows from an error of another rank, which reports the cause.
    """

    exit_code: int = 1
    everywhere: bool = False
    elsewhere: bool = False


def everywhere(error: MpickptError) -> MpickptError:
    """Mark an error that all ranks raise, so that it is reported once."""
    error.everywhere = True
    return error


class UsageError(MpickptError, ValueError):
    """A call, an option or an environment variable is invalid."""

    exit_code = 2


class LayoutError(MpickptError, ValueError):
    """Names, shapes, dtypes or parts do not fit each other or the array they describe."""

    exit_code = 2


class StoreError(MpickptError):
    """A file or directory of the checkpoint could not be created, read or written.

    Attributes
    ----------
    errno : int or None
        The operating system's error number, where there was one.
    path : pathlib.Path or None
        The file or directory concerned.
    """

    exit_code = 3

    def __init__(self, message: str, *, errno: int | None = None, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.path = None if path is None else Path(path)


class InUseError(StoreError):
    """Another program is using the checkpoint directory."""

    exit_code = 4


class CorruptionError(MpickptError):
    """Stored data do not match their checksum.

    Attributes
    ----------
    rank, block, epoch : int or None
        Where the damage is; `block` is None for records and objects.
    array : str or None
        Name of the corrupt array; None for records and objects.
    path : pathlib.Path or None
        The corrupt file.
    """

    exit_code = 5

    def __init__(
        self,
        message: str,
        *,
        rank: int | None = None,
        array: str | None = None,
        block: int | None = None,
        epoch: int | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.rank = rank
        self.array = array
        self.block = block
        self.epoch = epoch
        self.path = None if path is None else Path(path)


class NothingToRestore(MpickptError):
    """There are checkpoints, but none of them can be restored; the message gives the reason for each.

    Nothing was overwritten.
    """

    exit_code = 6


class EpochError(MpickptError):
    """An epoch does not exist, is not complete, or was overwritten while it was read.

    Also: a restarted program does not repeat the messages that it had sent before its cut (docs/messages.md).
    """

    exit_code = 7


class WaitTimeout(MpickptError, TimeoutError):
    """Another rank or a drain did not answer within the time limit: MPICKPT_WAIT_LIMIT, or ten minutes.

    The message names the ranks that are late, and what this rank waited for.
    """

    exit_code = 8


class BatchError(MpickptError):
    """The batch system does not answer, or refuses a request."""

    exit_code = 9


class NoProgress(MpickptError):
    """Several restarts of a job in a row saved no newer step."""

    exit_code = 10


class Stopped(SystemExit):
    """The program was asked to stop, and its last epoch is complete: the interpreter exits with status 75.

    All ranks raise it at a safe point. It is not an `MpickptError`, and ``except Exception`` does not catch it.

    Attributes
    ----------
    epoch : int or None
        The newest complete epoch.
    exit_code : int
        75 (EX_TEMPFAIL): the same command resumes the program.
    """

    exit_code: int = 75

    def __init__(self, epoch: int | None) -> None:
        super().__init__(self.exit_code)
        self.epoch = epoch


def warn(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the line of the program that called mpickpt, whatever the depth of the call."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
