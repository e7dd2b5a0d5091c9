"""The samples in docs/cli.md are the output of the verbs, except for figures that vary between runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import mpickpt
from mpickpt.cli.main import VERBS
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"^(?:<!-- here ([^>]*) -->\n)?```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"\d[\d.]* (?:ms|s|us|min|h|%|[KMGT]?i?B)(?:/s)?(?![\w])")
USER = re.compile(r"process \d+ on [\w.-]+")
FINDING = re.compile(r"^(?:ok|-|!+|bad|note)\s+(\S.*?)\s{2,}", re.MULTILINE)
CHANGED_BLOCK = 3


def samples() -> Iterator[tuple[str, str, str]]:
    """Go through the commands of the page: what happens before, the command, and what it prints."""
    for before, kind, text in BLOCK.findall(PAGE.read_text()):
        if kind == "console":
            for command, told in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                yield before, command, told
                before = ""


def compared(text: str, folder: str) -> list[str]:
    """Leave out of an output what is measured, and how wide the columns are for it."""
    lines = []
    for line in text.replace(folder, "/home/me").splitlines():
        line = USER.sub("process # on #", MEASURED.sub("#", line))
        if line.startswith("0     complete"):  # what the program copied depends on how fast the drain was
            line = re.sub(r"\b\d+\b", "#", line)
        lines.append(" ".join(line.split()))
    return lines


def run(command: str, folder: Path) -> str:
    """Run one line of the page, and give what it prints."""
    words = shlex.split(command)
    at = words.index("mpickpt")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MPICKPT_", "SLURM_"))}
    found = subprocess.run(
        [sys.executable, "-m", "mpickpt", *words[at + 1 :]],
        cwd=folder,
        env=clean | dict(word.split("=", 1) for word in words[:at]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return found.stdout


def test_the_samples_are_what_the_verbs_print(tmp_path: Path) -> None:
    program = next(text for _, kind, text in BLOCK.findall(PAGE.read_text()) if kind == "python")
    (tmp_path / "heat.py").write_text(program)
    directory = tmp_path / "heat.ckpt"
    with ExitStack() as running:
        for before, command, told in samples():
            match before:
                case "":
                    pass
                case "a byte of block 3 in slot-0.h5 is changed":
                    change_a_byte(directory)
                case "a program begins to use heat.ckpt":
                    running.enter_context(mpickpt.open(directory))
                case "that program ends":
                    running.close()
                case _:
                    raise AssertionError(f"{before}: what is that?")
            found = run(command, tmp_path)
            if command.startswith("mpickpt doctor"):  # each machine has findings of its own
                assert FINDING.findall(found) == FINDING.findall(told)
                assert len(FINDING.findall(found)) > 10
            else:
                assert compared(found, str(tmp_path)) == compared(told, str(tmp_path)), command


def change_a_byte(directory: Path) -> None:
    store = Store(directory, crc32c)
    offset = store.offsets(0)[0].arrays[0] + CHANGED_BLOCK * (256 << 10)
    with (directory / "slot-0.h5").open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 1]))


def test_each_verb_has_a_sample() -> None:
    shown = {re.search(r"mpickpt (\w+)", command)[1] for _, command, _ in samples()}  # type: ignore[index]
    assert shown == set(VERBS)
