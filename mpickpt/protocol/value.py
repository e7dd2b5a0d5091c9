"""Values that nobody changes: `make lint` refuses an assignment to a field, and making one costs no more for that.

A dataclass that is frozen at run time sets each field by a call, which a cut would wait for out of cold caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """Make a dataclass with slots of `cls`, which type checkers take for frozen."""
    return dataclass(slots=True)(cls)
