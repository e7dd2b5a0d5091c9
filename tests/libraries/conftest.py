"""The tests of MPI libraries start jobs as the crash tests do, and make the calls that the guard's tests make."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "libraries"), str(TESTS / "guard"), str(TESTS)]
