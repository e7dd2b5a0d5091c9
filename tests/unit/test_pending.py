"""Requests that nobody waits for."""

import subprocess
import sys

CODE = """
import os
import numpy as np
from mpickpt.mpi.pending import Pending, abandon, reclaim

class Buffer(np.ndarray):
    def __del__(self, write=os.write):
        write(1, b"freed ")

def pending():
    return Pending(None, np.empty(1).view(Buffer))

{what}
"""


def freed(what: str) -> bool:
    """Tell whether the interpreter has freed a buffer when it ends."""
    run = subprocess.run([sys.executable, "-c", CODE.format(what=what)], capture_output=True, text=True, timeout=150)
    assert (run.returncode, run.stderr) == (0, "")
    return "freed" in run.stdout


def test_what_is_abandoned_outlives_the_interpreter() -> None:
    """For MPI_Finalize comes later still."""
    assert freed("kept = [pending()]"), "as a module lets go of all that it keeps"
    assert not freed("abandon(pending())")
    assert freed("one = pending(); abandon(one); reclaim(one); del one")
