"""Notes of a run: written while it runs, bounded, read back, and harmless to the program."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpickpt
from mpickpt.errors import StoreError
from mpickpt.options import Options
from mpickpt.protocol import Epoch
from mpickpt.report.files import KEPT_RUNS, forget_old_runs, notes_path, read_run, run_name, runs
from mpickpt.report.notes import (
    COSTS,
    FORMAT,
    LONGEST,
    MOST,
    EndNote,
    EpochNote,
    Header,
    Note,
    RankNotes,
    Sums,
    fold,
    line_of,
    note_of,
    total,
)
from mpickpt.report.recorder import MOST_WAITS, Recorder
from mpickpt.snapshot import DrainState, Progress
from mpickpt.stats import Stats

STARTED = 1_700_000_000_123_456_789

SECONDS = st.integers(0, 10**9).map(lambda microseconds: microseconds / 1e6)
COUNTS = st.integers(0, MOST)
WAITS = st.lists(st.tuples(SECONDS, SECONDS), max_size=3).map(tuple)
TEXTS = st.text(max_size=LONGEST)
KNOWN = {"int": COUNTS, "float": SECONDS, "str": TEXTS, "bool": st.booleans(), "int | None": st.none() | COUNTS}
KNOWN["tuple[tuple[float, float], ...]"] = WAITS


def notes_of_kind(kind: type[Note]) -> st.SearchStrategy[Note]:
    """Make notes of one kind."""
    return st.builds(kind, **{name: KNOWN[str(one.type)] for name, one in kind.__dataclass_fields__.items()})


def options(folder: Path, *, record: bool = True) -> Options:
    return Options(folder, every=5, interval=None, record=record)


def progress(epoch: int = 1, **values: object) -> Progress:
    """Make what the snapshotter says of a drain that has ended."""
    made = Progress(
        epoch=epoch, state=DrainState.COMPLETE, errno=0, blocks=9, blocks_dirty=8, blocks_saved=8, blocks_copied=3,
        bytes_written=1000 + epoch, bytes_waiting=200, bytes_urgent=300, blocked_seconds=0.001, drain_seconds=0.25,
        stall_seconds=0.002, fault_seconds=0.004, faults=7, direct=True, channels_pending=False, torn=None,
        untracked=None, unsynced=None,
    )  # fmt: skip
    return replace(made, **values)  # type: ignore[arg-type]


class Run:
    """A recorder with its own idea of the time, and what it was told in all."""

    def __init__(self, folder: Path, **values: object) -> None:
        self.folder = folder
        self.recorder = Recorder(options(folder), 0, 1, 7, STARTED, **values)  # type: ignore[arg-type]
        self.recorder.begin(None, 0.5, 1 << 20, 1 << 16)
        self.path = notes_path(folder, run_name(7, STARTED), 0)
        self.at = self.recorder._zero

    def epoch(self, number: int) -> None:
        """Wait, cut, drain."""
        self.at += 1.0
        self.recorder.waited(self.at, 0.125)
        self.recorder.cut(Epoch(number, 5 * number, number % 2), self.at + 0.125, 0.01, progress(number - 1, faults=9))
        self.recorder.drained(progress(number))

    def end(self) -> None:
        self.recorder.end(self.at + 1.0, Stats(complete=3), progress(faults=11, fault_seconds=0.5), by_itself=False)

    def read(self) -> RankNotes:
        return read_run(self.folder, run_name(7, STARTED)).ranks[0]


# -- lines -------------------------------------------------------------------------------------------------------------


@given(st.one_of(*(notes_of_kind(kind) for kind in (Header, EpochNote, Sums, EndNote))))
def test_a_note_is_read_as_it_was_written(note: Note) -> None:
    line = line_of(note)
    assert line.endswith("\n") and "\n" not in line[:-1]
    assert note_of(line) == note


@given(st.lists(notes_of_kind(EpochNote), min_size=1, max_size=6), st.integers(0, 6))
def test_sums_keep_what_they_are_the_sum_of(epochs: list[EpochNote], first: int) -> None:
    once = fold(Sums(), epochs)
    assert asdict(fold(fold(Sums(), epochs[:first]), epochs[first:])) == pytest.approx(asdict(once))
    assert (once.epochs, once.last, once.until) == (len(epochs), epochs[-1].epoch, epochs[-1].drained)
    assert once.failed == sum(1 for epoch in epochs if epoch.errno)
    for name in COSTS:
        assert getattr(once, name) == pytest.approx(sum(getattr(epoch, name) for epoch in epochs))


@pytest.mark.parametrize(
    "line",
    [
        *("", "nonsense", "3", "{}", '{"note": 3}', '{"note": "epoch"}'),
        line_of(EpochNote()).replace('"epoch":0', '"epoch":"0"'),
        line_of(EpochNote()).replace('"blocked":0.000000', '"blocked":null'),
        line_of(EpochNote()).replace('"blocked":0.000000', '"blocked":NaN'),
        line_of(EpochNote()).replace('"waits":[]', '"waits":[[1]]'),
        line_of(EndNote()).replace('"by_itself":false', '"by_itself":0'),
        line_of(EndNote()).replace('"complete":0', '"complete":true'),
    ],
)
def test_what_is_no_note_is_told(line: str) -> None:
    with pytest.raises(ValueError):
        note_of(line)


def test_unknown_kinds_and_fields_are_left_to_those_who_know_them() -> None:
    assert note_of('{"note": "weather"}') is None
    assert note_of(line_of(EpochNote(epoch=3)).replace('"slot"', '"colour":"red","slot"')) == EpochNote(epoch=3)


# -- the recorder ------------------------------------------------------------------------------------------------------


def test_what_was_told_is_noted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.epoch(1)
    run.epoch(2)
    assert len(run.read().epochs) == 2, "and can be read while the program runs"
    run.end()
    notes = run.read()
    assert (notes.header.rank, notes.header.ranks, notes.header.every, notes.header.interval) == (0, 1, 5, "")
    assert (notes.header.started_ns, notes.header.restart_seconds, notes.header.format) == (STARTED, 0.5, FORMAT)
    first, second = notes.epochs
    assert (first.epoch, first.step, first.slot, first.cut, first.waits) == (1, 5, 1, 1.125, ((1.0, 0.125),))
    assert (first.blocked, first.waited, first.drain, first.bytes_written) == (0.01, 0.125, 0.25, 1001)
    assert (first.faults, first.late_faults) == (7, 9), "faults before the first cut: after a restart there are some"
    assert (second.faults, second.late_faults) == (7, 2)
    assert second.bytes_idle == 1002 - 200 - 300
    assert notes.end is not None
    assert (notes.end.closing, notes.end.late_faults, notes.end.late_fault_seconds) == (3.0, 4, 0.496)
    assert (notes.end.complete, notes.end.by_itself) == (3, False)


def test_only_the_owner_may_read_the_notes(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run = Run(tmp_path)
        run.end()
    finally:
        os.umask(before)
    for path, mode in ((run.path, 0o600), (run.path.parent, 0o700), (run.path.parent.parent, 0o700)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path


def test_nothing_is_written_while_the_storage_hangs(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.recorder.cut(Epoch(1, 5, 1), run.at, 0.01, progress(0))
    run.recorder.drained(progress(1, state=DrainState.HUNG, errno=errno.ETIMEDOUT), hung=True)
    assert run.read().epochs == ()
    run.epoch(2)
    assert [(note.epoch, note.errno) for note in run.read().epochs] == [(1, errno.ETIMEDOUT), (2, 0)]
    run.recorder.cut(Epoch(3, 15, 1), run.at, 0.01, progress(2))
    run.recorder.drained(progress(3, state=DrainState.HUNG, errno=errno.ETIMEDOUT), hung=True)
    file = run.recorder._file
    run.end()
    assert file is not None
    os.close(file)  # to close it might hang, too
    assert run.read().end is None
    assert len(run.read().epochs) == 2


def test_many_waits_are_added_up(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for number in range(100):
        run.recorder.waited(run.at + number, 0.25)
    run.epoch(1)
    run.epoch(2)
    run.end()
    first, second = run.read().epochs
    assert len(first.waits) == MOST_WAITS
    assert first.waited == sum(seconds for _, seconds in first.waits) == 25.125
    assert second.waited == 0.125


@pytest.mark.parametrize("count", [3, 50, 2000])
def test_the_file_is_bounded_and_the_sums_are_not_touched(tmp_path: Path, count: int) -> None:
    limit = 16_000
    run = Run(tmp_path, limit=limit)
    for number in range(1, count + 1):
        run.epoch(number)
        assert run.path.stat().st_size <= limit
    run.end()
    notes = run.read()
    assert run.path.stat().st_size <= limit
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]
    assert notes.sums.epochs + len(notes.epochs) == count
    assert [epoch.epoch for epoch in notes.epochs] == list(range(notes.sums.last + 1, count + 1))
    assert len(notes.epochs) > min(count - 1, 10)
    assert notes.end is not None
    everything = total([notes.sums, *notes.epochs, notes.end])
    assert everything.bytes_written == sum(1000 + number for number in range(1, count + 1))
    assert everything.waited == pytest.approx(0.125 * count)
    assert everything.faults + everything.late_faults == 7 * count + 9 + 2 * (count - 1) + 4
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o600


def test_an_end_that_does_not_fit_makes_room(tmp_path: Path) -> None:
    for spare in range(0, 700, 50):
        folder = tmp_path / str(spare)
        folder.mkdir()
        run = Run(folder, limit=4000 + spare)
        for number in range(1, 30):
            run.epoch(number)
        run.end()
        notes = run.read()
        assert notes.end is not None
        assert notes.sums.epochs + len(notes.epochs) == 29


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.epoch(1)
    run.epoch(2)
    run.recorder._close()  # as by SIGKILL
    whole = run.path.read_bytes()
    second = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in (second, second + 1, len(whole) - 1):
        run.path.write_bytes(whole[:end])
        assert [epoch.epoch for epoch in run.read().epochs] == [1]
    run.path.write_bytes(b'{"note":"ru')
    assert read_run(tmp_path, run.path.parent.name).ranks == {}


def test_damaged_notes_are_told_with_their_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.epoch(1)
    run.end()
    lines = run.path.read_text().splitlines(keepends=True)
    for number in range(3):
        run.path.write_text("".join([*lines[:number], "nonsense\n", *lines[number + 1 :]]))
        with pytest.raises(StoreError, match=rf"rank-00000.jsonl is corrupt in line {number + 1}: "):
            run.read()
    run.path.write_text(lines[1])
    with pytest.raises(StoreError, match="does not say which rank"):
        run.read()


def test_notes_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.end()
    run.path.write_text(json.dumps({"note": "run", "format": FORMAT + 1, "new": []}) + "\n")
    with pytest.raises(StoreError, match=f"format version {FORMAT + 1}, and this mpickpt reads up to {FORMAT}"):
        run.read()


def test_notes_are_given_up_with_one_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    run = Run(tmp_path)
    run.epoch(1)
    run.end()
    told = capsys.readouterr().err
    assert told.count("mpickpt: ") == 1 == told.count("\n")
    assert f"rank 0 takes no more notes for mpickpt report: {tmp_path / 'runs'}: File exists." in told


def test_a_full_disk_ends_the_notes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.epoch(1)
    assert run.recorder._file is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, run.recorder._file)
    os.close(full)
    for number in range(2, 9):
        run.epoch(number)
    run.end()
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert [epoch.epoch for epoch in run.read().epochs] == [1]


def test_a_folder_that_is_gone_ends_the_notes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, limit=4000)
    run.path.unlink()
    run.path.parent.rmdir()
    for number in range(1, 30):
        run.epoch(number)
    run.end()
    assert capsys.readouterr().err.count("No such file or directory") == 1


def test_a_drain_without_a_cut_is_no_epoch(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.recorder.drained(progress(1))
    run.end()
    run.end()
    run.epoch(2)
    assert run.read().epochs == ()


# -- runs of a directory -----------------------------------------------------------------------------------------------


def test_runs_are_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    names = [run_name(number, STARTED + 1_000_000 * number) for number in (9, 1, 500, 70_000, 2**33)]
    for name in names:
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "mine").mkdir()
    assert runs(tmp_path) == [names[1], names[0], *names[2:]]
    assert runs(tmp_path / "nothing") == []


def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    made = [run_name(number, STARTED + 10**9 * number) for number in range(KEPT_RUNS + 5)]
    for name in made:
        notes_path(tmp_path, name, 0).parent.mkdir(parents=True)
        notes_path(tmp_path, name, 0).touch()
    (tmp_path / "runs" / "mine").mkdir()
    forget_old_runs(tmp_path)
    assert runs(tmp_path) == made[-KEPT_RUNS + 1 :]
    assert (tmp_path / "runs" / "mine").exists()
    forget_old_runs(tmp_path / "nothing")
    compute(tmp_path)
    assert runs(tmp_path)[:-1] == made[-KEPT_RUNS + 1 :]
    compute(tmp_path)
    assert runs(tmp_path)[:-2] == made[-KEPT_RUNS + 2 :]


# -- sessions ----------------------------------------------------------------------------------------------------------


def compute(folder: Path, **values: object) -> mpickpt.Session:
    with mpickpt.open(folder, every=5, **values) as ckpt:  # type: ignore[arg-type]
        u = ckpt.array("u", 300_000)
        for _ in ckpt.range(ckpt.restored.step + 23 if ckpt.restored else 23):
            u += 1
    return ckpt


def test_each_run_has_notes_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        compute(tmp_path)
    one, two = (read_run(tmp_path, name).ranks[0] for name in runs(tmp_path))
    assert [epoch.step for epoch in one.epochs] == [5, 10, 15, 20]
    assert one.header.restored is None
    assert two.header.restored == 4
    assert [epoch.epoch for epoch in two.epochs] == [5, 6, 7, 8]
    assert two.header.state_bytes == 2_400_000


def test_notes_can_be_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute(tmp_path / "code", record=False)
    monkeypatch.setenv("MPICKPT_RECORD", "0")
    compute(tmp_path / "environment")
    for name in ("code", "environment"):
        assert not (tmp_path / name / "runs").exists()


def test_a_program_goes_on_where_no_notes_can_be_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").touch()
    assert compute(tmp_path).stats().complete == 4
    assert capsys.readouterr().err.count("takes no more notes") == 1


def test_a_rank_that_leaves_by_an_exception_says_so(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), mpickpt.open(tmp_path, every=5) as ckpt:
        u = ckpt.array("u", 1000)
        for step in ckpt.range(23):
            u += 1 / (7 - step)
    (name,) = runs(tmp_path)
    notes = read_run(tmp_path, name).ranks[0]
    assert [epoch.epoch for epoch in notes.epochs] == [1]
    assert notes.end is not None
    assert notes.end.by_itself


def test_a_session_without_a_safe_point_leaves_no_notes(tmp_path: Path) -> None:
    with mpickpt.open(tmp_path) as ckpt:
        _u = ckpt.array("u", 10)
    assert runs(tmp_path) == []
