"""Finds the classes of mpickpt that a program can get: public ones, what they return, and their attributes."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache

import mpickpt

PACKAGE = mpickpt.__name__


def handed_out(*more: type) -> dict[type, str]:
    """Find the classes that a program gets from the public names, or from objects of the classes `more`.

    Returns
    -------
    dict of type to str
        Each class, with the place that hands it out.
    """
    found: dict[type, str] = {}
    public = [(getattr(mpickpt, name), "mpickpt") for name in mpickpt.__all__]
    waiting: list[tuple[object, str]] = [*public, *((kind, "given") for kind in more)]
    while waiting:
        thing, place = waiting.pop()
        if not isinstance(thing, type):
            waiting += [(kind, f"{thing.__name__}()") for kind in _returned(thing)]  # type: ignore[attr-defined]
        elif _is_ours(thing) and thing not in found:
            found[thing] = place
            waiting += [(kind, f"{thing.__name__}.{name}") for name, kind in _members(thing)]
    return found


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == PACKAGE


def _members(kind: type) -> Iterator[tuple[str, type]]:
    """Go through what methods and properties return, and what attributes are."""
    foreign = {name for base in kind.__mro__ if not _is_ours(base) and base is not object for name in vars(base)}
    for base in filter(_is_ours, kind.__mro__):
        for name, member in vars(base).items():
            special = name in ("__getitem__", "__iter__", "__enter__")
            # of a class that goes on a foreign one (an MPI communicator), a program calls what it knows from there
            if (name.startswith("_") and not special) or (foreign and name not in foreign):
                continue
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(function):
                yield from ((name, found) for found in _returned(function))
        if not foreign:
            for name, text in vars(base).get("__annotations__", {}).items():
                if not name.startswith("_"):
                    yield from ((name, found) for found in _classes(str(text), base.__module__))
            for name, text in re.findall(r"^([\w, ]+) : (.+)$", _attributes(base), re.MULTILINE):
                yield from ((name, found) for found in _classes(text, base.__module__))


def _attributes(kind: type) -> str:
    """Give the section "Attributes" of a numpydoc docstring."""
    text = inspect.cleandoc(vars(kind).get("__doc__") or "")
    return text.partition("\nAttributes\n----------\n")[2].partition("\n---")[0]


def _returned(function: object) -> Iterator[type]:
    annotation = inspect.signature(function).return_annotation  # type: ignore[arg-type]
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    yield from _classes(text, function.__module__)


def _classes(text: str, module: str) -> Iterator[type]:
    """Find the classes of mpickpt that a type names; `text` is an annotation, or what a docstring has in its place."""
    if module.partition(".")[0] != PACKAGE:
        return
    for name in re.findall(r"(?<![\w.\"'])[A-Za-z_]\w*", text):
        found = vars(sys.modules[module]).get(name) or _imported_for_types(module).get(name)
        if isinstance(found, type) and _is_ours(found):
            yield found


@cache
def _imported_for_types(module: str) -> dict[str, object]:
    """Import what a module imports under ``if TYPE_CHECKING`` from mpickpt."""
    found: dict[str, object] = {}
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == PACKAGE:
            for alias in node.names:
                home = __import__(node.module, fromlist=[alias.name])
                value = getattr(home, alias.name, None)
                if value is None:
                    value = _imported_for_types(node.module).get(alias.name)
                found[alias.asname or alias.name] = value
    return found
