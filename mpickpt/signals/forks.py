"""What forked child processes do not inherit.

A child belongs to the program, as a worker of `multiprocessing` does: its parent may end it by SIGTERM, or it may
outlive the parent. In a child, a signal has the effect that it had before the session, and the lock of the checkpoint
directory is closed. ``native/src/fork.c`` does the work, so that it includes children that a C library forks.
"""

from __future__ import annotations

import signal

from mpickpt import _native

#: Close a descriptor, such as that of a lock, in children; call `inherit_descriptor` before it is closed here.
disinherit_descriptor = _native.disinherit_descriptor
inherit_descriptor = _native.inherit_descriptor


def disinherit_signal(number: int, before: object) -> None:
    """Restore in children the action that a signal had before its current handler.

    Parameters
    ----------
    number : int
        The signal.
    before : object
        What `signal.signal` returned. All Python handlers share one handler in C, so if it is a function there is
        nothing to restore in C.
    """
    if before in (signal.SIG_DFL, signal.SIG_IGN):
        _native.disinherit_signal(number, before == signal.SIG_IGN)


#: Let children inherit the signal again.
inherit_signal = _native.inherit_signal
