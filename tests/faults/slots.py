"""Read slots with plain h5py, as a user without mpickpt would."""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

# States of a record, and some of its fields, as docs/format.md has them.
WRITING, COMPLETE = 1, 2
RECORD = np.dtype(
    {
        "names": ["state", "epoch", "step", "run", "digest", "crc"],
        "formats": ["<u4", "<u8", "<u8", "<u8", "V32", "<u4"],
        "offsets": [8, 16, 24, 32, 40, 4092],
    }
)


@dataclass
class Seen:
    """What one slot held when it was read."""

    path: Path
    records: NDArray[Any]
    complete: bool
    fields: dict[str, NDArray[Any]] = field(default_factory=dict)
    data_sets: int = 0

    @property
    def epoch(self) -> int:
        """Epoch of rank 0's record; that of the slot if it is complete."""
        return int(self.records["epoch"][0])

    @property
    def step(self) -> int:
        """Step of rank 0's record."""
        return int(self.records["step"][0])

    @property
    def announcement(self) -> str:
        """What a start says that goes on from this slot."""
        return f"restored epoch {self.epoch} (step {self.step}) of {self.path.parent} on "


def is_complete(records: NDArray[Any]) -> bool:
    """Tell whether all ranks' records say COMPLETE for the same epoch of the same run."""
    same = all((records[name] == records[name][0]).all() for name in ("epoch", "run", "digest"))
    return same and bool((records["state"] == COMPLETE).all())


def read(path: Path) -> Seen:
    """Read every dataset of a slot, and the global arrays as a whole."""
    with h5py.File(path, "r", locking=False) as file:
        records = np.frombuffer(file["records"][()], RECORD)
        seen = Seen(path, records, is_complete(records))

        def take(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                value = item[()]
                seen.data_sets += 1
                if name.startswith("global/"):
                    seen.fields[name.removeprefix("global/")] = np.asarray(value)

        file.visititems(take)  # does not follow into the virtual datasets' sources: those are under /ranks anyway
        again = np.frombuffer(file["records"][()], RECORD)
    # A slot that changed under the reader proves nothing about the values, only that it can be read.
    seen.complete = seen.complete and bool((again == records).all())
    return seen


def read_all(directory: Path) -> list[Seen]:
    """Read every slot of a checkpoint directory."""
    return [read(path) for path in sorted(directory.glob("slot-*.h5"))]


def read_records(directory: Path) -> list[NDArray[Any]]:
    """Read the records alone, which is quick enough to watch them."""
    records = []
    for path in sorted(directory.glob("slot-*.h5")):
        with h5py.File(path, "r", locking=False) as file:
            records.append(np.frombuffer(file["records"][()], RECORD))
    return records


def newest_complete(seen: list[Seen]) -> Seen | None:
    """Give the slot with the newest complete epoch."""
    return max((slot for slot in seen if slot.complete), key=lambda slot: slot.epoch, default=None)


def h5dump(path: Path) -> str | None:
    """Give what h5dump says about a slot's structure and records; None where it is not installed."""
    program = shutil.which("h5dump")
    if program is None:
        return None
    done = subprocess.run([program, "--header", path], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, f"h5dump {path}: {done.stderr}"
    return done.stdout
