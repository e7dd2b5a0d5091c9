"""A folder that all ranks of a benchmark write to."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpi4py import MPI


@contextmanager
def shared_folder(comm: MPI.Intracomm, prefix: str, parent: Path) -> Iterator[Path]:
    """Yield a new folder in `parent`, the same on all ranks; it is removed when all are done or one has failed."""
    folder = Path(comm.bcast(tempfile.mkdtemp(prefix=prefix, dir=parent) if comm.rank == 0 else ""))
    try:
        yield folder
        comm.Barrier()
    finally:
        if comm.rank == 0:
            shutil.rmtree(folder)
