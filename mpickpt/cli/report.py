"""Draw what a program's checkpoints cost it, and when: a page to open in a browser.

    mpickpt report heat.ckpt                         writes heat.ckpt.html, of the latest run
    mpickpt report heat.ckpt --run all --png         all runs, and the pictures beside the page as PNG
    mpickpt report heat.ckpt -o heat.html --mtbf 12h
    mpickpt report heat.ckpt --json | jq '.runs[0].lost_share'

The page shows a time line of each rank; for each epoch how long the program was blocked, what it lost, bytes and
bandwidth; what the whole run lost, and how often to cut. The ranks take notes while they run, in the folder runs of the
directory (unless MPICKPT_RECORD or mpickpt run --no-record disables it), so this works during a run, too. Drawing needs
matplotlib: pip install 'mpickpt[report]'.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mpickpt.cli import tables
from mpickpt.cli.places import add_json, open_directory
from mpickpt.errors import EpochError, UsageError
from mpickpt.options import parse_seconds
from mpickpt.report.figures import RunFigures, figures_of
from mpickpt.report.files import read_run, runs
from mpickpt.report.notes import RunNotes
from mpickpt.report.page import Section, page, percent
from mpickpt.store import appearing
from mpickpt.texts import counted
from mpickpt.units import human_seconds

if TYPE_CHECKING:
    from types import ModuleType


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint directory")
    parser.add_argument("-o", dest="out", type=Path, metavar="FILE", help="the page to write; DIR.html, here")
    parser.add_argument(
        "--run", default="latest", metavar="WHICH", help="latest (the default), all, or a number: 1 is the oldest"
    )
    parser.add_argument("--png", action="store_true", help="write the pictures as PNG too, beside the page")
    parser.add_argument(
        "--mtbf", metavar="TIME", help="time between two failures of the job; as the program was told, or 1d"
    )
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Write the page, or print the figures; an existing page is overwritten."""
    mtbf = None if args.mtbf is None else _mtbf(args.mtbf)
    directory = open_directory(args.directory).directory
    found = [(number, run, figures_of(run, mtbf)) for number, run in _chosen(directory, args.run)]
    if args.json:
        told = [_described(number, figures) for number, _, figures in found]
        tables.print_json({"directory": str(args.directory), "runs": told})
        return 0
    out = args.out or Path(f"{directory.resolve().name}.html")
    pictures = _pictures()
    sections, written = [], []
    for number, run, figures in found:
        drawings = {"time-line": partial(pictures.draw_time_line, run=run, figures=figures)}
        if figures.epochs:
            drawings["epochs"] = partial(pictures.draw_epochs, epochs=figures.epochs)
        svg = {name: pictures.draw_svg(f"{name} of run {number}", draw) for name, draw in drawings.items()}
        left_out = len(figures.ranks) - len(pictures.chosen_ranks(figures))
        sections.append(Section(number, figures, svg["time-line"], svg.get("epochs"), left_out))
        for name, draw in drawings.items() if args.png else ():
            written.append(
                out.with_name(f"{out.stem}-{name}-{number}.png" if len(found) > 1 else f"{out.stem}-{name}.png")
            )
            with appearing(written[-1]) as new:
                pictures.draw_png(new, draw)
    with appearing(out) as new:
        new.write_text(page(directory.resolve().name, sections), encoding="utf-8")
    for number, _, figures in found:
        print(_sentence(number, figures))
    print(f"written: {', '.join(map(str, [out, *written]))}")
    return 0


def _mtbf(text: str) -> float:
    try:
        return parse_seconds(text)
    except UsageError as error:
        raise UsageError(f"Option --mtbf: {error}") from None


def _chosen(directory: Path, which: str) -> list[tuple[int, RunNotes]]:
    """Read the notes of the runs that are asked for, with their numbers."""
    names = dict(enumerate(runs(directory), 1))
    if not names:
        raise EpochError(
            f"There are no notes of any run in {directory}. A program takes them while it runs, from its first safe "
            f"point on, unless record=False, MPICKPT_RECORD or --no-record says not to."
        )
    if which == "all":
        numbers = list(names)
    elif which == "latest":
        numbers = [max(names)]
    elif which.isdecimal() and int(which) in names:
        numbers = [int(which)]
    else:
        raise UsageError(
            f"There is no run {which!r} in {directory}: say latest, all, or a number from 1 (the oldest) "
            f"to {max(names)}."
        )
    read = [(number, read_run(directory, names[number])) for number in numbers]
    found = [(number, run) for number, run in read if run.ranks]
    if not found:
        raise EpochError(f"No rank has noted anything of run {which} in {directory} yet. Try again in a moment.")
    return found


def _pictures() -> ModuleType:
    try:
        from mpickpt.report import pictures
    except ImportError as error:
        raise UsageError(
            f"Drawing needs matplotlib, which cannot be imported ({error}): pip install 'mpickpt[report]'. "
            f"--json does without."
        ) from None
    return pictures


def _sentence(number: int, figures: RunFigures) -> str:
    noted = counted(len(figures.epochs) + figures.summed, "epoch")
    most = figures.most_lost
    told = f"run {number}: {noted} in {human_seconds(figures.seconds)}"
    told += f" on {counted(figures.world_size, 'rank')}"
    told += f"; lost to checkpoints: {percent(most.share)} (rank {most.rank}, the most)"
    if figures.interval is not None:
        told += f"; best interval: {human_seconds(figures.interval.best)}"
    return told


def _described(number: int, figures: RunFigures) -> dict[str, object]:
    own = {
        name: getattr(figures, name) for name in ("started_ns", "world_size", "seconds", "ended", "restored", "summed")
    }
    epochs = [asdict(epoch) | {"added": epoch.added, "bandwidth": epoch.bandwidth} for epoch in figures.epochs]
    ranks = [asdict(rank) | {"lost": rank.lost, "lost_share": rank.share} for rank in figures.ranks]
    shares = {"lost_share": figures.most_lost.share, "lost_share_mean": figures.mean_share}
    interval = None if figures.interval is None else asdict(figures.interval)
    return {
        "run": number,
        "name": figures.name,
        **own,
        **shares,
        "interval": interval,
        "epochs": epochs,
        "ranks": ranks,
    }
