"""File systems on which overwriting takes new room: real ones in files, where this machine can make and mount them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from test_retention import archives, opened, settle, steps

import mpickpt
from mpickpt.cli.main import main
from mpickpt.reading.checkpoint import Checkpoint
from mpickpt.session.failures import explain
from mpickpt.snapshot import crc32c
from mpickpt.store import Store, copies_on_write, kind_of_file_system, why_full
from mpickpt.store.filesystem import shares_blocks

IMAGE_BYTES = 400 << 20  # mkfs.xfs makes none of less than 300 MiB
LEFT_BYTES = 5 << 20  # that a full disk has: room for notes, not for a slot
CELLS = 2 << 20  # 16 MiB


@pytest.fixture(params=["xfs", "btrfs"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Give a new file system; it is unmounted behind the test."""
    kind = str(request.param)
    if os.geteuid() != 0 or shutil.which(f"mkfs.{kind}") is None or shutil.which("mount") is None:
        pytest.skip(f"needs root and mkfs.{kind}")
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    for command in (f"mkfs.{kind} -q {image}", f"mount -o loop {image} {place}"):
        if (done := subprocess.run(command.split(), capture_output=True, text=True, check=False)).returncode:
            pytest.skip(f"{command}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)  # and its loop device goes with it


def fill_disk(place: Path) -> None:
    """Leave little room on a file system: what it says to be free is an estimate on btrfs."""
    os.sync()
    with (place / "filler").open("wb") as file:
        nbytes = 0
        with suppress(OSError):
            while True:
                os.posix_fallocate(file.fileno(), nbytes, 1 << 20)
                nbytes += 1 << 20
        file.truncate(nbytes - LEFT_BYTES)
    os.sync()


def run(directory: Path, upto: int) -> mpickpt.Stats:
    """Rewrite everything at each step up to one, with an epoch at each."""
    with mpickpt.open(directory, every=1, record=False) as ckpt:
        u = ckpt.array("u", CELLS, fill=0.0)
        for step in ckpt.range(upto):
            ckpt.wait()
            u[:] = np.random.default_rng(step).random(CELLS)
    return ckpt.stats()


def test_what_doctor_finds(mounted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mount that holds the directory, also where its device has another number than in stat, as on btrfs."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", mounted], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert main(["doctor", str(mounted), "--json"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["file system"]["found"].startswith(f"{kind}, ")
    assert found["fallocate"]["found"] == "works"
    assert found["fallocate"]["state"] == ("note" if kind == "btrfs" else "ok")
    assert ("undoes it" in found["fallocate"]["meaning"]) == (kind == "btrfs")
    assert "as much room again" in found["reflink"]["meaning"]


def test_a_full_disk_that_shows_late(mounted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a clone, and on btrfs at once: the archive and the failed epoch say why there is no room."""
    c = mounted / "c"
    assert run(c, 4).failed == 0
    assert main(["archive", str(c)]) == 0
    assert "It shares its blocks with slot-0.h5, which takes up to 16." in capsys.readouterr().out
    fill_disk(mounted)
    with pytest.warns(RuntimeWarning) as told:
        assert run(c, 7).failed > 0
    text = " ".join(str(one.message) for one in told)
    if kind_of_file_system(c) == "btrfs":
        assert "No space left on device: its room was reserved, but " in text
    else:  # epoch 4 went to the slot whose room is its own
        assert "Epoch 5 (step 5) failed on rank 0" in text
        assert "slot-0.h5: No space left on device: its room was reserved, but it shares blocks with an archive" in text
        assert main(["archive", str(c)]) == 0
        assert "the next epoch there may find the disk full" in capsys.readouterr().err
    assert Checkpoint(c).verify() == []


@pytest.mark.parametrize("mounted", ["btrfs"], indirect=True)
@pytest.mark.parametrize("no_copy", [False, True])
def test_without_copy_on_write_the_room_stays(mounted: Path, no_copy: bool) -> None:
    c = mounted / "c"
    c.mkdir()
    if no_copy:
        subprocess.run(["chattr", "+C", c], check=True)
    assert copies_on_write(c) != no_copy
    assert run(c, 4).failed == 0
    fill_disk(mounted)
    if no_copy:
        assert run(c, 7).failed == 0
        assert why_full(c / "slot-0.h5", errno.ENOSPC) == ""
        return
    with pytest.warns(RuntimeWarning, match=r"its room was reserved, but btrfs writes each block to a new place"):
        assert run(c, 7).failed > 0


def test_two_slots_do_where_archives_are_clones(mounted: Path) -> None:
    c = mounted / "c"
    with opened(c, keep=2, keep_archives=2) as ckpt:
        steps(ckpt, 8, lambda _: settle(ckpt))
        assert ckpt.stats().failed == 0
        assert len(list(c.glob("slot-*.h5"))) == 2
    assert archives(c) == [6, 7]
    assert shares_blocks(c / "epoch-7.h5")
    assert not list(c.glob("clone*"))
    newest = Store(c, crc32c).slots()[0].path
    assert "shares blocks" in why_full(newest, errno.EDQUOT)
    assert why_full(newest, errno.EIO) == ""


def test_elsewhere_a_full_disk_is_just_that(tmp_path: Path) -> None:
    assert kind_of_file_system(tmp_path / "none") == "unknown"
    path = tmp_path / "slot"
    path.write_bytes(bytes(1 << 20))
    if kind_of_file_system(tmp_path) in ("ext4", "tmpfs"):
        assert not copies_on_write(tmp_path)
        assert not shares_blocks(path)
        assert explain(errno.ENOSPC, path) == "No space left on device"
    assert explain(errno.ENOSPC) == "No space left on device"
