"""The layers of docs/design.md, read from the imports: whoever breaks one has to change this file too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mpickpt"

# A module is named by the first part of its path: cli/run.py belongs to "cli". Imports point from an
# earlier row to a later one; within a row only where SIBLINGS says so, and never in a circle.
ROWS = (
    ("__init__", "__main__", "cli"),
    (
        *("api", "session", "driver", "epochs", "checkpointer", "recorder", "triggers", "restore", "sources", "lazy"),
        "saving",
        *("archive", "compare", "reader", "stored", "image", "watching", "hang"),
    ),
    ("snapshot", "guard", "memory", "forks", "termination", "takeover", "store", "coordinator", "slurm", "progress"),
    (
        *("outcome", "steps", "launcher", "texts"),
        *("protocol", "channels", "replay", "inflight", "bindings", "references"),
        *("policy", "options", "layout", "parts", "slicing", "subclasses", "stats", "notes", "figures", "quantities"),
        *("extents", "holders", "retry", "waiting", "errors"),
    ),
)
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}
SIBLINGS = {0, 1, 3}  # not the middle row: what owns a foreign dependency knows of no other

# The foreign dependency that a module may have (store: two faces of HDF5); the standard library and numpy are free.
FOREIGN = {
    "snapshot": {"mpickpt._native"},
    "guard": {"mpickpt._native"},
    "forks": {"mpickpt._native"},
    "termination": {"mpickpt._native"},
    "takeover": {"mpickpt._native"},
    "store": {"h5py", "h5netcdf"},
    "coordinator": {"mpi4py"},
    "progress": {"rich"},
    "reader": {"xarray"},
    "stored": {"xarray"},
    "cli": {"rich", "matplotlib"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Return the absolute names of all imports: ``from .layout import Part`` is mpickpt.layout.Part."""
    parts = ["mpickpt", *path.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            found.update(".".join([*base, alias.name]) for alias in node.names)
    return found


def _own(path: Path) -> set[str]:
    """Return the mpickpt modules that a file imports, without its own and without the extension module."""
    names = [name.split(".") for name in _imports(path)]
    own = {name[1] if len(name) > 1 else "__init__" for name in names if name[0] == "mpickpt"} - {"_native"}
    return {name if name in ROW_OF else "__init__" for name in own} - {_module(path)}


def _foreign(path: Path) -> set[str]:
    names = _imports(path)
    found = {"mpickpt._native" for name in names if name.startswith("mpickpt._native")}
    tops = {name.partition(".")[0] for name in names}
    return found | (tops - set(sys.stdlib_module_names) - {"mpickpt", "numpy"})


def test_every_layer_is_there() -> None:
    modules = {_module(path) for path in FILES}
    assert modules == set(ROW_OF), "a new module has to be given its place in ROWS, an old one taken out"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    row = ROW_OF[_module(path)]
    for target in _own(path):
        if ROW_OF[target] == row:
            assert row in SIBLINGS, f"{path.name} imports {target}, which stands beside it"
        else:
            assert ROW_OF[target] > row, f"{path.name} imports {target}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_foreign_dependency(path: Path) -> None:
    assert _foreign(path) <= FOREIGN.get(_module(path), set())


def test_no_imports_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in ROW_OF}
    for path in FILES:
        graph[_module(path)] |= _own(path)
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {module for module, targets in graph.items() if module not in done and targets <= done}
        assert ready, f"{sorted(set(graph) - done)} import each other"
        done |= ready


def test_native_library_knows_neither_python_nor_mpi_nor_hdf5() -> None:
    native = PACKAGE.parent / "native"
    sources = [*native.glob("src/*.[ch]"), *native.glob("include/*.h")]
    assert sources
    for source in sources:
        for line in source.read_text().splitlines():
            if line.lstrip().startswith("#include"):
                assert not any(word in line.lower() for word in ("python.h", "mpi.h", "hdf5", "nanobind")), source
