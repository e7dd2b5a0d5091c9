"""mpickpt report: its output, the page, its pictures, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

import mpickpt
from mpickpt.cli.main import main
from mpickpt.report.figures import figures_of
from mpickpt.report.files import runs
from mpickpt.report.notes import FORMAT, LAST_NS, EndNote, EpochNote, Header, RankNotes, RunNotes, fold
from mpickpt.report.page import Section, page, percent
from mpickpt.report.pictures import COLOURS, SHOWN_RANKS, chosen_ranks, draw_svg, draw_time_line

# Opens the fonts before the first test, so that they are no test's leak.
draw_svg("", lambda figure: figure.suptitle("x"))

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "use", "path", "rect", "image", "line"}

# Put at the end of a page: what the browser made of it becomes its title.
PROBE = """<script>
const seen = [...document.querySelectorAll("figure svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  const shapes = [...svg.querySelectorAll("path, use")].filter(s => s.getBoundingClientRect().width > 0);
  const text = svg.querySelector("text");
  return [box.width, box.height, shapes.length, getComputedStyle(text).fill];
});
document.title = "SEEN" + JSON.stringify({seen, ground: getComputedStyle(document.body).backgroundColor});
</script>"""


def compute(folder: Path, steps: int = 23) -> None:
    with mpickpt.open(folder, every=5) as ckpt:
        u = ckpt.array("u", 300_000)
        for _ in ckpt.range(steps):
            u += 1


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a small program."""
    folder = tmp_path_factory.mktemp("report") / "some.ckpt"
    compute(folder)
    compute(folder, 31)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Reader(HTMLParser):
    """Checks that what is opened is closed, and collects what is asked for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elsewhere: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and not (value or "").startswith(("#", "data:")):
                self.elsewhere.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


# -- the verb ----------------------------------------------------------------------------------------------------------


def test_the_page_of_the_latest_run(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(directory)]) == 0
    told = capsys.readouterr().out
    assert re.match(r"run 2: 2 epochs in .* on 1 rank; lost to checkpoints: .* %", told)
    assert told.endswith("written: some.ckpt.html\n")
    assert [path.name for path in tmp_path.iterdir()] == ["some.ckpt.html"]
    reader = read_page(tmp_path / "some.ckpt.html")
    assert reader.elsewhere == []
    text = (tmp_path / "some.ckpt.html").read_text()
    assert not re.search(r"@import|url\((?!#)|<script|<link", text), "it needs no other file"
    assert reader.tags.count("svg") == 2
    for words in ("some.ckpt: what checkpointing cost", "from epoch 4", "one failure in 1.0 d", "PMBS 2013"):
        assert words in reader.text
    assert "not all ranks noted" not in reader.text.lower()


def test_all_runs_with_pictures(directory: Path, tmp_path: Path) -> None:
    assert main(["report", str(directory), "--run", "all", "--png", "-o", "x.html"]) == 0
    names = {f"x-{what}-{number}.png" for what in ("time-line", "epochs") for number in (1, 2)}
    assert {path.name for path in tmp_path.iterdir()} == {"x.html", *names}
    for name in names:
        picture = matplotlib.image.imread(tmp_path / name)
        assert picture.shape[1] >= 1000
        assert len({tuple(pixel) for pixel in picture[::7, ::7].reshape(-1, picture.shape[2])}) > 5
    assert read_page(tmp_path / "x.html").tags.count("svg") == 4
    assert main(["report", str(directory), "--run", "1", "--png", "-o", "x.html"]) == 0
    assert (tmp_path / "x-epochs.png").exists()


def test_figures_as_json(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(directory), "--json", "--run", "all", "--mtbf", "1h"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    first, second = told["runs"]
    assert [epoch["epoch"] for epoch in (*first["epochs"], *second["epochs"])] == [1, 2, 3, 4, 5, 6]
    assert (first["restored"], second["restored"], second["world_size"], second["ended"]) == (None, 4, 1, True)
    assert second["interval"]["mtbf"] == 3600
    for epoch in first["epochs"]:
        assert epoch["added"] == pytest.approx(epoch["blocked"] + epoch["faulted"] + epoch["waited"])
        assert epoch["bandwidth"] == pytest.approx(epoch["nbytes"] / epoch["drain"])
    assert first["lost_share"] == first["ranks"][0]["lost_share"]


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--run", "3"], 2, "There is no run '3' in .*: say latest, all, or a number from 1 .the oldest. to 2."),
        (["--run", "0"], 2, "There is no run '0'"),
        (["--run", "newest"], 2, "There is no run 'newest'"),
        (["--mtbf", "soon"], 2, "Option --mtbf: 'soon' is not a time span"),
        (["-o", "nothing/x.html"], 2, "nothing/x.html cannot be written: No such file or directory"),
    ],
)
def test_misuse_is_told(
    directory: Path, arguments: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(directory), *arguments]) == status
    assert re.match(f"mpickpt: {told}", capsys.readouterr().err)


def test_a_directory_without_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mpickpt.open(tmp_path / "c", every=5, record=False) as ckpt:
        ckpt.step()
    assert main(["report", "c"]) == 1
    assert "There are no notes of any run in c." in capsys.readouterr().err
    (tmp_path / "c" / "runs" / "20261124T101500.000Z-00000000").mkdir(parents=True)
    assert main(["report", "c"]) == 1
    assert "No rank has noted anything of run latest in c yet." in capsys.readouterr().err


def test_damaged_and_newer_notes(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(directory, tmp_path / "c")
    path = tmp_path / "c" / "runs" / runs(directory)[1] / "rank-00000.jsonl"
    header = path.read_text().splitlines()[0]
    newer = header.replace(f'"format":{FORMAT}', '"format":99') + "\n"
    late = re.sub(r'"started_ns":\d+', f'"started_ns":{LAST_NS + 1}', header) + "\n"
    for text, told in (
        (newer, "has format version 99, and this mpickpt reads up"),
        (late, "is corrupt in line 1: its started_ns is missing or wrong"),  # in the year 10000, which no date has
        (header + "\n\0\0\0\n", "is corrupt in line 2"),
    ):
        path.write_text(text)
        assert main(["report", "c"]) == 1
        assert told in capsys.readouterr().err
        assert not (tmp_path / "c.html").exists()
        assert main(["report", "c", "--run", "1"]) == 0, "another run is none the worse for it"
        (tmp_path / "c.html").unlink()
        capsys.readouterr()


def test_without_matplotlib(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "mpickpt.report.pictures")
    monkeypatch.delattr("mpickpt.report.pictures")
    assert main(["report", str(directory)]) == 2
    assert "pip install 'mpickpt[report]'" in capsys.readouterr().err
    assert main(["report", str(directory), "--json"]) == 0


def test_a_running_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mpickpt.open(tmp_path / "c", every=5) as ckpt:
        u = ckpt.array("u", 1000)
        ckpt.step()
        assert main(["report", "c"]) == 0
        assert "run 1: 0 epochs" in capsys.readouterr().out
        for _ in range(8):
            u += ckpt.step()
        assert main(["report", "c"]) == 0
    assert "the program runs, or was killed" in read_page(tmp_path / "c.html").text


# -- the page and its pictures -----------------------------------------------------------------------------------------


def made_run(ranks: int, epochs: int = 3) -> RunNotes:
    """Make the notes of many ranks, of which rank 5 lost most."""
    header = Header(FORMAT, 0, ranks, "n<0>", 10**18, 10, "", 86400.0)
    noted = {}
    for rank in range(ranks):
        cuts = [
            EpochNote(
                epoch=number, step=10 * number, cut=10.0 * number, drained=10.0 * number + 2, drain=2.0, faults=9,
                blocked=0.5 if rank == 5 else 0.01, waits=((10.0 * number + 3, 1.0),), waited=1.0, bytes_written=3000,
                bytes_waiting=1000, bytes_urgent=1000, blocks_due=9, blocks_copied=4, fault_seconds=0.01,
            )
            for number in range(1, epochs + 1)
        ]  # fmt: skip
        end = EndNote(closing=10.0 * epochs + 1, closed=10.0 * epochs + 2, complete=epochs)
        noted[rank] = RankNotes(replace(header, rank=rank), tuple(cuts), end=end)
    return RunNotes("made", noted)


def made_page(run: RunNotes, name: str = "made") -> str:
    figures = figures_of(run)
    svg = draw_svg("time line", lambda figure: draw_time_line(figure, run, figures))
    return page(name, [Section(1, figures, svg, None, len(figures.ranks) - len(chosen_ranks(figures)))])


def test_every_kind_of_time_has_its_colour_in_the_time_line() -> None:
    run = made_run(2)
    figures = figures_of(run)
    svg = draw_svg("x", lambda figure: draw_time_line(figure, run, figures))
    for what, colour in COLOURS.items():
        drawn = len(re.findall(rf"fill: ?{colour}", svg))
        assert (drawn > 0) == (what not in ("noted as sums", "blocks copied", "blocks saved as they were")), what
    assert "currentColor" in svg
    assert "#101112" not in svg


@pytest.mark.parametrize("ranks", [1, SHOWN_RANKS, SHOWN_RANKS + 1, 1000])
def test_ranks_of_the_time_line(ranks: int) -> None:
    figures = figures_of(made_run(ranks, epochs=1))
    chosen = chosen_ranks(figures)
    assert len(chosen) <= SHOWN_RANKS
    assert chosen == sorted(set(chosen))
    assert {0, ranks - 1} <= set(chosen)
    assert ranks <= 5 or 5 in chosen, "that which lost most"
    assert ranks > SHOWN_RANKS or chosen == list(range(ranks))


def test_a_page_of_many_ranks_and_of_odd_names() -> None:
    text = made_page(made_run(40), "a<b>&c")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "a<b>&c: what checkpointing cost" in reader.text
    assert "n<0>" in reader.text
    left_out = 40 - len(chosen_ranks(figures_of(made_run(40))))
    assert f"{left_out} ranks of 40 left out of the picture" in reader.text
    assert len(text) < 400_000


def test_a_page_says_what_is_missing() -> None:
    run = made_run(3)
    del run.ranks[1]
    run.ranks[2] = replace(run.ranks[2], end=None, epochs=(replace(run.ranks[2].epochs[0], errno=28),))
    text = made_page(run)
    for words in ("notes of 1 rank are missing", "Not all ranks noted their end", "1 epoch failed; the last was 1"):
        assert words in text


def test_a_page_tells_of_sums() -> None:
    run = made_run(2, epochs=5)
    for rank, notes in run.ranks.items():
        run.ranks[rank] = replace(notes, epochs=notes.epochs[2:], sums=fold(notes.sums, notes.epochs[:2]))
    text = made_page(run)
    assert "Noted as sums alone, as notes are bounded: 2 older epochs." in text
    assert "epochs complete, of 3 noted one by one" in text
    assert re.search(rf"fill: ?{COLOURS['noted as sums']}", text)


def test_a_long_run_stays_a_small_page() -> None:
    assert len(made_page(made_run(16, epochs=400))) < 2_000_000


def test_percent() -> None:
    assert [percent(x) for x in (0, 0.00001234, 0.0123, 0.5, 1)] == ["0 %", "0.0012 %", "1.2 %", "50 %", "100 %"]


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[list[str]]:
    """Give the beginning of a command line of Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (apt-get install chromium)")
    own = tmp_path / "profile"
    yield [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--disable-dev-shm-usage", "--virtual-time-budget=5000", f"--user-data-dir={own}", "--window-size=1200,2400"),
    ]
    shutil.rmtree(own, ignore_errors=True)


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_the_page(directory: Path, tmp_path: Path, browser: list[str], dark: bool) -> None:
    assert main(["report", str(directory), "-o", "x.html"]) == 0
    text = (tmp_path / "x.html").read_text(encoding="utf-8")
    (tmp_path / "probe.html").write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]

    def look(*arguments: str) -> str:
        run = subprocess.run([*browser, *scheme, *arguments], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        return run.stdout

    title = re.search(r"<title>SEEN(.*?)</title>", look("--dump-dom", (tmp_path / "probe.html").as_uri()))
    assert title is not None
    told = json.loads(title[1].replace("&quot;", '"'))
    assert len(told["seen"]) == 2
    for width, height, shapes, ink in told["seen"]:
        assert width > 900 and height > 100
        assert shapes > 10
        assert ink == ("rgb(230, 233, 235)" if dark else "rgb(28, 33, 38)")
    assert told["ground"] == ("rgb(20, 24, 27)" if dark else "rgb(252, 252, 251)")

    look(f"--screenshot={tmp_path / 'shot.png'}", (tmp_path / "x.html").as_uri())
    shot = (matplotlib.image.imread(tmp_path / "shot.png")[..., :3] * 255).round().astype(int)
    assert abs(int(shot[2, 2].mean()) - (22 if dark else 252)) < 6
    for kinds in (("computes",), ("blocks copied", "blocks saved as they were")):
        colours = [[int(COLOURS[what][at : at + 2], 16) for at in (1, 3, 5)] for what in kinds]
        drawn = sum(int((abs(shot - colour).max(axis=2) < 12).sum()) for colour in colours)
        assert drawn > 3000, f"{kinds} are not to be seen"
