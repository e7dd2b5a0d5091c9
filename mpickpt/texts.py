"""Parts of messages: text of others made printable, and lists of ranks and arrays."""

from __future__ import annotations

from collections.abc import Sequence

NAMED = 5  # arrays, or runs of ranks, that a sentence names


def visible(text: str) -> str:
    """Escape unprintable characters (control characters, line ends, changes of direction) as Python does."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def told_ranks(ranks: Sequence[int]) -> str:
    """List ascending ranks: ``rank 3``, ``ranks 0 to 6 and 9``; a long list is shortened."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    runs = [piece for first, last in runs for piece in ([[first], [last]] if last == first + 1 else [[first, last]])]
    told = [str(run[0]) if run[0] == run[-1] else f"{run[0]} to {run[-1]}" for run in runs]
    if len(told) > NAMED:
        left = len(ranks) - sum(run[-1] - run[0] + 1 for run in runs[:NAMED])
        told[NAMED:] = [f"{left} more"]
    listed = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


def told_names(names: Sequence[str]) -> str:
    """List arrays by name; a long list is shortened."""
    listed = ", ".join(repr(name) for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"array{'s' if len(names) > 1 else ''} {listed}{more}"


def counted(number: int, thing: str) -> str:
    """Format a number with a noun, in the plural unless it is 1."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
