"""How many of their random cases tests run: a share of them shows the same with less certainty."""

from __future__ import annotations

import os

SHARE = float(os.environ.get("MPICKPT_TEST_SHARE", "100")) / 100.0  # make's SHARE, in percent
if not 0.0 < SHARE <= 1.0:
    raise ValueError("MPICKPT_TEST_SHARE is a percentage above 0 and up to 100")


def examples(full: int) -> int:
    """Return the share of `full` examples, at least one."""
    return max(1, round(full * SHARE))
