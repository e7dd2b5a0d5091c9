"""What child processes made by fork do not inherit, as Python sees it.

A child is the program's own: a worker of `multiprocessing`, say, that its parent ends by SIGTERM, or one that outlives
it. There a signal does what it did before the session took it, and the lock of the checkpoint directory is not held.
The work is done in ``native/src/fork.c``, so that children which a C library makes are treated alike.
"""

from __future__ import annotations

import signal

from mpickpt import _native

#: Have children close a file that stands for a claim of this process; before it is closed here, `inherit_descriptor`.
disinherit_descriptor = _native.disinherit_descriptor
inherit_descriptor = _native.inherit_descriptor


def disinherit_signal(number: int, before: object) -> None:
    """Have children take a signal as it was before its handler of now was installed.

    Parameters
    ----------
    number : int
        The signal.
    before : object
        What `signal.signal` gave. A function of Python's own stands behind one handler of C with ours, so that there is
        nothing to put back in C.
    """
    if before in (signal.SIG_DFL, signal.SIG_IGN):
        _native.disinherit_signal(number, before == signal.SIG_IGN)


#: Let children have the signal as this process has it.
inherit_signal = _native.inherit_signal
