"""The XDMF of a slot: what it names is there. tests/readers opens it with VTK."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from make_epoch import write_epoch

from mpickpt.cli.main import main
from mpickpt.layout.arrays import ArraySpec, Layout, Order, RankLayout
from mpickpt.layout.parts import Part
from mpickpt.snapshot import crc32c
from mpickpt.store import Store


def write(folder: Path, *arrays: tuple[str, tuple[int, ...], str, Order]) -> Path:
    """Write an epoch of one rank."""
    specs = tuple(ArraySpec(n, s, np.dtype(d), Part(s, (0,) * len(s)), o) for n, s, d, o in arrays)
    content = {spec.name: np.ones(spec.shape, spec.dtype, spec.order) for spec in specs}
    folder.mkdir()
    return write_epoch(Store(folder, crc32c), 0, Layout((RankLayout(specs),)), [content], epoch=5, step=40)


def items(path: Path) -> dict[str, ElementTree.Element]:
    """Return where the values of each array are, by its name."""
    attributes = ElementTree.parse(path).iter("Attribute")
    return {one.attrib["Name"]: item for one in attributes if (item := one.find("DataItem")) is not None}


def test_each_item_is_a_dataset_of_its_shape_and_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ("f2", "f4", "f8", ">f8", "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4")
    slot = write(
        tmp_path / "c",
        *((f"n{k}", (3, 4), kind, "C") for k, kind in enumerate(kinds)),
        ("columns", (4, 3), "f8", "F"),
        ("cube", (2, 3, 4), "f4", "C"),
    )
    out = tmp_path / "views" / "g.xdmf"
    out.parent.mkdir()
    assert main(["export", str(tmp_path / "c"), str(out)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{out}: 14 arrays of epoch 5 (")
    assert told.err == (
        f"{out} shows what {slot} holds when it is opened. If a program saves there, archive the epoch.\n"
    )
    found = items(out)
    assert len(found) == 14
    for item in found.values():
        file, _, place = (item.text or "").partition(":")
        with h5py.File(out.parent / file) as opened:
            dataset = opened[place]
            assert item.attrib["Dimensions"] == " ".join(map(str, dataset.shape))
            assert not Path(file).is_absolute()
            kind = item.attrib["NumberType"]
            assert kind.removeprefix("U") == {"f": "Float", "b": "Char"}.get(
                dataset.dtype.kind, {1: "Char", 2: "Short"}.get(dataset.dtype.itemsize, "Int")
            )
            assert kind.startswith("U") == (dataset.dtype.kind in "bu")
            assert int(item.attrib["Precision"]) == max(dataset.dtype.itemsize, 4 if kind == "Float" else 1)
    grids = {g.attrib["Name"]: len(g.findall("Attribute")) for g in ElementTree.parse(out).iter("Grid")}
    assert grids == {"epoch 5 3 x 4": 13, "epoch 5 2 x 3 x 4": 1}, "the one in Fortran order lies as those beside it"
    assert [time.attrib["Value"] for time in ElementTree.parse(out).iter("Time")] == ["40", "40"]


def test_what_xdmf_cannot_describe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path / "c", ("u", (3, 4), "f8", "C"), ("line", (3,), "f8", "C"), ("z", (3, 4), "c16", "C"),
        ("big", (3, 4), "u8", "C"), ("none", (0, 4), "f8", "C"), ("four", (1, 1, 1, 1), "f8", "C"),
    )  # fmt: skip
    out = tmp_path / "g.xmf"
    assert main(["export", str(tmp_path / "c"), str(out), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["arrays"] == ["u"] == list(items(out))
    assert (
        "XDMF cannot describe line (it has 1 axes, not 2 or 3), z (there is no type for complex128), "
        "big (there is no type for uint64), none (it has no cell), four (it has 4 axes, not 2 or 3): left out."
    ) in told.err
    out.unlink()
    assert main(["export", str(tmp_path / "c"), str(out), "--array", "z"]) == 2
    assert "XDMF can describe none of the arrays: z (there is no type for complex128)." in capsys.readouterr().err
    assert main(["export", str(tmp_path / "c"), str(out), "--rank", "0"]) == 2
    assert "XDMF describes global arrays; export those of a rank to .h5." in capsys.readouterr().err
    assert not out.exists()


def test_an_archive_does_not_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "c", ("u", (3, 4), "f8", "C"))
    assert main(["archive", str(tmp_path / "c"), "--compress"]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "c" / "epoch-5.h5"), str(tmp_path / "c" / "g.xdmf")]) == 0
    assert capsys.readouterr().err == ""
    assert items(tmp_path / "c" / "g.xdmf")["u"].text == "epoch-5.h5:/global/u"


def test_a_colon_ends_a_name_in_xdmf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "12:30", ("u", (3, 4), "f8", "C"))
    assert main(["export", str(tmp_path / "12:30"), str(tmp_path / "g.xdmf")]) == 2
    assert "XDMF cannot name 12:30/slot-0.h5: a ':' ends the name of a file there." in capsys.readouterr().err
    assert main(["export", str(tmp_path / "12:30"), str(tmp_path / "12:30" / "g.xdmf")]) == 0
