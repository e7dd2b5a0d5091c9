"""The second SIGTERM, and the time limit of the first; ``native/src/term.c`` does the work.

The first SIGTERM requests a last epoch and the end of the program. A program that reaches no safe point, because it
waits in a call of a library, could then not be ended by the signal. So a second one, some time later, has the effect
that it would have without a session, except while a last epoch is being saved.
"""

from __future__ import annotations

import math
import signal
from contextlib import suppress

from mpickpt import _native

AGAIN_SECONDS = 10.0  # least time after the first one: launchers may send one signal twice


def watch_term(before: object, limit: float) -> None:
    """Install a handler in front of Python's own handler of SIGTERM, which has just replaced `before`.

    Parameters
    ----------
    before : object
        What `signal.signal` returned.
    limit : float
        Seconds after the first SIGTERM until it takes effect by itself; may be infinite.
    """
    with suppress(OSError):  # no timer is available: SIGTERM is only a request then
        _native.term_watch(AGAIN_SECONDS, 0.0 if math.isinf(limit) else limit, before == signal.SIG_DFL)


def unwatch_term() -> None:
    """Remove that handler, before Python's own handler is removed."""
    _native.term_unwatch()


#: Set whether a last epoch is being saved: no SIGTERM takes effect meanwhile.
set_saving = _native.term_set_saving
#: Return whether the SIGTERM that Python handles now is to take effect, for a handler of the program.
take_again = _native.term_take_again
