"""Copies of slot files: cloned where the file system can share blocks between files, copied elsewhere."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mpickpt.store.files import create_file, os_errors, sync_folder
from mpickpt.store.preface import plain
from mpickpt.store.slots import spill_paths

FICLONE = 0x40049409  # _IOW(0x94, 9, int) of linux/fs.h
PIECE_BYTES = 16 << 20

Copy = Callable[[Path, Path], None]


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file is renamed to `path` on success, and deleted otherwise.

    Its name has the number of the process, as two processes may archive the same epoch.

    Raises
    ------
    StoreError
        For errors of the operating system.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    with os_errors(f"{path} cannot be written", path):
        os.close(create_file(new))
        try:
            yield new
            fd = os.open(new, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def copy_slot(source: Path, target: Path, unchanged: Callable[[], None], copy: Copy) -> bool:
    """Copy a slot and its spill files.

    Parameters
    ----------
    source, target : pathlib.Path
        The slot, and the new file; spill files get matching names.
    unchanged : callable
        Called before the copy gets its name; raises if the slot was written to meanwhile.
    copy : callable
        Copies a file that cannot be cloned into one that exists, as what `copying` returns does.

    Returns
    -------
    bool
        Whether all files share their blocks with the originals.
    """
    spills: list[Path] = []
    try:
        cloned = []
        for spill in spill_paths(source):
            suffix = spill.name.removeprefix(source.stem)
            with appearing(target.with_name(target.stem + suffix)) as new:
                cloned.append(_clone_or_copy(spill, new, copy))
            spills.append(target.with_name(target.stem + suffix))
        with appearing(target) as new:
            cloned.append(_clone_or_copy(source, new, copy))
            unchanged()
    except BaseException:
        for path in spills:
            path.unlink(missing_ok=True)
        raise
    return all(cloned)


def _clone_or_copy(source: Path, target: Path, copy: Copy) -> bool:
    if _clone(source, target):
        return True
    copy(source, target)
    return False


def _clone(source: Path, target: Path) -> bool:
    """Have `target` share the blocks of `source`; False where the file system cannot, or not between these two."""
    with plain(source) as old, target.open("r+b", buffering=0) as new:
        try:
            fcntl.ioctl(new.fileno(), FICLONE, old)
        except OSError:
            return False
    return True


def copying(progress: Callable[[int], object]) -> Copy:
    """Return a function that copies a file; `progress` is called with the number of bytes of each piece."""

    def copy(source: Path, target: Path) -> None:
        with plain(source) as old, target.open("r+b", buffering=0) as new:
            while count := _copy_piece(new.fileno(), old):
                progress(count)

    return copy


def _copy_piece(target: int, source: int) -> int:
    try:
        return os.copy_file_range(source, target, PIECE_BYTES)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return os.sendfile(target, source, None, PIECE_BYTES)


def clones(directory: Path, other: Path | None = None) -> bool:
    """Return whether files in `directory` can share blocks with those in `other`, the same by default, by trying.

    Raises
    ------
    OSError
        If no file can be created there.
    """
    one = directory / f"clone-{os.getpid()}-0"
    two = (other or directory) / f"clone-{os.getpid()}-1"
    try:
        for path in (one, two):
            os.close(create_file(path))
        one.write_bytes(bytes(4096))
        return _clone(one, two)
    finally:
        for path in (one, two):
            path.unlink(missing_ok=True)
