"""The contender that lets the kernel copy: fork(), and the child writes the inherited pages.

The child only copies, writes and exits: it makes no MPI call and never returns to the caller. The cost for the parent
is the copy of the page tables in fork(), and one copy-on-write fault for every page that it writes meanwhile.

The child writes from a small buffer. O_DIRECT straight from the inherited pages would pin them, for which the
kernel first gives the child a copy of each page, even of those that the parent never writes to.
"""

from __future__ import annotations

import os
from pathlib import Path

import memory
from blocking import DirectWrite
from direct import CALL_BYTES

REPORT_BYTES = 8


class ForkWrite(DirectWrite):
    """fork(); the child writes with O_DIRECT over a file that exists."""

    def cut(self) -> None:
        """Fork."""
        file = self.files[self.next_turn()]
        self.report, report = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            status = 1
            try:
                file.write(self.state, through=memory.allocate(CALL_BYTES, huge=False))
                os.write(report, _own_bytes().to_bytes(REPORT_BYTES, "little"))
                status = 0
            finally:
                os._exit(status)
        os.close(report)

    def done(self) -> bool:
        """Return whether the child has ended; note how much memory it no longer shared with this process."""
        child, status = os.waitpid(self.child, os.WNOHANG)
        if child == 0:
            return False
        self.copied_bytes = int.from_bytes(os.read(self.report, REPORT_BYTES), "little")
        os.close(self.report)
        if status != 0:
            raise OSError(f"{self.folder}: the forked child that writes the checkpoint failed with status {status}")
        return True


def _own_bytes() -> int:
    """Return how much of the child's memory is private: what the parent has written to, and so copied."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))
