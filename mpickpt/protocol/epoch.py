"""Which epoch: the value that events, instructions and ranks pass on."""

from __future__ import annotations

from mpickpt.protocol.value import value


@value
class Epoch:
    """An epoch as one rank is cut for it.

    Attributes
    ----------
    number : int
        Its number, which rises by one with each epoch, failed ones too.
    step : int
        The step of the safe point where this rank is cut.
    slot : int
        The index of its slot.
    """

    number: int
    step: int
    slot: int
