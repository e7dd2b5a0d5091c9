"""Write arrays of an epoch into a file that other programs read.

    mpickpt export heat.ckpt heat.h5                     all global arrays, plain HDF5, compressed
    mpickpt export heat.ckpt:7 heat.nc                   the same as NetCDF (pip install 'mpickpt[netcdf]')
    mpickpt export heat.ckpt u.npy --array u             one array for numpy.load
    mpickpt export heat.ckpt r3.h5 --rank 3              the arrays of rank 3, with halo cells
    mpickpt export heat.ckpt heat.xdmf                   for ParaView, VisIt and PyVista, which read the slot itself

The suffix of the name selects the format: .npy, .h5 or .hdf5, .nc, .xdmf or .xmf. Arrays are read and checked piece by
piece, so little memory is needed. XDMF only says where they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mpickpt.cli import tables
from mpickpt.cli.places import PLACE, add_json, open_checkpoint
from mpickpt.errors import UsageError
from mpickpt.layout.holders import ranks_holding
from mpickpt.reading.array import StoredArray
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.snapshot import crc32c
from mpickpt.store import Exported, appearing, read_slot, write_hdf5, write_netcdf
from mpickpt.store.xdmf import Shown, write_xdmf
from mpickpt.texts import counted, told_ranks
from mpickpt.units import human_bytes

HDF5 = (".h5", ".hdf5")
XDMF = (".xdmf", ".xmf")
SUFFIXES = (".npy", *HDF5, ".nc", *XDMF)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument("place", metavar="PATH", help=PLACE)
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write: .npy, .h5, .hdf5, .nc, .xdmf or .xmf")
    parser.add_argument("--array", action="append", metavar="NAME", help="only this array; may be given several times")
    parser.add_argument("--rank", type=int, metavar="R", help="this rank's arrays, in place of global ones")
    parser.add_argument("--force", action="store_true", help="overwrite OUT if it exists")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    """Export the arrays."""
    checkpoint = open_checkpoint(args.place)
    arrays = _chosen(checkpoint, args.array, args.rank)
    _check_out(args.out, arrays, args.rank, args.force)
    attributes: dict[str, str | int] = {"source": str(checkpoint.path), "epoch": checkpoint.epoch}
    attributes["step"] = checkpoint.step
    if args.out.suffix in XDMF:
        arrays = _describe(args.out, checkpoint, arrays, told=sys.stderr)
    else:
        _copy(args, arrays, attributes)
    size = args.out.stat().st_size
    if args.json:
        names = [array.name for array in arrays]
        tables.print_json({"file": str(args.out), "arrays": names, "bytes": size, **attributes})
    else:
        what = counted(len(arrays), "array")
        print(f"{args.out}: {what} of epoch {checkpoint.epoch} ({human_bytes(size)})")
    return 0


def _copy(args: argparse.Namespace, arrays: list[StoredArray], attributes: dict[str, str | int]) -> None:
    total = sum(array.nbytes for array in arrays)
    with tables.bar(args.out.name, total, quiet=args.json) as progress, appearing(args.out) as new:
        exported = [
            Exported(array.name, array.shape, array.dtype, _told(array, progress), array.dims) for array in arrays
        ]
        if args.out.suffix == ".npy":
            _write_npy(new, arrays[0], exported[0])
        elif args.out.suffix == ".nc":
            write_netcdf(new, exported, attributes)
        else:
            write_hdf5(new, exported, attributes)


def _describe(out: Path, checkpoint: Checkpoint, arrays: list[StoredArray], told: TextIO) -> list[StoredArray]:
    """Write XDMF for those arrays that it can describe; say what it leaves out, and that a slot changes."""
    shown = {a.name: Shown(a.name, a.shape[::-1] if a.order == "F" else a.shape, a.dtype) for a in arrays}
    left_out = [f"{name} ({one.why_not})" for name, one in shown.items() if one.why_not]
    if len(left_out) == len(shown):
        raise UsageError(f"XDMF can describe none of the arrays: {', '.join(left_out)}. Export them to .h5 or .nc.")
    with appearing(out) as new:
        found = [one for one in shown.values() if not one.why_not]
        write_xdmf(new, checkpoint.path, found, f"epoch {checkpoint.epoch}", checkpoint.step)
    if left_out:
        print(f"XDMF cannot describe {', '.join(left_out)}: left out. Export to .h5 or .nc.", file=told)
    if checkpoint.path.name.startswith("slot-"):
        slot = checkpoint.path
        print(
            f"{out} shows what {slot} holds when it is opened. If a program saves there, archive the epoch.", file=told
        )
    return [array for array in arrays if not shown[array.name].why_not]


def _chosen(checkpoint: Checkpoint, names: list[str] | None, rank: int | None) -> list[StoredArray]:
    if rank is None:
        there = [info.name for info in checkpoint.arrays.values() if info.shape is not None]
        source: Any = checkpoint
        where = f"no global array {{}} in {checkpoint.path}{{}}"
    else:
        source = checkpoint.rank(rank)
        there = list(source)
        where = f"no array {{}} on rank {rank} of {checkpoint.path}{{}}"
    for name in names or ():
        if name not in there:
            ranks = ranks_holding(checkpoint.layout, name)
            others = f", but on {told_ranks(ranks)} (--rank {ranks[0]})" if ranks else ""
            raise UsageError(f"There is {where.format(repr(name), others)}. There is: {', '.join(there) or 'none'}.")
    if not there:
        raise UsageError(f"There is {where.format('to export', '')}; a rank's own: --rank.")
    return [source[name] for name in dict.fromkeys(names or there)]


def _check_out(out: Path, arrays: list[StoredArray], rank: int | None, force: bool) -> None:
    if out.suffix not in SUFFIXES:
        raise UsageError(f"The end of {out} does not tell a format: {', '.join(SUFFIXES)} do.")
    if out.suffix in XDMF and rank is not None:
        raise UsageError("XDMF describes global arrays; export those of a rank to .h5.")
    if out.suffix == ".npy" and len(arrays) > 1:
        names = ", ".join(array.name for array in arrays)
        raise UsageError(f"A .npy file holds one array; choose one of {names} by --array, or export to .h5.")
    if out.is_file() and read_slot(out, crc32c).readable:
        raise UsageError(f"{out} is a slot or an archived epoch, which is never overwritten. Choose another name.")
    if out.exists() and not force:
        raise UsageError(f"{out} exists. Choose another name, or --force to overwrite it.")


def _told(array: StoredArray, progress: Any) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:  # noqa: ANN401
    for where, cells in array.pieces():
        yield where, cells
        progress(cells.nbytes)


def _write_npy(path: Path, array: StoredArray, exported: Exported) -> None:
    """Write the header and then the cells; the pieces come in the order of the file."""
    fortran = array.order == "F"
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": fortran, "shape": array.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        for _, cells in exported.pieces:
            file.write(np.ascontiguousarray(cells.T if fortran else cells).view(np.uint8).data)
