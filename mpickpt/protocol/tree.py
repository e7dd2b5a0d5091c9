"""The binomial tree of ranks that requests go up."""


def parent(rank: int) -> int:
    """Return the parent of `rank` > 0 in the binomial tree: its lowest one-bit is taken away."""
    return rank & (rank - 1)


def children(rank: int, size: int) -> list[int]:
    """Return the ranks whose parent is `rank`; at most log2(size) of them."""
    lowest = rank & -rank or size
    found, bit = [], 1
    while bit < lowest and rank + bit < size:
        found.append(rank + bit)
        bit *= 2
    return found
