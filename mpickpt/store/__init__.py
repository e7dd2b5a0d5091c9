"""The slots of a checkpoint directory, and the HDF5 structure of a slot file; h5py is imported when one is opened."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mpickpt.store.archive import appearing, clones, copy_slot, copying
from mpickpt.store.files import free_bytes, os_errors, replace_text, reserve, revalidate, sync_folder_above
from mpickpt.store.filesystem import copies_on_write, kind_of_file_system, why_full
from mpickpt.store.info import SlotInfo, is_unchanged, read_slot, record_is_valid
from mpickpt.store.preface import plain
from mpickpt.store.retention import Retention
from mpickpt.store.slots import (
    Made,
    PayloadKind,
    Store,
    archive_path,
    slot_path,
    spill_path,
    spill_paths,
)

if TYPE_CHECKING:
    from mpickpt.store.export import Exported, write_hdf5, write_netcdf
    from mpickpt.store.packed import finish_packed, open_packed, write_at
    from mpickpt.store.skeleton import write_packed_skeleton, write_skeleton
    from mpickpt.store.structure import read_structure

__all__ = [
    "Exported",
    "Made",
    "PayloadKind",
    "Retention",
    "SlotInfo",
    "Store",
    "appearing",
    "archive_path",
    "clones",
    "copies_on_write",
    "copy_slot",
    "copying",
    "finish_packed",
    "free_bytes",
    "is_unchanged",
    "kind_of_file_system",
    "revalidate",
    "open_packed",
    "os_errors",
    "plain",
    "read_slot",
    "read_structure",
    "record_is_valid",
    "replace_text",
    "reserve",
    "slot_path",
    "spill_path",
    "spill_paths",
    "sync_folder_above",
    "why_full",
    "write_at",
    "write_hdf5",
    "write_netcdf",
    "write_packed_skeleton",
    "write_skeleton",
]

# These need h5py: their modules are imported when they are first used.
_HOME_OF = {name: "export" for name in ("Exported", "write_hdf5", "write_netcdf")}
_HOME_OF |= {name: "packed" for name in ("finish_packed", "open_packed", "write_at")}
_HOME_OF |= {name: "skeleton" for name in ("write_packed_skeleton", "write_skeleton")}
_HOME_OF["read_structure"] = "structure"


def __getattr__(name: str) -> object:
    """Import what needs h5py."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value
