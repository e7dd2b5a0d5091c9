"""The second SIGTERM, and the time limit of the first, as Python sees them; ``native/src/term.c`` does the work.

The first SIGTERM asks a program for a last epoch and its end. A program that comes to no safe point, as it waits in
a call of a library, could then not be ended by a signal any more. So a second one, some time later, has the effect that
it would have without a session; but not while a last epoch is being saved.
"""

from __future__ import annotations

import math
import signal
from contextlib import suppress

from mpickpt import _native

AGAIN_SECONDS = 10.0  # after the first one, at the least: launchers may send one signal twice


def watch_term(before: object, limit: float) -> None:
    """Blocked before Python's own handler of SIGTERM, which was just installed in the place of `before`.

    Parameters
    ----------
    before : object
        What `signal.signal` gave.
    limit : float
        So many seconds after the first one it takes its effect by itself; may be infinite.
    """
    with suppress(OSError):  # no timer is to be had: then it is as without
        _native.term_watch(AGAIN_SECONDS, 0.0 if math.isinf(limit) else limit, before == signal.SIG_DFL)


def unwatch_term() -> None:
    """Take that back, before Python's own handler is."""
    _native.term_unwatch()


#: Whether a last epoch is being saved: no SIGTERM has its effect meanwhile.
set_saving = _native.term_set_saving
#: Whether the SIGTERM that Python handles now is to have its effect; for a handler of the program's own.
take_again = _native.term_take_again
