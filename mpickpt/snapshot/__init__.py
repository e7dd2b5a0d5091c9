"""The native snapshotter as Python sees it: with `mpickpt.snapshot.guard`, all that imports the extension.

A `Snapshotter` holds one-dimensional byte views of a rank's arrays. `Snapshotter.cut` fixes the image of all of them
at one instant; drain threads save it while the program goes on. How, is told in ``native/src/blocks.h``. What was
saved comes back by `read_blocks`, or by a `Loader` while the program computes.
"""

try:
    import mpickpt._native  # noqa: F401  (whether it is there)
except ImportError as error:
    raise ImportError(
        f"The native core of mpickpt is not beside {__file__}: either it was not built (pip install .), or Python was "
        f"started in the folder of the sources, which hides the installed package; start it elsewhere."
    ) from error
from mpickpt.snapshot.copier import Copier
from mpickpt.snapshot.plan import CutPlan, Target
from mpickpt.snapshot.reading import Loader, LoadProgress, crc32c, read_blocks
from mpickpt.snapshot.snapshotter import DrainState, Mapping, Memory, Progress, Snapshotter

__all__ = [
    "Copier",
    "CutPlan",
    "DrainState",
    "LoadProgress",
    "Loader",
    "Mapping",
    "Memory",
    "Progress",
    "Snapshotter",
    "Target",
    "crc32c",
    "read_blocks",
]
