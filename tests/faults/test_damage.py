"""Full disks, missing permission and corrupt slots: a clear error or the older epoch, and nothing lost."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from mpijob import mpi_job

from mpickpt.layout.arrays import SlotOffsets
from mpickpt.snapshot import crc32c
from mpickpt.store import SlotInfo, Store, slot_path

HERE = Path(__file__).parent
JOB = HERE / "damage_job.py"
STOP, LATER = 45, 65  # cuts at 10, 20, 30, 40 and at 50, 60: epochs 3 and 4 stay after the first
LIMIT = 90  # seconds for one run

pytestmark = pytest.mark.timeout(400)
# 0 stands for a run without mpiexec.
on_ranks = pytest.mark.parametrize("ranks", [0, 2])


class Run(NamedTuple):
    """How a run ended."""

    code: int
    output: str

    @property
    def result(self) -> str:
        """The checksum that the job printed."""
        found = re.search(r"^result ([0-9a-f]{64})$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]


def run(
    ranks: int, folder: Path, directory: Path, stop: int, *options: str | int,
    restart: str = "auto", plain: bool = False, unprivileged: bool = False,
) -> Run:  # fmt: skip
    """Run the job under mpickpt run, or plainly, and give its exit code and all that it printed."""
    command: list[str | Path] = [HERE / "unprivileged.py"] if unprivileged else []
    if not plain:
        command += ["-m", "mpickpt", "run", "--restart", restart]
    command += [JOB, directory, str(stop), *map(str, options)]
    if ranks:
        with mpi_job(ranks, command, folder / "log") as job:
            return Run(job.wait(LIMIT), job.output())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPICKPT_")}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=LIMIT,
    )  # fmt: skip
    return Run(done.returncode, done.stdout)


def went_well(done: Run) -> None:
    """Check that a run ended as if nothing had happened, whatever it warned of."""
    assert done.code == 0, done.output
    assert "Traceback" not in done.output, done.output


def complained(done: Run, *words: str) -> None:
    """Check that a run ended in an error with these words, and shows no code but the program's own."""
    assert done.code != 0, done.output
    for word in words:
        assert word in done.output, done.output
    frames = re.findall(r'^ *File "([^"]+)"', done.output, re.MULTILINE)
    assert set(frames) <= {str(JOB)}, done.output


class Expected(NamedTuple):
    """What runs that nothing disturbed leave."""

    stopped: str
    later: str
    directory: Path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Expected]]:
    """Give, by number of ranks, the results at both steps and a directory with the epochs 3 and 4."""
    made: dict[int, Expected] = {}

    def make(ranks: int) -> Expected:
        if ranks not in made:
            place = tmp_path_factory.mktemp("undisturbed")
            later = run(ranks, place, place / "later", LATER)
            done = run(ranks, place, place / "saved", STOP)
            went_well(later)
            went_well(done)
            assert [(s.epoch, s.step) for s in slots(place / "saved")] == [(3, 30), (4, 40)]
            made[ranks] = Expected(done.result, later.result, place / "saved")
        return made[ranks]

    yield make
    for one in made.values():
        shutil.rmtree(one.directory.parent)


def slots(directory: Path) -> list[SlotInfo]:
    """Read what the slots say."""
    return Store(directory, crc32c).slots()


def offsets(directory: Path, index: int, rank: int) -> SlotOffsets:
    """Find where a rank's data lie in a slot."""
    return Store(directory, crc32c).offsets(index)[rank]


def flip(path: Path, at: int) -> None:
    """Flip one bit."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x04]))


def year_of_creation(path: Path) -> int:
    """Find a byte of the structure that does no harm: one of the time at which the slot was created."""
    found = re.search(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", path.read_bytes())
    assert found
    return found.start() + 2


def cut_off(path: Path, nbytes: int) -> None:
    """Leave the first bytes of a file only."""
    os.truncate(path, nbytes)


BLOCK = 256 * 1024
# How to damage slot `index` for a rank, and what the next run has to say of it.
DAMAGE: dict[str, tuple[Callable[[Path, int, int], None], str]] = {
    "block": (
        lambda d, i, r: flip(slot_path(d, i), offsets(d, i, r).arrays[0] + 7 * BLOCK + 1000),
        "rank {rank}, array 'u', block 7: wrong checksum",
    ),
    "last byte of an array": (
        lambda d, i, r: flip(slot_path(d, i), offsets(d, i, r).arrays[1] + 7999),
        "rank {rank}, array 'own', block 0: wrong checksum",
    ),
    "checksum": (
        lambda d, i, r: flip(slot_path(d, i), offsets(d, i, r).checksums[0] + 4 * 3),
        "rank {rank}, array 'u', block 3: wrong checksum",
    ),
    "object": (
        lambda d, i, r: flip(slot_path(d, i), offsets(d, i, r).objects + 20),
        "rank {rank}, objects in slot-{index}.h5: wrong checksum",
    ),
    "record": (
        lambda d, i, r: flip(slot_path(d, i), offsets(d, i, r).record + 3000),
        "slot-{index}.h5: The record of rank {rank} is corrupt.",
    ),
    "structure": (
        lambda d, i, r: flip(slot_path(d, i), year_of_creation(slot_path(d, i))),
        "slot-{index}.h5 is not the one that it was created with: it is corrupt",
    ),
    "half the file": (
        lambda d, i, r: cut_off(slot_path(d, i), slot_path(d, i).stat().st_size // 2),
        "slot-{index}.h5 cannot be read as a slot: ",
    ),
    "all of the file": (lambda d, i, r: cut_off(slot_path(d, i), 0), "slot-{index}.h5 cannot be read as a slot: "),
}


@on_ranks
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_in_the_newest_epoch(kind: str, ranks: int, folder: Path, expected: Callable[[int], Expected]) -> None:
    """Go back to the older epoch, say why, and go on from there to the same result."""
    directory, rank = folder / "ckpt", max(0, ranks - 1)
    shutil.copytree(expected(ranks).directory, directory)
    act, words = DAMAGE[kind]
    act(directory, 1, rank)
    done = run(ranks, folder, directory, LATER)
    went_well(done)
    assert words.format(rank=rank, index=1) in done.output
    assert f"restored epoch 3 (step 30) of {directory} on" in done.output
    assert done.result == expected(ranks).later
    assert sorted(s.step or 0 for s in slots(directory)) == [50, 60]


@on_ranks
@pytest.mark.parametrize("plain", [False, True], ids=["mpickpt run", "python"])
@pytest.mark.parametrize("kind", ["block", "record", "object", "half the file"])
def test_damage_in_all_epochs(
    kind: str, plain: bool, ranks: int, folder: Path, expected: Callable[[int], Expected]
) -> None:
    """Refuse to start, name every reason, and change nothing: no fresh start in its place."""
    directory, rank = folder / "ckpt", max(0, ranks - 1)
    shutil.copytree(expected(ranks).directory, directory)
    act, words = DAMAGE[kind]
    for index in (0, 1):
        act(directory, index, rank)
    before = {path.name: path.read_bytes() for path in directory.glob("slot-*")}
    done = run(ranks, folder, directory, LATER, plain=plain)
    assert done.code != 0
    for index in (0, 1):
        assert words.format(rank=rank, index=index) in done.output, done.output
    if plain:
        assert f"NothingToRestore: Nothing in {directory} can be restored" in done.output, done.output
    else:
        complained(done, f"Nothing in {directory} can be restored", "--restart never")
    assert {path.name: path.read_bytes() for path in directory.glob("slot-*")} == before


@on_ranks
def test_beginning_anew_beside_damaged_slots(ranks: int, folder: Path, expected: Callable[[int], Expected]) -> None:
    """Do as the error says."""
    directory = folder / "ckpt"
    shutil.copytree(expected(ranks).directory, directory)
    DAMAGE["block"][0](directory, 0, 0)
    DAMAGE["half the file"][0](directory, 1, 0)
    done = run(ranks, folder, directory, STOP, restart="never")
    went_well(done)
    assert done.result == expected(ranks).stopped
    assert sorted(s.step or 0 for s in slots(directory)) == [30, 40]


@pytest.mark.parametrize(("written_by", "ranks"), [(2, 0), (2, 3), (0, 2)])
@pytest.mark.parametrize("kind", ["block", "checksum", "object"])
def test_damage_when_another_number_of_ranks_goes_on(
    kind: str, written_by: int, ranks: int, folder: Path, expected: Callable[[int], Expected]
) -> None:
    """All ranks together notice damage anywhere, and go back to the older epoch."""
    directory, rank = folder / "ckpt", max(0, written_by - 1)
    shutil.copytree(expected(written_by).directory, directory)
    act, words = DAMAGE[kind]
    act(directory, 1, rank)
    done = run(ranks, folder, directory, LATER)
    went_well(done)
    assert words.format(rank=rank, index=1) in done.output
    assert "restored epoch 3 (step 30)" in done.output
    assert done.result == expected(written_by).later


# -- full disks --------------------------------------------------------------------------------------------------------

DISK_MIB = 26  # two slots of the job, and less room beside them than one grown object needs


def mounted(stack: ExitStack, kind: str, folder: Path) -> Path:
    """Mount a small file system for the length of the stack; skip where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    place = folder / "disk"
    place.mkdir()
    if kind == "ext4":
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True, timeout=30)
        command = ["mount", "-o", "loop", image, place]
    else:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        pytest.skip(f"{kind} cannot be mounted here: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "-l", place], check=True, timeout=30)
    return place


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """Give a small file system of its own."""
    with ExitStack() as stack:
        yield mounted(stack, request.param, folder)


def fill(disk: Path, leave: int) -> Path:
    """Fill a file system up to so many bytes."""
    filler = disk / "filler"
    found = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)
    return filler


@on_ranks
def test_no_room_for_any_slot(ranks: int, disk: Path, folder: Path) -> None:
    """Say so at the first step, not after hours without a checkpoint; leave no debris."""
    directory = disk / "ckpt"
    filler = fill(disk, 2 << 20)
    done = run(ranks, folder, directory, STOP)
    complained(
        done, f"Slot file {directory}/slot-0.h5 of ", "No space left on device", "Make room or choose another directory"
    )
    assert re.search(r"\(\d+ bytes are needed, \d+ are free\)", done.output), done.output
    assert [path.name for path in directory.iterdir()] == ["lock"]
    filler.unlink()
    again = run(ranks, folder, directory, STOP)
    went_well(again)
    assert [s.step for s in slots(directory)] == [30, 40]


@on_ranks
def test_room_for_one_slot_only(ranks: int, disk: Path, folder: Path, expected: Callable[[int], Expected]) -> None:
    """Keep the first epoch complete while the second slot has no room; go on from it when there is."""
    directory = disk / "ckpt"
    filler = fill(disk, 10 << 20)
    done = run(ranks, folder, directory, STOP)
    went_well(done)
    assert done.result == expected(ranks).stopped
    for epoch in (2, 3, 4):
        assert f"Epoch {epoch} (step {10 * epoch}) failed: Slot file {directory}/slot-1.h5" in done.output
    assert sorted(path.name for path in directory.iterdir()) == ["lock", "runs", "slot-0.h5"]
    assert [(s.epoch, s.step) for s in slots(directory)] == [(1, 10)]
    filler.unlink()
    again = run(ranks, folder, directory, LATER)
    went_well(again)
    assert f"restored epoch 1 (step 10) of {directory}" in again.output
    assert again.result == expected(ranks).later
    assert sorted(s.step or 0 for s in slots(directory)) == [50, 60]


@on_ranks
def test_objects_that_outgrow_the_disk(
    ranks: int, disk: Path, folder: Path, expected: Callable[[int], Expected]
) -> None:
    """Fail the epochs whose objects have no room, and keep the last one that had."""
    directory = disk / "ckpt"
    done = run(ranks, folder, directory, STOP, "--grow-at", 25)
    went_well(done)
    assert done.result == expected(ranks).stopped
    for epoch in (3, 4):
        assert re.search(
            rf"Epoch {epoch} \(step {10 * epoch}\) failed on rank \d: {directory}/slot-0\S*: No space left on device. "
            r"Epoch 2 stays, and the program goes on",
            done.output,
        ), done.output
    assert [s.step for s in slots(directory) if s.complete] == [20]
    again = run(ranks, folder, directory, LATER)
    went_well(again)
    assert f"restored epoch 2 (step 20) of {directory}" in again.output
    assert again.result == expected(ranks).later


# -- permission --------------------------------------------------------------------------------------------------------


@on_ranks
@pytest.mark.parametrize("missing", [False, True], ids=["directory", "parent"])
def test_a_directory_without_permission(missing: bool, ranks: int, folder: Path) -> None:
    """Say so before the first step."""
    parent = folder / "closed"
    parent.mkdir()
    directory = parent / "ckpt" if missing else parent
    parent.chmod(0o555)
    done = run(ranks, folder, directory, STOP, unprivileged=True)
    complained(
        done, f"The checkpoint directory {directory} cannot be used: Permission denied. User {os.geteuid()} needs"
    )
    assert list(parent.iterdir()) == []


@on_ranks
def test_slots_that_may_not_be_read(ranks: int, folder: Path, expected: Callable[[int], Expected]) -> None:
    """Refuse to start from the beginning over what somebody else may still be able to read."""
    directory = folder / "ckpt"
    shutil.copytree(expected(ranks).directory, directory)
    before = {path: path.read_bytes() for path in directory.glob("slot-*")}
    for path in before:
        path.chmod(0)
    done = run(ranks, folder, directory, LATER, unprivileged=True)
    complained(done, f"Nothing in {directory} can be restored", "slot-0.h5 cannot be read as a slot: Permission denied")
    for path in before:
        path.chmod(0o600)
    assert {path: path.read_bytes() for path in directory.glob("slot-*")} == before


@on_ranks
def test_a_directory_that_loses_its_permission(ranks: int, folder: Path, expected: Callable[[int], Expected]) -> None:
    """Keep the first epoch, warn of those that find no slot, and go on when the permission is back."""
    directory = folder / "ckpt"
    done = run(ranks, folder, directory, STOP, "--forbid-at", 15, unprivileged=True)
    went_well(done)
    assert done.result == expected(ranks).stopped
    assert "Epoch 2 (step 20) failed: Slot file" in done.output
    assert "slot-1.h5" in done.output
    assert "Permission denied" in done.output
    assert [(s.epoch, s.step) for s in slots(directory) if s.complete] == [(1, 10)]
    directory.chmod(0o755)
    again = run(ranks, folder, directory, LATER)
    went_well(again)
    assert f"restored epoch 1 (step 10) of {directory}" in again.output
    assert again.result == expected(ranks).later
