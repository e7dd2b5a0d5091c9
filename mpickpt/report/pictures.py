"""The pictures of ``mpickpt report``, drawn by matplotlib: the time line of the ranks, and the epochs."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mpickpt.report.figures import EpochFigures, RunFigures, fault_rates
from mpickpt.report.notes import RankNotes, RunNotes

SHOWN_RANKS = 16  # lanes of a time line; if there are more ranks, some are chosen
MANY = 3000  # shapes above which a picture stores them as pixels
INK = "#101112"  # of text and axes; in a page it becomes the colour of the text there
# The palette of Okabe and Ito, which colour-blind readers can tell apart, on light and dark ground.
COLOURS = {
    "computes": "#b0bac2",
    "noted as sums": "#c9b8d6",
    "blocked at the cut": "#d55e00",
    "writes held up": "#cc79a7",
    "waits at a safe point": "#e69f00",
    "drained idle": "#56b4e9",
    "drained urgent": "#0072b2",
    "drained while the program waited": "#009e73",
    "blocks copied": "#882255",
    "blocks saved as they were": "#8fbcd4",
}
# Kinds of drained bytes, and their fields in `EpochNote` and `EpochFigures`.
DRAINED = {
    "drained idle": "bytes_idle",
    "drained urgent": "bytes_urgent",
    "drained while the program waited": "bytes_waiting",
}
STYLE: Any = {  # Any, as the names differ between releases of matplotlib
    **{name: INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
}

Span = tuple[float, float]
Box = tuple[float, float, float, float]  # left, right, bottom, top


def draw_png(path: Path, draw: Callable[[Figure], object]) -> None:
    """Write a picture to a PNG file, on white ground."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 5), dpi=160, layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(path, format="png")


def draw_svg(name: str, draw: Callable[[Figure], object]) -> str:
    """Return a picture for a page in SVG: without a background, its text in the colour of the page's."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(10, 5), layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, end, rest = svg.partition(">")
    return re.sub(r' (width|height)="[^"]*"', "", head) + f' role="img" aria-label="{name}"{end}{rest}'


# -- the time line -----------------------------------------------------------------------------------------------------


def chosen_ranks(figures: RunFigures, most: int = SHOWN_RANKS) -> list[int]:
    """Choose ranks for the time line: all, or evenly spread ones and the one that lost most."""
    ranks = [rank.rank for rank in figures.ranks]
    if len(ranks) <= most:
        return ranks
    spread = {ranks[index * (len(ranks) - 1) // (most - 2)] for index in range(most - 1)}
    return sorted(spread | {figures.most_lost.rank})


def draw_time_line(figure: Figure, run: RunNotes, figures: RunFigures) -> None:
    """Draw what each rank did, over time."""
    shown = chosen_ranks(figures)
    figure.set_size_inches(10, 1.3 + 0.75 * len(shown))
    axes = figure.subplots()
    unit, name = _unit(figures.seconds)
    boxes: dict[str, list[Box]] = {what: [] for what in COLOURS}
    rates = {rank: fault_rates(run.ranks[rank]) for rank in shown}
    highest = max((rate for spans in rates.values() for _, _, rate in spans), default=0.0)
    for lane, rank in enumerate(shown):
        _add_program(boxes, run.ranks[rank], lane, unit)
        _add_drains(boxes, run.ranks[rank], lane, unit)
        if highest:
            faults = [
                (start / unit, stop / unit, lane + 0.9 - 0.22 * rate / highest, lane + 0.9)
                for start, stop, rate in rates[rank]
            ]
            boxes["writes held up"] += faults
    for what, found in boxes.items():
        _add_boxes(axes, what, found, thin=what in ("blocked at the cut", "waits at a safe point"))
    axes.set_xlim(0, figures.seconds / unit or 1)
    axes.set_ylim(len(shown), 0)
    axes.set_yticks([lane + 0.48 for lane in range(len(shown))], [f"rank {rank}" for rank in shown])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"time since the run began ({name})")
    axes.spines["left"].set_visible(False)
    labels = {what: what for what in COLOURS if boxes[what]}
    if highest:
        labels["writes held up"] = f"writes held up, at most {highest:,.0f} a second"
    _add_legend(figure, labels)


def _add_program(boxes: dict[str, list[Box]], notes: RankNotes, lane: int, unit: float) -> None:
    """Add the upper band: what the program did."""
    waits = [wait for epoch in notes.epochs for wait in epoch.waits]
    if notes.end is not None:
        last = max((epoch.drained for epoch in notes.epochs), default=0.0)
        waits += [*notes.end.waits, (notes.end.closing, max(0.0, last - notes.end.closing))]

    def add(what: str, spans: Iterable[Span]) -> None:
        boxes[what] += [
            (start / unit, (start + seconds) / unit, lane + 0.08, lane + 0.38)
            for start, seconds in spans
            if seconds > 0
        ]

    add("noted as sums", [(0.0, notes.sums.until)])
    add("computes", [(notes.sums.until, notes.seconds - notes.sums.until)])
    add("waits at a safe point", waits)
    add("blocked at the cut", [(epoch.cut, epoch.blocked) for epoch in notes.epochs])


def _add_drains(boxes: dict[str, list[Box]], notes: RankNotes, lane: int, unit: float) -> None:
    """Add the middle band: each drain, its height divided by the kinds of drained bytes."""
    for epoch in notes.epochs:
        bottom = lane + 0.64
        for what, name in DRAINED.items():
            height = 0.22 * getattr(epoch, name) / max(1, epoch.bytes_written)
            if height > 0:
                boxes[what].append((epoch.cut / unit, epoch.drained / unit, bottom - height, bottom))
            bottom -= height


def _add_boxes(axes: Axes, what: str, boxes: Sequence[Box], *, thin: bool) -> None:
    """Draw boxes in the colour of their kind; those that may be too thin to see get an edge."""
    if not boxes:
        return
    corners = [[(left, low), (left, high), (right, high), (right, low)] for left, right, low, high in boxes]
    edge: dict[str, Any] = {"edgecolors": COLOURS[what], "linewidths": 0.8} if thin else {"linewidths": 0}
    axes.add_collection(PolyCollection(corners, facecolors=COLOURS[what], rasterized=len(boxes) > MANY, **edge))


# -- the epochs --------------------------------------------------------------------------------------------------------


def draw_epochs(figure: Figure, epochs: Sequence[EpochFigures]) -> None:
    """Draw what each epoch cost, how it was drained, and how fast."""
    figure.set_size_inches(10, 6.4)
    above, middle, below = figure.subplots(3, sharex=True)
    longest = max(epoch.added for epoch in epochs)
    unit, name = (1.0, "s") if longest >= 1 else (1e-3, "ms")
    parts = {
        "blocked at the cut": [epoch.blocked / unit for epoch in epochs],
        "writes held up": [epoch.faulted / unit for epoch in epochs],
        "waits at a safe point": [epoch.waited / unit for epoch in epochs],
    }
    _stack(above, epochs, parts, "What the program lost", name)
    scale, size = _size(max(epoch.nbytes for epoch in epochs))
    drained = {what: [getattr(epoch, name) / scale for epoch in epochs] for what, name in DRAINED.items()}
    _stack(middle, epochs, drained, "Bytes written", size)
    fast, speed = _size(max(epoch.bandwidth for epoch in epochs))
    right = middle.twinx()
    numbers, speeds = [epoch.epoch for epoch in epochs], [epoch.bandwidth / fast for epoch in epochs]
    right.plot(numbers, speeds, color=INK, linewidth=1, marker=".", markersize=4)
    right.set_ylabel(f"{speed} a second (line)")
    right.set_ylim(bottom=0)
    right.spines["right"].set_visible(True)
    blocks: dict[str, list[float]] = {
        "blocks copied": [epoch.blocks_copied for epoch in epochs],
        "blocks saved as they were": [epoch.blocks_drained for epoch in epochs],
    }
    _stack(below, epochs, blocks, "Blocks that the slot lacked", "blocks")
    below.set_xlabel("epoch")
    below.xaxis.get_major_locator().set_params(integer=True)
    shown = {what for what, values in (parts | drained | blocks).items() if any(values)}
    _add_legend(figure, {what: what for what in COLOURS if what in shown})


def _stack(
    axes: Axes, epochs: Sequence[EpochFigures], parts: Mapping[str, Sequence[float]], title: str, label: str
) -> None:
    """Draw a stacked bar for each epoch."""
    floor = [0.0] * len(epochs)
    for what, values in parts.items():
        boxes = [
            (epoch.epoch - 0.4, epoch.epoch + 0.4, low, low + value)
            for epoch, low, value in zip(epochs, floor, values, strict=True)
            if value > 0
        ]
        _add_boxes(axes, what, boxes, thin=False)
        floor = [low + value for low, value in zip(floor, values, strict=True)]
    axes.set_xlim(epochs[0].epoch - 0.6, epochs[-1].epoch + 0.6)
    axes.set_ylim(0, 1.08 * max(floor) or 1)
    axes.set_title(title)
    axes.set_ylabel(label)


# -- both --------------------------------------------------------------------------------------------------------------


def _add_legend(figure: Figure, labels: dict[str, str]) -> None:
    patches = [Patch(color=COLOURS[what], label=text) for what, text in labels.items()]
    if patches:
        figure.legend(handles=patches, loc="outside upper left", ncols=4, frameon=False, handlelength=1, handleheight=1)


def _unit(seconds: float) -> tuple[float, str]:
    """Choose the unit of a time axis."""
    for unit, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 3 * unit:
            return unit, name
    return 1.0, "seconds"


def _size(nbytes: float) -> tuple[float, str]:
    """Choose the unit of an axis of bytes."""
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if nbytes >= 1024**power:
            return float(1024**power), name
    return 1.0, "B"
