"""Run Python without root's right to ignore file permissions: unprivileged.py ARGS is python ARGS.

A capability dropped from the bounding set is gone after the next exec. The user stays the same, so that the
interpreter can still be read wherever it is installed.
"""

import ctypes
import os
import sys

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2

if __name__ == "__main__":
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl(PR_CAPBSET_DROP) is refused")
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
