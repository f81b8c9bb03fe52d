"""The report of a run: what it counts, what it says, that it needs nothing else, and what it does with half a run."""

import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import pytest
from msgspec.structs import replace

from chaos.history.file import read_history
from chaos.history.run import RunUnreadable, read_run, write_run
from chaos.live.pressure import waited_us
from chaos.report.coverage import coverage, installed
from chaos.report.page import build_report
from chaos.report.timeline import OUTCOMES, Timeline, timeline
from tests.chaos.report.made_up import CUTS, ELECTION_S, KILL, SITES, failed, make_run, passed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run", verdict=passed())


@pytest.fixture(scope="module")
def made(folder: Path) -> Timeline:
    return timeline(read_history(folder / "history.jsonl"), SITES)


def text_of(path: Path) -> str:
    return unescape(path.read_text("utf-8"))


def svg_of(path: Path) -> ET.Element:
    html = path.read_text("utf-8")
    return ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def test_every_operation_is_in_one_bar(folder: Path, made: Timeline) -> None:
    ops = read_history(folder / "history.jsonl").ops
    assert sum(sum(lane.per_bin[outcome]) for lane in made.lanes for outcome in OUTCOMES) == len(ops)
    assert [lane.name for lane in made.lanes] == ["dc-a", "gateway-dc-a", "dc-b", "gateway-dc-b"]


def test_faults_leaders_and_deaths_are_where_they_were(made: Timeline) -> None:
    assert [(band.from_s, band.to_s) for band in made.bands[:2]] == list(CUTS)
    assert [band.bit for band in made.bands] == [True, True, True, False]
    assert [band.failed for band in made.bands] == [False, False, False, True]
    reigns = [(reign.name, reign.term) for reign in made.reigns]
    assert reigns == [("dc-a", 2), ("dc-b", 3), ("dc-a", 4), ("dc-b", 5)]
    assert made.reigns[0].to_s == CUTS[0][0]
    ((down_from, down_to),) = next(lane for lane in made.lanes if lane.name == "dc-a").down
    assert (down_from, down_to) == pytest.approx(KILL, abs=0.11)


def test_pauses_are_of_writes_and_of_the_side_that_was_cut_off(made: Timeline) -> None:
    writes = [one for one in made.outages if one.who == "writes"]
    assert {number for one in writes for number in one.faults} >= {1, 2, 3}
    assert all(one.for_s == pytest.approx(ELECTION_S, abs=0.2) for one in writes)
    longest = made.outages[0]
    assert (longest.who, longest.faults) == ("dc-a", [1])
    assert longest.for_s == pytest.approx(CUTS[0][1] - CUTS[0][0], abs=0.3)
    assert not [one for one in made.outages if one.who.startswith("gateway")]


def test_coverage_counts_over_the_lives_of_a_process(folder: Path, made: Timeline) -> None:
    found = coverage(read_history(folder / "history.jsonl"), made)
    assert {kind.nemesis: (kind.begun, kind.bit, kind.failed) for kind in found.kinds} == {
        "dc-cut": (2, 2, 0),
        "kill": (1, 1, 0),
        "clock-jump": (1, 0, 1),
    }
    assert found.events["elections"] == 4
    assert found.events["processes started again"] == 1
    assert found.events["truncations"] == 4  # three members once, and dc-a in its second life too
    assert found.workloads["bank"]["fail"] > 0
    assert found.events["membership_changes"] == 0  # what never happened is shown as such


def test_snapshots_are_counted_in_the_members_logs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", verdict=passed())
    (folder / "members").mkdir()
    for name in ("dc-a", "dc-b"):
        (folder / "members" / f"{name}.log").write_text('{"index": 7, "event": "snapshot installed"}\n' * 2)
    assert installed(folder) == 4
    assert 'snapshots installed</td><td class="n">4<' in build_report(folder).read_text("utf-8")


def test_a_report_stands_alone_and_says_what_came_of_it(folder: Path) -> None:
    path = build_report(folder)
    html, text = path.read_text("utf-8"), text_of(path)
    assert "Every promise was kept." in text
    assert "tiebreak chaos run dc-cut --seconds 60 --seed 7" in text
    assert "The tiebreaker stays with one side" in text
    for outside in ("http://", "https://", "<script", "<link", "@import", "url("):
        assert outside not in html.replace('xmlns="http://www.w3.org/2000/svg"', "")
    drawn = "".join(svg_of(path).itertext())
    assert "Datacenter A" in drawn
    assert "1 dc-cut" in drawn
    assert "dc-b · term 5" in drawn


def test_nothing_is_drawn_outside_of_the_picture(folder: Path) -> None:
    svg = svg_of(build_report(folder))
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    boxes = [box.attrib for box in svg.iter() if box.tag.endswith("rect")]
    assert len(boxes) > 200
    for box in boxes:
        left, top, wide, high = (float(box[name]) for name in ("x", "y", "width", "height"))
        assert left >= 0 and left + wide <= width + 3, box
        assert top >= 0 and top + high <= height, box


def test_a_broken_promise_comes_first_and_can_not_write_on_the_page(tmp_path: Path) -> None:
    path = build_report(make_run(tmp_path / "run", verdict=failed()))
    html, text = path.read_text("utf-8"), text_of(path)
    assert "A promise was broken." in text
    assert text.index("is not in the log") < text.index("All rows of members")
    assert "<b>k-17</b>" in text
    assert "<b>k-17</b>" not in html


def test_a_run_that_was_cut_off_is_shown_as_far_as_it_got(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    history = folder / "history.jsonl"
    history.write_bytes(history.read_bytes()[:-40_007])
    assert "Nobody has judged this run yet." in text_of(build_report(folder))
    history.write_bytes(b"")
    assert "Nobody has judged this run yet." in text_of(build_report(folder))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("run.json", None, "is this the folder of a run?"),
        ("run.json", b"{", "run.json"),
        ("history.jsonl", None, "history.jsonl"),
        ("history.jsonl", b'{"e":"ret\n{}\n', "line 1"),
        ("verdict.json", b'{"verdict": "good"}', "verdict.json"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, file: str, content: bytes | None, says: str) -> None:
    folder = make_run(tmp_path / "run", verdict=passed())
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(RunUnreadable, match=says.replace("?", r"\?")):
        build_report(folder)
    assert not (folder / "report.html").exists()


def test_what_the_tool_had_to_start_again_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", verdict=passed())
    assert "had to be started again" not in text_of(build_report(folder))
    said = "toxiproxy of dc-b <wedged> and was started again, 3.0 s into faults"
    write_run(folder, replace(read_run(folder), restarts=[said]))
    assert said in text_of(build_report(folder))
    assert said not in (folder / "report.html").read_text("utf-8")


def test_a_machine_that_was_short_of_cpu_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", verdict=passed())
    for percent, said in ((-1, False), (59, False), (97, True)):
        write_run(folder, replace(read_run(folder), cpu_short_percent=percent))
        assert (f"{percent} % of the time" in text_of(build_report(folder))) == said


def test_pressure_is_read_where_the_kernel_tells_it(tmp_path: Path) -> None:
    told = tmp_path / "cpu"
    told.write_text("some avg10=98.29 avg60=98.69 avg300=95.51 total=21972444422\nfull avg10=0.00 total=0\n")
    assert waited_us(told) == 21_972_444_422
    told.write_text("")
    assert waited_us(told) is None and waited_us(tmp_path / "none") is None
