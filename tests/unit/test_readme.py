"""README.md: short, readable on a terminal and without the other files, with measured figures."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
LINES = 125  # of a page that is read at one go


def section(title: str) -> str:
    """Give the text of one section."""
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_it_is_short() -> None:
    assert README.count("\n") <= LINES
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2 and all(len(line) <= 100 for block in blocks for line in block.splitlines())
    assert all(len(line) <= 104 for line in re.findall(r"^    .*$", README, re.MULTILINE))


def test_a_picture_is_where_everybody_sees_it() -> None:
    """A package index knows no files of the sources, so a picture has an absolute address or is drawn in text."""
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)|<img[^>]* src=\"([^\"]*)", README)
    assert [name for found in pictures for name in found if name and not name.startswith("https://")] == []
    assert "slot-1.h5" in README.partition("```text\n")[2].partition("```")[0]


def test_each_figure_was_measured() -> None:
    """Each stands on the page of results or in the notebook behind it, where it has its date and machine."""
    table = "\n".join(line for line in section("What it costs").splitlines() if line.startswith("| "))
    rows = table.splitlines()[1:]
    number = r"(?<![\d.,])\d[\d.,]*\d(?![\d.,])"
    figures = re.findall(rf"{number} to {number}|{number}", table)
    pages = [(ROOT / "docs" / name).read_text() for name in ("performance.md", "notebook.md")]
    assert len(rows) == 4 and len(figures) >= 12
    for cell in (row.split(" | ")[1] for row in rows[1:]):  # the notebook has the two figures of the first row apart
        assert cell in pages[0]
    for figure in figures:
        assert any(re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d,]|\.\d)", page) for page in pages), figure


def test_what_it_is_and_is_not() -> None:
    choice = section("When to choose it, and when not")
    for name in ("VELOC", "SCR", "DMTCP", "MANA", "h5py by hand", "docs/comparison.md"):
        assert name in choice
    assert "not related" in choice
    assert "EP 1 484 680 A1" in README and "June 2023" in README
