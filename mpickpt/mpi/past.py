"""What survivors have in common, and tell a rank that joins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Past:
    """What the ranks have in common.

    Attributes
    ----------
    losses : int
        How many times ranks were lost.
    fruitless : int
        How many times since an epoch of this run became complete.
    saved : bool
        Whether a survivor knows of such an epoch.
    """

    losses: int = 0
    fruitless: int = 0
    saved: bool = False


@dataclass(frozen=True, slots=True)
class News:
    """What a rank that joins has to know.

    Attributes
    ----------
    numbers : tuple of int
        The ranks that get other processes, in the order in which these join.
    keeper : int
        Which rank calls them.
    past : Past
        What has been.
    """

    numbers: tuple[int, ...]
    keeper: int
    past: Past
