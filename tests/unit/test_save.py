"""ckpt.save() and ckpt.wait() on one rank: the step of a restart, and what a program is told."""

from __future__ import annotations

import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

import mpickpt
from mpickpt.session.waits import Waits
from mpickpt.snapshot import crc32c
from mpickpt.store import Store

Save = Callable[[bool | None], None]
Program = Callable[[mpickpt.Session, np.ndarray, Save], None]


class Ended(Exception):
    """The program ends here, as by a crash."""


def once(u: np.ndarray, step: int) -> None:
    """Do a step; whether it was done twice, or not at all, shows at the end."""
    u[0] = 3 * u[0] + step + 1
    u[1] += 1


def at_heads(ckpt: mpickpt.Session, u: np.ndarray, save: Save) -> None:
    for step in ckpt.range(5):
        if step % 2:
            save(None)
        once(u, step)


def at_ends(ckpt: mpickpt.Session, u: np.ndarray, save: Save) -> None:
    for step in ckpt.range(3):
        once(u, step)
        save(True)
        save(None)  # nothing was done since


def of_two_loops(ckpt: mpickpt.Session, u: np.ndarray, save: Save) -> None:
    save(None)
    for step in ckpt.range(1, 9, 3):
        once(u, step)
    save(None)
    for step in ckpt.range(9, 12, 2):
        save(False)
        once(u, step)
        save(True)
    save(True)


def of_a_broken_loop(ckpt: mpickpt.Session, u: np.ndarray, save: Save) -> None:
    for step in ckpt.range(9):
        if u[1] == 3:
            break
        once(u, step)
    save(False)


def without_range(ckpt: mpickpt.Session, u: np.ndarray, save: Save) -> None:
    while u[1] < 3:
        step = ckpt.step()
        save(None)
        once(u, step)
    save(True)


def without_steps(ckpt: mpickpt.Session, u: np.ndarray, save: Save) -> None:
    save(None)
    while u[1] < 3:
        once(u, int(u[1]))
        save(True)
    save(None)


@pytest.mark.parametrize("name", ["save", "decide", "while_blocked"])
def test_a_wait_is_no_part_of_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """If it were, a rank that waited would take its steps for long, and wait for others the longer the next time."""
    wait, waits = getattr(Waits, name), 0

    def waits_long(*args: object) -> None:
        nonlocal waits
        waits += 1
        time.sleep(0.3)
        wait(*args)

    monkeypatch.setattr(Waits, name, waits_long)
    paces = []
    with mpickpt.open(tmp_path, every=1) as ckpt:
        u = ckpt.array("u", 1 << 22)
        for step in ckpt.range(9):
            paces.append(ckpt._driver._protocol.seconds_to_next_cut())  # that is one step
            u[:] = step
            if name == "save":
                ckpt.save(next_step=False)
            elif name == "decide":
                ckpt.wait()
    assert waits >= 4, "otherwise this tests nothing"
    assert statistics.median(paces[2:]) < 0.2


@pytest.mark.parametrize(("every", "lazy"), [(None, False), (1, True)])
@pytest.mark.parametrize(
    "program",
    [at_heads, at_ends, of_two_loops, of_a_broken_loop, without_range, without_steps],
    ids=lambda program: program.__name__,
)
def test_a_restart_from_each_save_gives_the_same(
    tmp_path: Path, program: Program, every: int | None, lazy: bool
) -> None:
    """The program is ended after its first save, its second, …, each time in a directory of its own."""

    def run(directory: Path, end_after: int | None) -> tuple[list[float], int]:
        saves = 0

        def save(next_step: bool | None) -> None:
            nonlocal saves
            outcome = ckpt.save(next_step=next_step)
            assert outcome.complete
            assert (outcome.reason, outcome.rank) == ("", None)
            checkpoint = mpickpt.Checkpoint(directory)
            assert (checkpoint.epoch, checkpoint.step) == (outcome.epoch, outcome.step)
            assert checkpoint.path == outcome.path
            saves += 1
            if saves == end_after:
                raise Ended

        options = {"every": every} if every else {"interval": "1h"}
        with mpickpt.open(directory, lazy=lazy, **options) as ckpt:
            u = ckpt.array("u", 1000)
            program(ckpt, u, save)
            return u[:2].tolist(), saves

    wanted, count = run(tmp_path / "straight", None)
    assert count
    for end_after in range(1, count + 1):
        directory = tmp_path / f"{end_after}"
        with pytest.raises(Ended):
            run(directory, end_after)
        assert run(directory, None)[0] == wanted, f"after save {end_after}"


def test_steps_of_a_program_that_only_saves_are_counted(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        _u = ckpt.array("u", 10)
        assert [ckpt.save(next_step=True).step for _ in range(3)] == [1, 2, 3]
        assert ckpt.save().step == 3
    with mpickpt.open(tmp_path) as ckpt:
        _u = ckpt.array("u", 10)
        assert ckpt.restored is not None
        assert ckpt.restored.step == 3
        assert ckpt.save(next_step=True).step == 4
        with pytest.raises(mpickpt.UsageError, match="starts at or below step 3, which was done already"):
            next(ckpt.range(3, 10))


def test_what_only_the_program_knows_is_asked_for(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        u = ckpt.array("u", 10)
        for step in ckpt.range(5):
            once(u, step)
            if step == 2:
                break
        with pytest.raises(mpickpt.UsageError, match=r"The loop was left in step 2, .*save\(next_step=True\)"):
            ckpt.save()
        assert ckpt.save(next_step=False).step == 2
        assert ckpt.save(next_step=True).step == 3
        with pytest.raises(mpickpt.UsageError, match="said that step 2 is done"):
            ckpt.save(next_step=False)
        assert ckpt.save().step == 3


def test_a_cut_that_is_due_by_its_step_is_the_same_one(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=2) as ckpt:
        _u = ckpt.array("u", 10)
        saved = [ckpt.save(next_step=True) for step in ckpt.range(7) if step == 3]
        assert (saved[0].epoch, saved[0].step) == (2, 4)  # after the cut at step 2, and there is no other one at 4
    assert ckpt.stats().cuts == 3


def test_wait_tells_of_the_epoch_in_progress(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=2) as ckpt:
        _u = ckpt.array("u", 1_000_000)
        assert ckpt.wait() is None
        told = []
        for _ in ckpt.range(5):
            told.append(ckpt.wait())
            assert ckpt._driver._protocol.epoch is None
        assert [(one.epoch, one.step, bool(one)) if one else None for one in told] == [
            *(None, None, (1, 2, True), (1, 2, True), (2, 4, True))
        ]


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file grow, or be written to beyond its first bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_failure_is_told_and_the_next_save_succeeds(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=100, record=False) as ckpt:
        u = ckpt.array("u", 100_000)
        assert ckpt.save()
        assert ckpt.save()
        for step in ckpt.range(1, 4):
            u += 1
            if step == 2:
                with small_files(), pytest.warns(RuntimeWarning, match=r"Epoch 3 \(step 3\) failed on rank 0"):
                    failed = ckpt.save(next_step=True)
                assert not failed
                assert (failed.epoch, failed.step, failed.rank) == (3, 3, 0)
                assert failed.reason == "Rank 0: File too large"
                assert ckpt.wait() == failed
                assert 2 in {slot.epoch for slot in Store(tmp_path, crc32c).slots() if slot.complete}
        saved = ckpt.save()
        assert (saved.complete, saved.epoch, saved.step) == (True, 4, 4)


def test_a_slot_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path, every=100, record=False) as ckpt:
        _u = ckpt.array("u", 100_000)
        assert ckpt.save()
        _more = ckpt.array("more", 100_000)
        with small_files(), pytest.warns(RuntimeWarning, match="failed: .*cannot be created"):
            failed = ckpt.save()
        assert not failed
        assert failed.rank is None
        assert "cannot be created" in failed.reason
        assert ckpt.save()


def test_what_the_program_did_wrong_is_raised(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        box = ckpt.object("box", [])
        assert ckpt.save()
        box.append(Lock())
        with pytest.raises(mpickpt.LayoutError, match="Object 'box' cannot be pickled"):
            ckpt.save()
        box.clear()
        assert ckpt.save()
    with pytest.raises(mpickpt.UsageError, match="The session is closed"):
        ckpt.save()


@pytest.mark.parametrize("where", ["before", "inside"])
def test_a_program_that_is_to_stop(tmp_path: Path, where: str) -> None:
    """A request that comes with a save is fulfilled after it, or ends it; the last epoch is complete either way."""
    done = 0
    with pytest.raises(mpickpt.Stopped) as caught, mpickpt.open(tmp_path, every=1000) as ckpt:
        u = ckpt.array("u", 1000)
        for step in ckpt.range(100):
            if step == 3 and where == "before":
                ckpt.request(stop=True)
            if step == 3 and where == "inside":
                ckpt._driver.request(stop=True)
            if step >= 3:
                assert ckpt.save()
                done += 1
            u += 1
            if step >= 3:
                ckpt.save(next_step=True)
    assert done <= 2
    checkpoint = mpickpt.Checkpoint(tmp_path)
    assert checkpoint.epoch == caught.value.epoch
    assert (checkpoint.rank(0)["u"][:] == checkpoint.step).all()
