"""The global generators of random numbers: of numpy, of Python, and of torch where it is loaded."""

from __future__ import annotations

import random
import sys
from importlib import import_module
from typing import Any

import numpy as np

from mpickpt.errors import LayoutError


class GlobalGenerators:
    """Stands for the global generators: pickled, it becomes a dictionary of the states that they have then."""

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Return the dictionary."""
        return dict, (states(),)


def states() -> dict[str, Any]:
    """Return the states of the generators, in plain types that anybody can unpickle."""
    found: dict[str, Any] = {"numpy": np.random.get_state(legacy=False), "python": random.getstate()}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = _to_bytes(torch.get_rng_state())
        if torch.cuda.is_initialized():
            found["torch.cuda"] = list(map(_to_bytes, torch.cuda.get_rng_state_all()))
    return found


def set_back(saved: dict[str, Any]) -> None:
    """Give the generators the states that `states` returned.

    Raises
    ------
    LayoutError
        If one of them cannot have its state.
    """
    try:
        np.random.set_state(saved["numpy"])
        random.setstate(saved["python"])
        if "torch" in saved:
            torch = import_module("torch")
            torch.set_rng_state(_to_tensor(torch, saved["torch"]))
            if "torch.cuda" in saved:
                torch.cuda.set_rng_state_all([_to_tensor(torch, state) for state in saved["torch.cuda"]])
    except Exception as error:
        raise LayoutError(f"The global generators cannot be set back to what the epoch holds: {error!r}") from error


def _to_bytes(state: Any) -> bytes:  # noqa: ANN401  (a tensor, whose package may be missing)
    return bytes(state.tolist())


def _to_tensor(torch: Any, state: bytes) -> Any:  # noqa: ANN401
    return torch.tensor(list(state), dtype=torch.uint8)
