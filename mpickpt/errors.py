"""The exceptions of mpickpt: one tree, so that ``except MpickptError`` catches them all; and `warn`.

Messages are complete sentences that say what happened, where, and what to do. What a program may want to look at is
kept in attributes beside the message. All of them survive pickling, because ranks send them to each other.
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
        What `mpickpt run` ends with when this error reaches it; the other verbs end with 1 or 2 (docs/cli.md).
    everywhere : bool
        All ranks raise this error alike, so that one of them telling it is enough.
    elsewhere : bool
        It follows from an error of another rank, which says what is the matter.
    """

    exit_code: int = 1
    everywhere: bool = False
    elsewhere: bool = False


def everywhere(error: MpickptError) -> MpickptError:
    """Mark an error that all ranks raise alike, so that one report of it is enough."""
    error.everywhere = True
    return error


class UsageError(MpickptError, ValueError):
    """A call, an option or an environment variable makes no sense as it was given."""

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
    """Stored data do not agree with their checksum.

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
    """There are checkpoints, but none of them can be restored; the message lists why for each.

    Nothing was overwritten.
    """

    exit_code = 6


class EpochError(MpickptError):
    """An epoch does not exist, is not complete, or was overwritten while it was read.

    Also: a program that was restarted does not send the messages again that it sent before (docs/messages.md).
    """

    exit_code = 7


class WaitTimeout(MpickptError, TimeoutError):
    """Another rank or a drain did not answer within the time allowed, ten minutes unless MPICKPT_WAIT_LIMIT says so.

    The message names the ranks that are late, and what they were waited for.
    """

    exit_code = 8


class BatchError(MpickptError):
    """The batch system cannot be asked, or does not do what it is asked for."""

    exit_code = 9


class NoProgress(MpickptError):
    """A job was started again and again, and saved nothing newer."""

    exit_code = 10


class Stopped(SystemExit):
    """The program was asked to stop, and its last epoch is complete: ends the interpreter with status 75.

    All ranks get it at a safe point. It is no `MpickptError`: ``except Exception`` lets it pass.

    Attributes
    ----------
    epoch : int or None
        The newest complete epoch.
    exit_code : int
        75, which is EX_TEMPFAIL: the same command goes on.
    """

    exit_code: int = 75

    def __init__(self, epoch: int | None) -> None:
        super().__init__(self.exit_code)
        self.epoch = epoch


def warn(text: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn in the name of that line of the program from which mpickpt was called, however deep the call came."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
