"""Describes global arrays of a slot or an archive in XDMF, by which ParaView, VisIt and PyVista open them.

Only XML is written: the values stay in the HDF5 file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mpickpt.errors import UsageError

# HDF5 converts what it reads: to single precision what is stored in half precision, and numbers of any byte order.
NUMBERS = {
    **{"f2": ("Float", 4), "f4": ("Float", 4), "f8": ("Float", 8), "b1": ("UChar", 1), "u1": ("UChar", 1)},
    **{
        "u2": ("UShort", 2),
        "u4": ("UInt", 4),
        "i1": ("Char", 1),
        "i2": ("Short", 2),
        "i4": ("Int", 4),
        "i8": ("Int", 8),
    },
}


@dataclass(frozen=True)
class Shown:
    """An array to describe: its name, and shape and dtype of its dataset in /global."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def why_not(self) -> str:
        """Why XDMF cannot describe it; empty if it can."""
        if len(self.shape) not in (2, 3):
            return f"it has {len(self.shape)} axes, not 2 or 3"
        if 0 in self.shape:
            return "it has no cell"
        if self.dtype.str[1:] not in NUMBERS:
            return f"there is no type for {self.dtype}"
        return ""


def write_xdmf(path: Path, file: Path, arrays: Sequence[Shown], name: str, time: int) -> None:
    """Describe arrays of a slot or an archive; those of one shape share a grid.

    Parameters
    ----------
    path : pathlib.Path
        What to write. The HDF5 file is named as seen from this folder.
    file : pathlib.Path
        The slot or the archive.
    arrays : sequence of Shown
        What to describe.
    name : str
        What the grids are called.
    time : int
        The time that a viewer shows: the step.

    Raises
    ------
    UsageError
        If the path of the HDF5 file cannot be written in XDMF.
    """
    target = os.path.relpath(file.resolve(), path.parent.resolve())
    if ":" in target:
        raise UsageError(f"XDMF cannot name {target}: a ':' ends the name of a file there. Rename the folder.")
    root = ElementTree.Element("Xdmf", Version="3.0")
    domain = ElementTree.SubElement(root, "Domain")
    for shape in dict.fromkeys(array.shape for array in arrays):
        told = " x ".join(map(str, shape))
        grid = ElementTree.SubElement(domain, "Grid", Name=f"{name} {told}", GridType="Uniform")
        ElementTree.SubElement(grid, "Time", Value=str(time))
        _write_mesh(grid, shape)
        for array in arrays:
            if array.shape == shape:
                number, nbytes = NUMBERS[array.dtype.str[1:]]
                place = ElementTree.SubElement(
                    grid, "Attribute", Name=array.name, AttributeType="Scalar", Center="Node"
                )
                kind = {"NumberType": number, "Precision": str(nbytes), "Format": "HDF"}
                _write_item(place, shape, f"{target}:/global/{array.name}", kind)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _write_mesh(grid: ElementTree.Element, shape: tuple[int, ...]) -> None:
    """Place the cells one apart."""
    extent, kind = " ".join(map(str, shape)), "ORIGIN_DXDYDZ" if len(shape) == 3 else "ORIGIN_DXDY"
    ElementTree.SubElement(grid, "Topology", TopologyType=f"{len(shape)}DCoRectMesh", Dimensions=extent)
    geometry = ElementTree.SubElement(grid, "Geometry", GeometryType=kind)
    for number in ("0", "1"):
        _write_item(geometry, (len(shape),), " ".join([number] * len(shape)), {"Format": "XML"})


def _write_item(parent: ElementTree.Element, shape: tuple[int, ...], text: str, kind: dict[str, str]) -> None:
    item = ElementTree.SubElement(parent, "DataItem", {"Dimensions": " ".join(map(str, shape)), **kind})
    item.text = text
