import pytest

from lstmlm.data.lines import whole_lines


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_come_whole(size: int) -> None:
    """However a text is cut, its lines are the same: each with its end, as soon as that is there, and the rest at the end."""
    text = "one\n\ntwo\r\nthree\rand\nfour"
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    groups = list(whole_lines(pieces))

    assert [line for group in groups for line in group] == ["one\n", "\n", "two\r\n", "three\rand\n", "four"]
    assert len(groups) == {1: 5, 2: 5, 3: 4, 100: 2}[size]


def test_where_cr_ends_lines() -> None:
    """CR ends lines where it is asked for and the first piece has no LF; else it is a character of the line."""
    assert list(whole_lines(["a\rb", "c\rd"], cr=True)) == [["a\r"], ["bc\r"], ["d"]]
    assert list(whole_lines(["a\rb\nc", "\r"], cr=True)) == [["a\rb\n"], ["c\r"]]
    assert list(whole_lines(["a\rb"])) == [["a\rb"]]
    assert list(whole_lines([])) == []
