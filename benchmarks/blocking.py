"""Contenders that stop the program while they write: h5py, numpy.save, O_DIRECT.

Each alternates between two checkpoints, so that a crash in one leaves the other, and waits until the data
are on the disk, as mpickpt does.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING

import h5py
import numpy as np

from direct import DirectFile

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Contender:
    """One way to checkpoint a rank's state. This base class takes none: it is the run without a checkpoint.

    Parameters
    ----------
    folder : Path
        For the rank's files; its creator removes it.
    state : NDArray[np.float64]
        The rank's state, page aligned.
    """

    def __init__(self, folder: Path, state: NDArray[np.float64]) -> None:
        self.folder = folder
        self.state = state
        self.turn = 0
        self.copied_bytes = 0  # memory that the checkpoint took outside this process

    @property
    def warm_up(self) -> int:
        """Number of epochs before the first one that is measured."""
        return 0

    def open(self, steps: int) -> NDArray[np.float64]:
        """Prepare a run with `steps` steps between two cuts; return the memory that it works on."""
        return self.state

    def safe_point(self) -> None:
        """Pass a safe point at which there is no cut."""

    def cut(self) -> None:
        """Take the checkpoint, or begin it; the program is blocked meanwhile."""

    def done(self) -> bool:
        """Return whether the checkpoint is on the disk; called at each step after the cut."""
        return True

    def told(self) -> dict[str, float]:
        """Return what the contender itself has counted since `open`, in bytes and seconds."""
        return {}

    def close(self) -> None:
        """End the run."""

    def next_turn(self) -> int:
        """Return 0 and 1 in turn: which of the two checkpoints is overwritten."""
        self.turn = 1 - self.turn
        return self.turn


class NewFile(Contender):
    """A new file each time, fsync, renamed over the older one of two."""

    suffix = ""

    def cut(self) -> None:
        """Write, fsync, rename."""
        fresh = self.folder / f"new{self.suffix}"
        self.write(fresh)
        descriptor = os.open(fresh, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        fresh.rename(self.folder / f"{self.next_turn()}{self.suffix}")

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the state into a new file."""


class H5pyNew(NewFile):
    """What most programs do: `h5py.File(path, "w")`, one dataset, close."""

    suffix = ".h5"

    def write(self, path: Path) -> None:
        """Write the state as one dataset."""
        with h5py.File(path, "w") as file:
            file["state"] = self.state


class NumpySave(NewFile):
    """`numpy.save`."""

    suffix = ".npy"

    def write(self, path: Path) -> None:
        """Write the state with `numpy.save`."""
        np.save(path, self.state)


class H5pyInPlace(Contender):
    """h5py at its best: the dataset exists and is overwritten, so that the kernel allocates no blocks."""

    def __init__(self, folder: Path, state: NDArray[np.float64]) -> None:
        super().__init__(folder, state)
        self.paths = [folder / f"place-{turn}.hdf5" for turn in (0, 1)]
        for path in self.paths:
            with h5py.File(path, "w") as file:
                file["state"] = state

    def cut(self) -> None:
        """Overwrite the dataset, close, fsync."""
        path = self.paths[self.next_turn()]
        with h5py.File(path, "r+") as file:
            file["state"][...] = self.state
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


class DirectWrite(Contender):
    """The fastest blocking write: O_DIRECT over a file that exists."""

    def __init__(self, folder: Path, state: NDArray[np.float64]) -> None:
        super().__init__(folder, state)
        self.files = [DirectFile(folder / f"{type(self).__name__}-{turn}.raw", state) for turn in (0, 1)]

    def cut(self) -> None:
        """Write, fdatasync."""
        self.files[self.next_turn()].write(self.state)
