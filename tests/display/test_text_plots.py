import math

import pytest

from lstmlm.display.text_plots import cells, curve, table

FALLING = [(step, 1.8 + 3.0 * math.exp(-step / 30)) for step in range(1, 301)]


def test_table_aligns_words_and_numbers() -> None:
    """Words stand at the left, numbers at the right, floats have four decimals."""
    rows = [("warm", 1.23456, 12), ("cold", 10.5, 3400)]

    assert table(rows, ("protocol", "bits/char", "chars")) == (
        "protocol  bits/char  chars\nwarm         1.2346     12\ncold        10.5000   3400"
    )


def test_table_counts_wide_characters_as_two() -> None:
    """The second column begins at the same place under wide and combining characters."""
    lines = table([("漢字", "x"), ("e\u0301", "x"), ("abcdef", "x")]).split("\n")

    assert {cells(line[: line.index("x")]) for line in lines} == {8}


def test_table_escapes_what_could_move_a_cursor() -> None:
    """A name with ESC or a newline in it stays one harmless line."""
    assert table([("a\x1b[31m\nb", 1)]) == "a\\x1b[31m\\nb  1"


def test_empty_table() -> None:
    """No rows and no headers are no text; headers alone are one line."""
    assert table([]) == ""
    assert table([], ("a", "b")) == "a  b"


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize(("width", "height"), [(20, 3), (40, 5), (80, 12)])
def test_curve_fits_and_falls(width: int, height: int, unicode: bool) -> None:
    """A falling curve touches the top at the left, the bottom at the right, and stays in its width."""
    lines = curve(FALLING, width, height, unicode).split("\n")

    assert len(lines) == height + 1
    assert max(map(len, lines)) <= width
    assert unicode or all(line.isascii() for line in lines)
    marks = [len(line) - len(line.rstrip()) for line in (line.ljust(width) for line in lines[:height])]
    assert marks[-1] == 0, "the last line reaches the right edge"
    assert marks[0] > width // 2, "the first line ends in the left half"
    assert lines[-1].split() == ["1", "300"]
    assert lines[height - 1].startswith("1.80")


def test_curve_is_connected() -> None:
    """A steep fall leaves no column and no row without a dot."""
    lines = curve([(0, 5.0), (10, 5.0), (11, 1.0), (20, 1.0)], 40, 6).split("\n")[:6]

    assert all(any("\u2800" < c <= "\u28ff" for c in line) for line in lines)
    assert all(any(line[column : column + 1].strip() for line in lines) for column in range(6, 40))


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, math.nan), (2, math.inf), (3, 1.0)], [(1, 2.0), (1, 3.0)]], ids=str)
def test_no_curve_of_nothing(points: list[tuple[float, float]]) -> None:
    """Fewer than two places that can be drawn are no curve, and no crash."""
    assert curve(points) == ""


def test_flat_curve() -> None:
    """A constant is drawn in the middle of a range that is not empty."""
    assert "2.00" in curve([(0, 2.0), (10, 2.0)], 40, 5)
