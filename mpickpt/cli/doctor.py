"""Find out what this machine and a directory give to checkpoints, by trying it.

    mpickpt doctor                                  here
    mpickpt doctor /scratch/me                      in the directory that will hold the checkpoints
    mpirun -n 8 mpickpt doctor /scratch/me          and compare the ranks' nodes with each other

This takes a few seconds, and 64 MiB of memory and disk for each rank. Exits with 1 if mpickpt cannot work well here.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpickpt.cli import probes, tables
from mpickpt.cli.places import add_json, open_directory
from mpickpt.cli.probes import Finding
from mpickpt.errors import MpickptError, StoreError
from mpickpt.mpi import about_mpi, broadcast_world, gather_world, world_rank_and_size
from mpickpt.texts import counted

MARKS = {"ok": "ok", "note": "-", "bad": "!!"}  # from good to bad


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("directory", type=Path, metavar="DIR", nargs="?", default=Path(), help="where to try; here")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Run the probes; return 1 if a finding is bad. Under mpirun, rank 0 prints the findings of all ranks."""
    mpi = about_mpi()
    with _token(args.directory) as token:
        told = gather_world(_own(args.directory, mpi, token))
    if told is None:
        return 0
    if all(rank["error"] for rank in told):
        raise told[0]["error"]
    findings = [Finding(f"MPI {name}", value) for name, value in mpi.items()]
    findings += _joined(told) + _comparison(told)
    if args.json:
        ranks = [{"host": rank["host"], "versions": rank["versions"]} for rank in told]
        tables.print_json({"findings": [vars(finding) for finding in findings], "ranks": ranks})
    else:
        _print(args.directory, told, findings)
    return 1 if any(finding.state == "bad" for finding in findings) else 0


def _print(directory: Path, told: list[dict[str, Any]], findings: list[Finding]) -> None:
    hosts = sorted({rank["host"] for rank in told})
    print(f"{counted(len(told), 'rank')} on {', '.join(hosts)}, in {directory.resolve()}\n")
    rows = [(MARKS[f.state], f.name, f.found, f.meaning) for f in findings]
    tables.draw_table(("", "what", "found", "what it means"), rows)
    worst = max((finding.state for finding in findings), key=list(MARKS).index)
    print("\n" + {"ok": "All is well.", "note": "It will work.", "bad": "See to what is marked with !!"}[worst])


@contextmanager
def _token(directory: Path) -> Iterator[str]:
    """Create a file on rank 0 that the others look for; yields its path, or "" if it cannot be created."""
    token = ""
    if world_rank_and_size()[0] == 0:
        with suppress(OSError):
            fd, token = tempfile.mkstemp(prefix=".mpickpt-doctor-", dir=directory)
            os.close(fd)
    try:
        yield broadcast_world(token)
    finally:
        if token:
            Path(token).unlink(missing_ok=True)


def _own(place: Path, mpi: dict[str, str], token: str) -> dict[str, Any]:
    """Run the probes of this rank."""
    host = socket.gethostname()
    told: dict[str, Any] = {"host": host, "versions": probes.versions() | mpi, "findings": [], "error": None}
    try:
        told["findings"] = [*probes.system(), *probes.directory(open_directory(place).directory)]
    except MpickptError as error:
        told["error"] = error
    except OSError as error:
        message = f"Nothing can be written in {place} on {host}: {error.strerror}. Choose another directory."
        told["error"] = StoreError(message, errno=error.errno, path=place)
    told["sees"] = not token or Path(token).exists()
    return told


def _joined(told: list[dict[str, Any]]) -> list[Finding]:
    """Merge the findings of all ranks; a measured one shows the smallest and the largest value."""
    by_name: dict[str, list[tuple[int, Finding]]] = defaultdict(list)
    for number, rank in enumerate(told):
        for finding in rank["findings"]:
            by_name[finding.name].append((number, finding))
    joined = []
    for found in by_name.values():
        worst = max((finding for _, finding in found), key=lambda finding: list(MARKS).index(finding.state))
        if worst.value:
            least, most = (pick((f for _, f in found), key=lambda f: f.value) for pick in (min, max))
            text = least.found if least.found == most.found else f"{least.found} to {most.found}"
        else:
            text = _by_rank([(number, finding.found) for number, finding in found])
        joined.append(replace(worst, found=text))
    return joined


def _comparison(told: list[dict[str, Any]]) -> list[Finding]:
    """Compare the ranks and their nodes with each other."""
    findings = []
    for key in told[0]["versions"]:
        values = [(number, str(rank["versions"].get(key))) for number, rank in enumerate(told)]
        if len({value for _, value in values}) > 1:
            state: probes.State = "note" if key == "kernel" else "bad"
            findings.append(Finding(f"same {key}", _by_rank(values), state, "the ranks' nodes differ"))
    blind = [number for number, rank in enumerate(told) if not rank["sees"]]
    if blind:
        hosts = ", ".join(sorted({told[number]["host"] for number in blind}))
        meaning = "choose a directory on a file system that all nodes see"
        findings.append(Finding("directory", f"not that of rank 0 on {hosts} ({tables.ranks(blind)})", "bad", meaning))
    for number, rank in enumerate(told):
        if rank["error"]:
            findings.append(Finding("directory", f"rank {number}: {rank['error']}", "bad"))
    if len(told) > 1 and not findings:
        findings.append(Finding("comparison", "versions and limits are the same, and all see the directory"))
    return findings


def _by_rank(values: list[tuple[int, str]]) -> str:
    """Format one value, or each value with the ranks that have it."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for number, value in values:
        numbers[value].append(number)
    if len(numbers) == 1:
        return values[0][1]
    return "; ".join(f"{value} ({tables.ranks(ranks)})" for value, ranks in numbers.items())
