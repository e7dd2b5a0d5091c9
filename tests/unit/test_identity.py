"""The process of a lost rank is ended, and no other."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mpickpt.mpi.identity import Identity, end_process, own_identity

CODE = "from mpickpt.mpi.identity import own_identity as own; print(own(), flush=True); import time; time.sleep(60)"


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], Identity]]:
    """Give a process that sleeps, and what it says of itself."""
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said: Identity = eval(process.stdout.readline())
    yield process, said
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_process_is_gone_afterwards(child: tuple[subprocess.Popen[str], Identity]) -> None:
    process, identity = child
    assert identity.process == process.pid
    begin = time.monotonic()
    end_process(identity)  # it stays a zombie, as this test has not waited for it: its threads have ended
    assert time.monotonic() - begin < 5
    assert process.wait(1) == -9


@pytest.mark.parametrize(
    "change", [{"started": 1}, {"space": 1}, {"host": "elsewhere"}], ids=["a later process", "a container", "a host"]
)
def test_another_process_of_the_same_number_is_left_alone(
    change: dict[str, int], child: tuple[subprocess.Popen[str], Identity]
) -> None:
    process, identity = child
    end_process(replace(identity, **change))  # type: ignore[arg-type]
    time.sleep(0.1)
    assert process.poll() is None


def test_a_process_knows_itself() -> None:
    assert own_identity() == own_identity()
    assert str(own_identity().process) in own_identity().text
