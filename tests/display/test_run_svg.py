import math
import re
from xml.etree import ElementTree

import pytest

from lstmlm.display.run_svg import run_svg, ticks

SVG = "{http://www.w3.org/2000/svg}"
STEPS = range(10, 2001, 10)
TRAIN = [(float(s), 1.2 + 3.0 * math.exp(-s / 90)) for s in STEPS]
VALIDATION = [(float(s), 1.3 + abs(s - 1600) / 4000) for s in range(200, 2001, 200)]
RATE = [(float(s), 6e-3 * (1 - s / 2000)) for s in STEPS]
SAMPLES = [(step, f"text of step {step}") for step in range(200, 2001, 200)]


def words(svg: str) -> list[str]:
    """Parse a picture and return its texts in order."""
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_run_in_a_picture() -> None:
    """The picture has both curves, the rate, the best in bits/char with its step, and three of the samples."""
    svg = run_svg(TRAIN, VALIDATION, RATE, SAMPLES, "stories")
    classes = [node.get("class") for node in ElementTree.fromstring(svg).iter(f"{SVG}path") if node.get("clip-path")]

    assert classes == ["train", "validation"]
    assert svg.count('class="rate"') == 1
    assert f"best {1.3 / math.log(2):.4f} bits/char at step 1,600" in words(svg)
    assert [w for w in words(svg) if w.startswith("text of")] == [f"text of step {s}" for s in (200, 1200, 2000)]
    assert "stories" in words(svg)


def test_the_unit_stands_on_the_axis_and_the_names_in_the_plot() -> None:
    """bits/char is above the scale at the left, the names of the curves inside the plot, and the scale of times has a name."""
    svg = run_svg(TRAIN, VALIDATION, RATE, [], "t", seconds=[(0, 0.0), (2000, 61.0)])
    places = {node.text: node.attrib for node in ElementTree.fromstring(svg).iter(f"{SVG}text")}

    assert (places["bits/char"]["text-anchor"], float(places["bits/char"]["x"]) < 64) == ("end", True)
    assert all(64 < float(places[name]["y"]) < 364 and 64 < float(places[name]["x"]) < 836 for name in ("training", "validation"))
    assert "time since the start" in places
    assert "time since the start" not in words(run_svg(TRAIN, VALIDATION, RATE, [], "t"))


def test_a_last_record_of_one_step_is_no_spike() -> None:
    """Where the last record is the mean of fewer steps than the others, it and the one before are one point, weighted."""
    svg = run_svg([*TRAIN, (2001.0, 2.0)], [], RATE, [], "t")
    (path,) = (node for node in ElementTree.fromstring(svg).iter(f"{SVG}path") if node.get("clip-path"))
    heights = [float(y) for _, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path.attrib["d"])]

    assert len(heights) == len(TRAIN)
    assert 0 < heights[-2] - heights[-1] < 40  # of the 257 that the last record alone would rise


def test_a_single_validation_is_a_point() -> None:
    """No line, a dot in the plot and beside its name, and it is not called the best of one."""
    svg = run_svg(TRAIN, VALIDATION[:1], RATE, [], "t")

    assert not re.search(r'<path class="validation"', svg)
    assert svg.count('class="spot"') == 2
    assert any(word.startswith("validation 2.") for word in words(svg))
    assert not any("best" in word for word in words(svg))


def test_everything_lies_on_the_page() -> None:
    """No text and no curve point lies outside the page, save those of the curve that the frame cuts off at the top."""
    svg = run_svg(TRAIN, VALIDATION, RATE, SAMPLES, "stories", seconds=[(0, 0.0), (2000, 61.0)])
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())

    for node in root.iter(f"{SVG}text"):
        assert 0 <= float(node.attrib["x"]) <= width
        assert 0 <= float(node.attrib["y"]) <= height
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path.attrib["d"]):
            assert 0 <= float(x) <= width
            assert float(y) <= height


def test_text_is_escaped() -> None:
    """Markup, controls, surrogates and what XML forbids are shown, never obeyed."""
    nasty = "</text><script>alert(1)</script> & \x00 \x1b[31m \x9b \ud800 \ufffe \u202e ]]> \"'"
    svg = run_svg(TRAIN, VALIDATION, RATE, [(1, nasty)], nasty + "x" * 300)
    found = words(svg)

    assert "<script" not in svg
    svg.encode("utf-8")
    assert any(word.startswith("</text><script>alert(1)</script> & \\x00 \\x1b[31m \\x9b \\ud800 ") for word in found)


def test_nothing_from_elsewhere() -> None:
    """The picture is self-contained, has no script, and knows dark surroundings."""
    svg = run_svg(TRAIN, VALIDATION, RATE, SAMPLES, "stories")

    assert set(re.findall(r"https?://[^\"]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script|href|@import|<image|<foreignObject", svg)
    assert set(re.findall(r"url\(([^)]*)\)", svg)) == {"#curves"}
    assert "@media (prefers-color-scheme: dark)" in svg


@pytest.mark.parametrize(
    ("train", "validation", "rate"),
    [
        ([], [], []),
        ([(1.0, 2.0)], [], []),
        ([], [(5.0, 2.0)], []),
        ([(1.0, math.nan), (2.0, math.inf)], [(2.0, 1.0)], [(1.0, 0.0)]),
        ([(1.0, 2.0), (2.0, 2.0)], [(2.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)]),
    ],
    ids=["nothing", "one step", "one validation", "not finite", "flat"],
)
def test_short_runs(
    train: list[tuple[float, float]], validation: list[tuple[float, float]], rate: list[tuple[float, float]]
) -> None:
    """However little a run has to show, the picture is well formed and has no number that is none."""
    svg = run_svg(train, validation, rate, [], "short")
    ElementTree.fromstring(svg)

    assert not re.search(r"\b(nan|inf)\b", svg)


def test_times_stand_over_the_steps_reached_then() -> None:
    """With seconds given, a second scale shows them, each over its step, also where the speed changed."""
    svg = run_svg(TRAIN, VALIDATION, RATE, [], "t", seconds=[(0, 0.0), (1000, 60.0), (2000, 240.0)])
    places = {node.text: float(node.attrib["x"]) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")}

    assert places["1:00"] == pytest.approx(places["1k"], abs=0.2)
    assert places["4:00"] == pytest.approx(places["2k"], abs=0.2)


def test_times_do_not_lie_on_each_other() -> None:
    """Where time goes by without a step, as while validating, only the first of the times is written."""
    svg = run_svg(TRAIN, VALIDATION, RATE, [], "t", seconds=[(0, 0.0), (1000, 60.0), (1001, 120.0), (2000, 180.0)])

    assert [time for time in ("0:30", "1:00", "1:30", "2:00", "2:30", "3:00") if time in words(svg)] == [
        "0:30",
        "1:00",
        "2:30",
        "3:00",
    ]


def test_samples_are_cut_between_words() -> None:
    """A long line of a sample goes on in the next row after a blank; one without blanks is cut where the row ends."""
    line = "seven words in all, and not more " * 6 + "x" * 150
    shown = [row for row in words(run_svg(TRAIN, VALIDATION, RATE, [(5, line)], "t")) if "seven" in row or "xx" in row]

    assert " ".join(shown[:2]) + " " + "".join(shown[2:]) == line
    assert all(len(row) <= 104 for row in shown)


def test_a_long_run_is_a_small_file() -> None:
    """A hundred thousand records become a picture of less than 60 kB that keeps the last of them."""
    long = [(float(s), 2.0 + math.sin(s)) for s in range(1, 100_001)]
    svg = run_svg(long, VALIDATION, long, [], "long")

    assert len(svg) < 60_000
    assert "100k" in words(svg)


@pytest.mark.parametrize(("low", "high"), [(0.0, 2000.0), (1.83, 4.41), (1e-6, 3e-6), (0.0, 1.0), (7.0, 1e9)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    """Ticks lie in the range, between 2 and 7 of them, equally far apart, by 1, 2 or 5 of a power of ten."""
    marks = ticks(low, high)
    apart = marks[1] - marks[0]

    assert 2 <= len(marks) <= 7
    assert low <= marks[0] * (1 + 1e-9)
    assert marks[-1] <= high * (1 + 1e-9)
    assert f"{apart:.0e}"[0] in "125"
    assert apart == pytest.approx(marks[-1] - marks[-2])


def test_ticks_of_no_range() -> None:
    """An empty range has one tick."""
    assert ticks(2.0, 2.0) == [2.0]
