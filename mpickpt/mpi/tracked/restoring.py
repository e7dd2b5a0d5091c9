"""The messages in flight of the epoch that is restored: each rank's share, brought to those that have to replay it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mpickpt.errors import EpochError, MpickptError, everywhere
from mpickpt.messages.inflight import InFlight, Suppressed, route

WHAT = "all ranks to restore the messages in flight"


class Replayed(NamedTuple):
    """What one rank replays.

    Attributes
    ----------
    late, early : int
        How many messages of all ranks are replayed, and how many sends are suppressed.
    found : InFlight
        What this rank's epoch says.
    suppressed : list of Suppressed
        The sends of this rank that other ranks have received already.
    """

    late: int
    early: int
    found: InFlight
    suppressed: list[Suppressed]


def share(
    data: bytes,
    rank: int,
    gather: Callable[[object, str], list[Any] | None],
    scatter: Callable[[list[Any] | None, str], Any],
) -> Replayed:
    """Read the messages in flight of this rank, and learn what it has to suppress; collective.

    Parameters
    ----------
    data : bytes
        What `Traffic.in_flight` gave on this rank.
    rank : int
        This rank.
    gather, scatter : callable
        Those of the `Coordinator`.

    Raises
    ------
    EpochError
        On all ranks, if one cannot read its data.
    """
    error: MpickptError | None = None
    found = InFlight()
    try:
        found = InFlight.from_bytes(data)
    except EpochError as wrong:
        error = EpochError(f"Rank {rank}: {wrong}")
    all_found = gather((error, found), WHAT)
    answers: list[MpickptError | tuple[int, int, list[Suppressed]]] | None = None
    if all_found is not None:
        first = next((e for e, _ in all_found if e is not None), None)
        everyone = [each for _, each in all_found]
        late = sum(len(each.late) for each in everyone)
        suppressed = route([each.early for each in everyone])
        early = sum(len(s.checksums) for each in (*suppressed, *(e.suppressed for e in everyone)) for s in each)
        answers = [first or (late, early, one) for one in suppressed]
    answer: MpickptError | tuple[int, int, list[Suppressed]] = scatter(answers, WHAT)
    if isinstance(answer, MpickptError):
        raise everywhere(answer)
    late, early, own = answer
    return Replayed(late, early, found, own)
