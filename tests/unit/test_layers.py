"""The layers of docs/design.md, read from the imports of each file: to break one, you must change this file, too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mpickpt"

# Folders, and the files beside them. A file imports what stands below its own folder, or another file of its folder,
# and never in a circle. What is for type checkers alone counts, and so does what a function imports when it is called.
ORDER = (
    *("__main__", "__init__", "cli", "session", "restart", "reading", "report", "mpi", "snapshot", "signals", "store"),
    *("slurm", "references", "layout", "messages", "protocol"),
    *("options", "terminal", "units", "stats", "retry", "waiting", "texts", "errors"),
)
FLAT_FILES = 12  # at most, so that the folders can be seen

# The foreign dependencies that a folder or file may have; the standard library and numpy are free.
FOREIGN = {
    "snapshot": {"mpickpt._native"},
    "signals": {"mpickpt._native"},
    "store": {"h5py", "h5netcdf"},
    "mpi": {"mpi4py"},
    "terminal": {"rich"},
    "reading": {"xarray"},
    "report": {"matplotlib"},
    "cli": {"rich"},
}

FILES = sorted(PACKAGE.rglob("*.py"))
NATIVE = "mpickpt._native"


def _name(path: Path) -> str:
    """Give a file's name as an import has it."""
    return ".".join(["mpickpt", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


FILE_OF = {_name(path): path for path in FILES}


def _room(path: Path) -> str:
    """Give the name of a file's folder, or of the file itself if it is in none."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Return the absolute names of all imports: ``from .parts import Part`` is mpickpt.layout.parts.Part."""
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


def _own(path: Path) -> set[Path]:
    """Return the files of mpickpt that a file imports; the extension module is none."""
    found = set()
    for name in _imports(path):
        if name.startswith("mpickpt") and not name.startswith(NATIVE):
            while name not in FILE_OF:
                name = name.rpartition(".")[0]
            found.add(FILE_OF[name])
    return found - {path}


def _foreign(path: Path) -> set[str]:
    names = _imports(path)
    found = {NATIVE for name in names if name.startswith(NATIVE)}
    tops = {name.partition(".")[0] for name in names}
    return found | (tops - set(sys.stdlib_module_names) - {"mpickpt", "numpy"})


def test_every_layer_is_there() -> None:
    rooms = {_room(path) for path in FILES}
    assert rooms == set(ORDER), "a new folder has to be given its place in ORDER, an old one taken out"
    assert len(list(PACKAGE.glob("*.py"))) <= FLAT_FILES


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda folder: f"folder {folder.name}")
def test_a_folder_says_what_lives_there(folder: Path) -> None:
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    row = ORDER.index(_room(path))
    wrong = [str(target) for target in _own(path) if ORDER.index(_room(target)) < row]
    assert not wrong, f"{path} imports {wrong}, which stand above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_foreign_dependency(path: Path) -> None:
    assert _foreign(path) <= FOREIGN.get(_room(path), set())


def test_no_imports_in_a_circle() -> None:
    graph = {path: _own(path) for path in FILES}
    done: set[Path] = set()
    while len(done) < len(graph):
        ready = {path for path, targets in graph.items() if path not in done and targets <= done}
        assert ready, f"{sorted(str(path.relative_to(PACKAGE)) for path in set(graph) - done)} import each other"
        done |= ready


def test_native_library_knows_neither_python_nor_mpi_nor_hdf5() -> None:
    native = PACKAGE.parent / "native"
    sources = [*native.glob("src/*.[ch]"), *native.glob("include/*.h")]
    assert sources
    for source in sources:
        for line in source.read_text().splitlines():
            if line.lstrip().startswith("#include"):
                assert not any(word in line.lower() for word in ("python.h", "mpi.h", "hdf5", "nanobind")), source
