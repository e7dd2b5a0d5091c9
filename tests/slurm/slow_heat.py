"""jobs/heat with a pause in each step, so that many jobs fit on few cores; rank 0 records each of its steps.

The tests put it where the batch scripts expect jobs/heat/checkpointed.py.
"""

import os
import runpy
import sys
import time
from pathlib import Path

HEAT = Path(os.environ["HEAT"])
PAUSE = 0.01

sys.path.insert(0, str(HEAT))
heat = runpy.run_path(str(HEAT / "checkpointed.py"), run_name="heat")
marks = os.open(f"{os.environ['MPICKPT_DIR']}.steps", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
first = heat["MPI"].COMM_WORLD.rank == 0
relax = heat["relax"]
real_time = time.time


def slowly(u: object) -> None:
    """Do a step."""
    time.sleep(PAUSE)
    relax(u)
    if first:
        os.write(marks, b".")
        if os.environ.get("CLOCK_JUMP") and os.fstat(marks).st_size == 100:
            time.time = lambda: real_time() + float(os.environ["CLOCK_JUMP"])


heat["main"].__globals__["relax"] = slowly
heat["main"]()
