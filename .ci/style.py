"""Refuses files, classes and functions that outgrew their purpose, and words that are not the field's; `make lint`.

A newcomer reads a file in one sitting. Each word of `WORDS` has no other use here than to name what its right column
names in the standard terms.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, CLASS_LINES, FUNCTION_LINES, FLAT_MODULES = 400, 300, 60, 12
# At most three, each with its reason.
LONG_FILES: dict[str, str] = {}

WORDS = {
    r"arm|armed|arming|Armed|Arming": "write-protect, protected",
    r"settled|Settled": "decided",
    r"wish|wishes|Wish|Wishes": "request",
    r"lull|Lull": "idle period",
    r"hurry|Hurry": "boost",
    r"unhold": "unpin",
    r"sticky": "pinned",
    r"unseen write|unseen writes|unseen writer|unseen writers": "untracked",
    r"swallow|swallows|swallowed|Swallow": "suppress",
    r"anew": "again",
    r"mended": "fixed",
    r"in the midst of|In the midst of": "inside",
    r"in vain": "needlessly",
    r"fared": "did",
}
# What a line may hold all the same: names that are not ours, or that files on disk have.
NAMES = (
    "position: sticky",  # of a style sheet
    "ubuntu-24.04-arm",  # the processor
    '"swallow"',  # a list in the first version of the messages in flight
)
NO_PROSE = {".ci/style.py"}
PATTERN = re.compile("|".join(rf"\b(?:{words})\b" for words in WORDS))


def functions(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the line and the length of each function, without its docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            yield node.name, node.lineno, (node.end_lineno or 0) - node.lineno + 1 - docstring


def python_sizes(text: str) -> Iterator[str]:
    """Yield what is too long in a Python file."""
    tree = ast.parse(text)
    for name, line, length in functions(tree):
        if length > FUNCTION_LINES:
            yield f"{line}: function {name} has {length} lines, {FUNCTION_LINES} at most"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > CLASS_LINES:
            yield f"{node.lineno}: class {node.name} has {length} lines, {CLASS_LINES} at most"


def c_sizes(text: str) -> Iterator[str]:
    """Yield what is too long in a C or C++ file: blocks that begin and end at the left, or a level inside a class."""
    began: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        indent = re.match(r" *", line)[0]  # type: ignore[index]
        if len(indent) > 4:
            continue
        body = line.strip()
        if body.endswith("{") and body != "{" and not body.startswith(("enum", "namespace", 'extern "C"')):
            began[indent] = number, body
        elif body.startswith("}") and indent in began:
            start, head = began.pop(indent)
            is_type = head.startswith(("struct", "class", "typedef"))
            kind, most = ("type", CLASS_LINES) if is_type else ("function", FUNCTION_LINES)
            if number - start + 1 > most:
                yield f"{start}: {kind} of {number - start + 1} lines, {most} at most: {head}"


def sizes(path: Path) -> Iterator[str]:
    """Yield what is too long in a source file."""
    text = path.read_text()
    lines = text.count("\n")
    if lines > FILE_LINES and str(path) not in LONG_FILES:
        yield f"1: {lines} lines, {FILE_LINES} at most"
    yield from python_sizes(text) if path.suffix == ".py" else c_sizes(text)


def words(path: Path) -> Iterator[str]:
    """Yield the words of a text file that stand for others."""
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    for number, line in enumerate(text.splitlines(), 1):
        for name in NAMES:
            line = line.replace(name, "")
        for found in PATTERN.finditer(line):
            instead = next(word for old, word in WORDS.items() if re.fullmatch(old, found[0]))
            yield f"{number}: {found[0]!r}: say {instead}"


def main() -> int:
    """Print each fault as ``file:line: what``; 1 if there are any."""
    tracked = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True).stdout.split()
    files = [path for path in map(Path, tracked) if path.is_file()]
    faults = [f"{path}:{fault}" for path in files if str(path) not in NO_PROSE for fault in words(path)]
    for path in files:
        if path.parts[0] in ("mpickpt", "native") and path.suffix in (".py", ".c", ".h", ".cpp"):
            faults += [f"{path}:{fault}" for fault in sizes(path)]
    flat = [path for path in files if path.parent == Path("mpickpt") and path.suffix == ".py"]
    if len(flat) > FLAT_MODULES:
        faults.append(f"mpickpt: {len(flat)} modules lie flat, {FLAT_MODULES} at most")
    print("\n".join(faults), end="\n" if faults else "")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
