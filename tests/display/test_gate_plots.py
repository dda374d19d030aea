"""The pictures: every character in its column, whatever the width, on every kind of terminal."""

import re
from xml.etree import ElementTree

import pytest

from lstmlm.display.gate_plots import RAMP, SHADES, TWO_SIDED, Row, Scale, fitted, gates_svg, glyph, painted, view
from lstmlm.display.text_plots import cells

TEXT = "Bob is a baker.\nDan 日本 ran\thome."
SCALE = Scale("forget gate", 0.0, 1.0)
SEQUENCE = re.compile("\x1b\\[[0-9;]*m")
INK = {0: 30, 15: 97}  # black and white, as a terminal is asked for them


def rows() -> list[Row]:
    """Make two rows: one that rises along the text, one around zero."""
    n = len(TEXT)
    signed = [2 * i / (n - 1) - 1 for i in range(n)]
    return [Row("forget 1", [i / (n - 1) for i in range(n)], SCALE), Row("cell 2:17", signed, fitted("cell", [signed], True))]


@pytest.mark.parametrize("width", [12, 40, 80, 200])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("unicode", [False, True])
def test_no_line_is_wider_than_the_terminal(width: int, colour: bool, unicode: bool) -> None:
    """Text and rows stay within the width, also with characters of two columns, and all of the text is there."""
    shown = SEQUENCE.sub("", view(list(TEXT), rows(), width, colour, unicode)).split("\n\n")
    blocks = [block.split("\n") for block in shown[:-1]]

    assert all(cells(line) <= width for block in blocks for line in block)
    assert all(len(block) == 3 for block in blocks)
    text = "".join(block[0].strip() for block in blocks)
    assert text.replace(" ", "") == "".join(glyph(c, unicode) for c in TEXT).replace(" ", "")


def test_not_one_escape_without_colour() -> None:
    """Where colour is not welcome there is no ESC byte, and ASCII means ASCII."""
    assert "\x1b" not in view(list(TEXT), rows(), 60)
    assert view(list(TEXT.replace("日本", "x")), rows()[:1], 60, unicode=False).isascii()


def test_shades_follow_the_values() -> None:
    """The lowest value has the lightest shade, the highest the darkest, and they never get lighter on the way up."""
    chars = list("abcdefghij")
    line = view(chars, [Row("x", [i / 9 for i in range(10)], SCALE)], 80).split("\n")[1]
    levels = [SHADES.index(c) for c in line[2:].ljust(10)]

    assert levels[0] == 0
    assert levels[-1] == len(SHADES) - 1
    assert levels == sorted(levels)


def test_colour_puts_the_text_on_coloured_ground() -> None:
    """Each row repeats the text, each character in ink and ground of its value, and the line ends plain."""
    line = view(list("ab"), [Row("x", [0.0, 1.0], SCALE)], 80, colour=True).split("\n")[1]
    (low, low_ink), (high, high_ink) = RAMP[0], RAMP[-1]

    assert line == f"x \x1b[{INK[low_ink]};48;5;{low}ma\x1b[0m\x1b[{INK[high_ink]};48;5;{high}mb\x1b[0m"


def test_a_signed_scale_has_zero_in_the_middle() -> None:
    """Zero gets the neutral colour whatever the largest value is."""
    scale = fitted("cell", [[-1.0, 3.0]], signed=True)
    line = view(["a"], [Row("x", [0.0], scale)], 80, colour=True).split("\n")[1]

    assert (scale.low, scale.high) == (-3.0, 3.0)
    assert f";48;5;{TWO_SIDED[len(TWO_SIDED) // 2][0]}m" in line


def test_a_scale_fits_what_is_finite() -> None:
    """Values that are not finite do not stretch it, and equal values do not divide by zero."""
    assert fitted("x", [[1.0, float("nan")], [2.0]]) == Scale("x", 1.0, 2.0)
    assert fitted("x", [[5.0, 7.0]], low=0.0) == Scale("x", 0.0, 7.0)
    assert fitted("x", [[2.0, 2.0]]).share(2.0) == 0.5


def test_the_legend_has_the_numbers() -> None:
    """Each scale is named once, with the values of its two ends."""
    legend = view(list(TEXT), [*rows(), Row("forget 2", [0.5] * len(TEXT), SCALE)], 80).split("\n")[-2:]

    assert legend == ["forget gate: 0 [ ░▒▓█] 1", "cell: -1 [ ░▒▓█] 1"]


@pytest.mark.parametrize(
    ("char", "shown", "plain"), [("\n", "↵", "$"), ("\x1b", "·", "?"), ("\u0301", "·", "?"), ("é", "é", "?"), ("a", "a", "a")]
)
def test_every_character_has_a_column(char: str, shown: str, plain: str) -> None:
    """What would move the cursor, or join the character before it, gets a stand-in."""
    assert glyph(char) == shown
    assert glyph(char, unicode=False) == plain


@pytest.mark.parametrize("unicode", [True, False])
def test_a_line_of_the_text_is_a_line_of_the_view(unicode: bool) -> None:
    """After a line end the view goes on in a new line; a dollar that stands for itself ends none."""
    text = "a$b\n\ncd\n"
    lines = view(text, [Row("r", [0.0] * len(text), SCALE)], 80, unicode=unicode, legend=False).split("\n")
    end = "↵" if unicode else "$"

    assert [line.strip() for line in lines if line.strip() not in ("", "r")] == [f"a$b{end}", end, f"cd{end}"]


def test_svg_is_dark_on_dark_grounds() -> None:
    """The ground and the ink change where the surroundings are dark, and no rectangle of the ground stays white."""
    svg = gates_svg("Bob", [Row("a", [0.1, float("nan"), 0.9], SCALE)], "title")

    assert "@media (prefers-color-scheme: dark) { .paper { fill: #15181c; }" in svg
    assert 'fill="#ffffff"' not in svg


def test_svg_is_xml_with_a_rectangle_for_every_value() -> None:
    """It parses whatever the text is, and has one cell for each value besides ground and legend."""
    hostile = list('<b>&"\x1b\ufffe]]>')
    root = ElementTree.fromstring(gates_svg(hostile, [Row("<&>", [0.5] * len(hostile), SCALE)], "a < b"))
    rectangles = root.findall("{http://www.w3.org/2000/svg}rect")

    assert len(rectangles) == 1 + 50 + len(hostile)


def test_painted_text_stays_the_text() -> None:
    """Without its sequences it is the text, and each character has the ground of its own value, also after a line end."""
    text = painted("ab\n\nc", [0.0, 1.0, 0.5, 0.5, 1.0], SCALE)

    assert SEQUENCE.sub("", text) == "ab\n\nc"
    assert text.split("\n")[2] == f"\x1b[{INK[RAMP[-1][1]]};48;5;{RAMP[-1][0]}mc\x1b[0m"
