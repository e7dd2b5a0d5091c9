"""The slots of a checkpoint directory, and the HDF5 structure of a slot file."""

from mpickpt.store.slots import PayloadKind, SlotInfo, Store, read_slot, record_is_valid, slot_path, spill_path
from mpickpt.store.structure import read_structure

__all__ = [
    "PayloadKind",
    "SlotInfo",
    "Store",
    "read_slot",
    "read_structure",
    "record_is_valid",
    "slot_path",
    "spill_path",
]
