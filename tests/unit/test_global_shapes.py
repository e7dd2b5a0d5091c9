"""Global arrays of every shape, order and decomposition: restored on other ranks, read, compared, exported, archived.

Among them are arrays without axes and with axes of one cell or none, whose bytes are the same in both orders,
and ranks that have no cell of an array or no share of it at all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import h5netcdf
import h5py
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from make_epoch import write_epoch
from numpy.typing import NDArray

from mpickpt.cli.main import main
from mpickpt.layout.arrays import ArraySpec, Layout, RankLayout
from mpickpt.layout.parts import Part
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.reading.compare import compare
from mpickpt.restart.sources import OtherRanks
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

FILL = -1.0  # of halo cells beyond the global array


class Share(NamedTuple):
    """One rank's part of the global array, halo and all."""

    spec: ArraySpec
    array: NDArray[Any]


class Spread(NamedTuple):
    """How a global array is spread over ranks: borders along an axis, halo cells there, the order in memory."""

    axis: int
    cuts: tuple[int, ...]
    halo: int
    order: str
    absent: bool  # ranks without a cell do not declare the array
    overshoot: int  # how far behind the global array such a rank would begin, as with ceil(rows / ranks) rows a rank


def share_out(world: NDArray[Any], spread: Spread) -> list[Share | None]:
    """Spread `world` over ranks; what is in memory has the order that numpy gives it, as for `Session.protect`."""
    if not world.ndim:
        ranks: list[Share | None] = [None] * (len(spread.cuts) + 1)
        ranks[len(spread.cuts) // 2] = Share(ArraySpec("s", (), world.dtype, Part((), ())), world.copy())
        return ranks
    axis = spread.axis % world.ndim
    length, halo = world.shape[axis], spread.halo
    width = [(halo if k == axis else 0,) * 2 for k in range(world.ndim)]
    padded = np.pad(world, width, constant_values=FILL)
    found: list[Share | None] = []
    for low, high in pairwise([0, *sorted(min(cut, length) for cut in spread.cuts), length]):
        if spread.absent and low == high:
            found.append(None)
            continue
        array = np.array(padded.take(range(low, high + 2 * halo), axis), order=spread.order)  # type: ignore[call-overload]
        start = [low if k == axis else 0 for k in range(world.ndim)]
        start[axis] += spread.overshoot if low == high == length and not halo else 0
        local = tuple(slice(halo, halo + high - low) if k == axis else slice(None) for k in range(world.ndim))
        part = Part(world.shape, tuple(start), local)
        order = "C" if array.flags.c_contiguous else "F"
        found.append(Share(ArraySpec("s", array.shape, array.dtype, part, order), array))
    return found


def write(directory: Path, shares: Sequence[Share | None]) -> Path:
    layout = Layout.of(RankLayout((share.spec,) if share else ()) for share in shares)
    return write_epoch(Store(directory, crc32c), 0, layout, [{"s": share.array} if share else {} for share in shares])


shapes = st.lists(st.sampled_from((1, 1, 2, 5, 0)), max_size=3).map(tuple)
spreads = st.builds(
    Spread,
    axis=st.integers(0, 2),
    cuts=st.lists(st.integers(0, 6), max_size=4).map(tuple),
    halo=st.integers(0, 1),
    order=st.sampled_from("CF"),
    absent=st.booleans(),
    overshoot=st.integers(0, 2),
)
PLAIN = Spread(0, (), 0, "C", absent=False, overshoot=0)


@settings(max_examples=14, deadline=None, derandomize=True)
@given(shapes, spreads, spreads)
@example((), PLAIN._replace(cuts=(0,)), PLAIN._replace(cuts=(0, 0)))
@example((5, 1), PLAIN._replace(order="F", cuts=(2,)), PLAIN)
@example((5, 3), PLAIN._replace(axis=1, order="F", cuts=(1, 1)), PLAIN._replace(order="F", cuts=(1,)))
@example((2, 3), PLAIN._replace(cuts=(1, 2, 2), overshoot=2), PLAIN._replace(cuts=(0, 0, 0, 1)))
@example((2, 0), PLAIN._replace(order="F", cuts=(1,)), PLAIN)
@example((0,), PLAIN, PLAIN._replace(cuts=(0,), absent=True))
def test_any_shape_on_any_ranks(shape: tuple[int, ...], then: Spread, now: Spread) -> None:
    world = np.arange(prod(shape), dtype="f8").reshape(shape)
    old, new = share_out(world, then), share_out(world, now)
    if not any(old):
        return  # no rank has it
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "then", old)
        checkpoint = Checkpoint(path)
        check_reading(checkpoint, world, new)
        assert main(["archive", str(path)]) == 0
        assert main(["archive", str(path), "--compress", "--to", folder]) == 0
        for archived in (path.with_name("epoch-1.h5"), Path(folder) / "epoch-1.h5"):
            check_reading(Checkpoint(archived), world, new)
            assert not compare(checkpoint, Checkpoint(archived)).differs
        check_export(path, world)
        if any(new):
            other = Checkpoint(write(Path(folder) / "now", new))
            assert not any(array.differs for array in compare(checkpoint, other).arrays)
            assert not any(array.differs for array in compare(other, checkpoint).arrays)
        if world.size:
            changed = world.copy()
            changed[(-1,) * world.ndim] += 0.5
            (found,) = compare(checkpoint, Checkpoint(write(Path(folder) / "changed", share_out(changed, now)))).arrays
            assert (found.why, found.largest) == ("", 0.5)
            if not then.halo:  # shares that lie alike in both are compared with their halo cells
                assert (found.cells, found.differing_blocks) == (1, 1)


def check_reading(checkpoint: Checkpoint, world: NDArray[Any], new: Sequence[Share | None]) -> None:
    """Read the array as a whole and in pieces, through plain HDF5, and as each rank of another run would."""
    assert checkpoint.verify() == []
    stored = checkpoint["s"]
    for found in (stored[...], np.asarray(stored), checkpoint.to_xarray()["s"].values):
        assert found.shape == world.shape
        np.testing.assert_array_equal(found, world)
    if world.size:
        last = (-1,) * world.ndim
        assert stored[last] == world[last]
    again = np.full_like(world, np.nan)
    for where, cells in stored.pieces(16):
        again[(*where, ...)] = cells
    np.testing.assert_array_equal(again, world)
    with h5py.File(checkpoint.path) as file:
        plain = file["global/s"][...]
        np.testing.assert_array_equal(plain.T if stored.order == "F" else plain, world)
    source = OtherRanks("epoch 1", checkpoint.layout, checkpoint.images, 0, len(new))
    for share in filter(None, new):
        out = np.full_like(share.array, FILL)
        source.read_into(share.spec, out, None)
        np.testing.assert_array_equal(out, share.array)


def check_export(path: Path, world: NDArray[Any]) -> None:
    """Export it, and read it back by what others have for that."""
    for name in ("s.npy", "s.h5", "s.nc"):
        assert main(["export", str(path), str(path.with_name(name))]) == 0
    assert np.load(path.with_name("s.npy")).shape == world.shape
    np.testing.assert_array_equal(np.load(path.with_name("s.npy")), world)
    with h5py.File(path.with_name("s.h5")) as file:
        np.testing.assert_array_equal(file["s"][...], world)
    with h5netcdf.File(path.with_name("s.nc"), "r") as netcdf:
        np.testing.assert_array_equal(netcdf.variables["s"][...], world)
