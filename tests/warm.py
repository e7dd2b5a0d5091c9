"""An interpreter that runs ``python -m mpickpt …`` again and again, each time in a child process of its own.

The time that other packages take to be imported is spent once: a child is a copy of an interpreter that has them.
Everything else is as in a process that was started: the child imports mpickpt, ends as interpreters do, and prints what
it does not catch.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

IMPORTED = ("h5py", "numpy", "rich.console", "rich.progress", "rich.table")


class Warm:
    """The interpreter, as a test sees it."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder

    def run(
        self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], patience: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -m mpickpt`` with these arguments; SIGALRM ends it after `patience` seconds."""
        files = [self._folder / name for name in ("stdout", "stderr")]
        asked = {
            "arguments": list(arguments),
            "cwd": str(cwd),
            "env": dict(env),
            "files": [str(path) for path in files],
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked | {"patience": patience}) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        return subprocess.CompletedProcess(["mpickpt", *arguments], status, *(path.read_text() for path in files))


@contextmanager
def warm(folder: Path, python: Sequence[str]) -> Iterator[Warm]:
    """Start the interpreter by the command `python`; it keeps two files in `folder`."""
    command = [*python, str(Path(__file__))]
    one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # a child has only the thread that forked
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=one_thread) as process:
        yield Warm(process, folder)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def _serve() -> None:
    """Fork for each line that comes, and tell how the child ended; returns in a child, with all set for its program."""
    for name in IMPORTED:
        __import__(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        for number, path in enumerate((os.devnull, *asked["files"])):
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        signal.alarm(round(asked["patience"]))
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.path[0] = asked["cwd"]
        sys.argv[1:] = asked["arguments"]
        return
    sys.exit()


if __name__ == "__main__":
    _serve()
    runpy.run_module("mpickpt", run_name="__main__", alter_sys=True)
