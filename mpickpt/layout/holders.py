"""Which ranks hold an array, for messages about a rank that does not."""

from __future__ import annotations

from collections import Counter

from mpickpt.layout.arrays import Layout
from mpickpt.texts import told_names, told_ranks


def ranks_holding(layout: Layout, name: str) -> list[int]:
    """Return the ranks that have an array of a name."""
    return [rank for rank, _ in layout.having(name)]


def told_shares(layout: Layout, told: set[str]) -> list[str]:
    """Return sentences that name the ranks without a share of a global array, once for each array.

    Parameters
    ----------
    layout : Layout
        What all ranks save.
    told : set of str
        The arrays that were reported before; those reported now are added.
    """
    counts = Counter(spec.name for rank in layout.ranks for spec in rank.arrays if spec.part is not None)
    few = [name for name, count in counts.items() if count < len(layout.ranks) and name not in told]
    told |= set(few)
    alike: dict[str, list[str]] = {}
    for name in few:
        lacking = sorted(set(range(len(layout.ranks))).difference(ranks_holding(layout, name)))
        alike.setdefault(told_ranks(lacking), []).append(name)
    return [
        f"{ranks} declared no share of the global {told_names(names)}, all cells of which are the other ranks'. If "
        f"that is meant, declare an empty part there, which says so."
        for ranks, names in alike.items()
    ]
