"""Finds the messages of mpickpt in its sources: exceptions, warnings, and output on stderr.

A message is a text with an ellipsis for each value that is inserted. If a call takes a name, an attribute or the result
of another function, its possible texts are looked up, too; and so are the parts of a text that has no words of its own,
such as ``f"{path}: {reason}"``.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "mpickpt"

# Methods and functions that hand on what they are given, to stderr or to a warning.
TELLERS = ("_tell", "_tell_once", "_no_end", "_say", "_print", "_warn", "_give_up", "Bar")
EXCEPTIONS = ("NothingToRestore", "WaitTimeout", "NoProgress")
NOBODY_SEES = {  # mistakes of mpickpt itself, whose own tests would find them
    "protocol/policy.py": ("… slots cannot keep",),
    "snapshot/snapshotter.py": ("… bytes of objects do not fit", "channels follow, and it is not known"),
    "__init__.py": ("module … has no attribute …",),  # Python's own words
    "store/__init__.py": ("module … has no attribute …",),
}


@dataclass
class _Sources:
    """What a name may stand for: the values of attributes, and the texts that functions return."""

    attributes: dict[str, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))
    returns: dict[str, list[ast.expr]] = field(default_factory=lambda: defaultdict(list))


def messages() -> dict[str, str]:
    """Give all messages, and for each the file and line where it is made."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    sources = _Sources()
    for tree in trees.values():
        _take_in(tree, sources)
    found: dict[str, str] = {}
    for path, tree in trees.items():
        name = str(path.relative_to(PACKAGE))
        for call, function in _telling_calls(tree):
            for argument in call.args:
                for text in _texts(argument, _assigned(function), sources):
                    if _has_words(text) and not text.startswith(NOBODY_SEES.get(name, ())):
                        found.setdefault(text.removeprefix("mpickpt: "), f"{name}:{call.lineno}")
    return found


def _take_in(tree: ast.Module, sources: _Sources) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Attribute):
                    sources.attributes[target.attr].append(node.value)
        elif isinstance(node, ast.FunctionDef):
            names = _assigned(node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value:
                    sources.returns[node.name] += _values(inner.value, names)
                elif isinstance(inner, ast.keyword) and inner.arg:  # an attribute of what is made
                    sources.attributes[inner.arg] += _values(inner.value, names)


def _values(node: ast.expr, names: dict[str, list[ast.expr]]) -> list[ast.expr]:
    return names.get(node.id, []) if isinstance(node, ast.Name) else [node]


def _telling_calls(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.AST]]:
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and _tells(node):
                yield node, function


def _tells(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "print":
        return any(keyword.arg == "file" and ast.unparse(keyword.value) == "sys.stderr" for keyword in call.keywords)
    return name.endswith("Error") or name in (*EXCEPTIONS, *TELLERS, "warn")


def _assigned(function: ast.AST) -> dict[str, list[ast.expr]]:
    """Give what the names in a function are set to."""
    found: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found[target.id].append(node.value)
    return found


def _texts(node: ast.expr, names: dict[str, list[ast.expr]], sources: _Sources, depth: int = 0) -> Iterator[str]:
    """Give the texts that an expression may have, without those that are not written down anywhere."""
    if depth > 4:
        return
    inner: list[ast.expr] = []
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            text = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in parts)
            text = re.sub("…+", "…", text)
            if _has_words(text):
                yield text
            else:
                inner = [part.value for part in parts if isinstance(part, ast.FormattedValue)]
        case ast.BinOp(left=left):
            inner = [left]
        case ast.IfExp(body=body, orelse=other):
            inner = [body, other]
        case ast.BoolOp(values=values):
            inner = values
        case ast.Name(id=name):
            inner = names.get(name, [])
        case ast.Attribute(attr=name):
            inner = sources.attributes.get(name, []) + sources.returns.get(name, [])
            names = {}
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            inner = sources.returns.get(name, [])
    for each in inner:
        yield from _texts(each, names, sources, depth + 1)


def _has_words(text: str) -> bool:
    return len(re.findall(r"[A-Za-z]{2,}", text.replace("mpickpt:", ""))) > 1
