"""Curves as PNG: what a checkpoint adds, by contender."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median, quantiles
from typing import TypeAlias

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("agg")

Curve: TypeAlias = dict[int, list[float]]
"""The values of all runs, in ms, by what is on the x axis."""

# Colour (of Okabe and Ito), marker, line, and the shift of points that keeps bars from hiding each other.
LOOKS = [("#0072B2", "o", "-", 0.98), ("#D55E00", "s", "--", 1.0), ("#009E73", "^", ":", 1.02)]
FLOOR_MS = 1.0  # smaller and negative values, which are noise, are drawn here


def draw(path: Path, curves: dict[str, Curve], *, x: str) -> Path:
    """Draw medians as a line and quartiles as bars, both axes logarithmic.

    Parameters
    ----------
    path : Path
        The picture: 1400 pixels wide, to be shown at half that width.
    curves : dict of str to Curve
        By name, at most three.
    x : str
        Label of the x axis, with its unit.

    Returns
    -------
    Path
        The picture.
    """
    figure = Figure(figsize=(7, 4), dpi=200, layout="constrained")
    axes = figure.subplots()
    for (name, curve), (colour, marker, line, shift) in zip(curves.items(), LOOKS, strict=False):
        points = sorted(curve)
        middles = [_shown(median(curve[at])) for at in points]
        quartiles = [
            quantiles(curve[at], n=4, method="inclusive") if len(curve[at]) > 1 else curve[at] * 3 for at in points
        ]
        below = [max(0.0, middle - _shown(low)) for middle, (low, _, _) in zip(middles, quartiles, strict=True)]
        above = [max(0.0, _shown(high) - middle) for middle, (_, _, high) in zip(middles, quartiles, strict=True)]
        shifted = [at * shift for at in points]
        axes.plot(shifted, middles, label=name, color=colour, marker=marker, linestyle=line)
        axes.errorbar(shifted, middles, yerr=[below, above], fmt="none", ecolor=colour, capsize=3)
    ticks = sorted({at for curve in curves.values() for at in curve})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{at:,}" for at in ticks])
    axes.set_yscale("log")
    axes.set_ylim(*_decades(axes.get_ylim()))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel(x)
    axes.set_ylabel("added per checkpoint (ms)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path


def _decades(limits: tuple[float, float]) -> tuple[float, float]:
    """Widen the limits of a logarithmic axis to whole powers of ten, but not far below the floor."""
    low, high = limits
    return max(0.7 * FLOOR_MS, 10.0 ** math.floor(math.log10(low))), 10.0 ** math.ceil(math.log10(high))


def _shown(milliseconds: float) -> float:
    return max(FLOOR_MS, milliseconds)
