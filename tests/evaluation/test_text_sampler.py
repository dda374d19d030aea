"""Where a sample ends. That of whole samples is in `tests/test_api.py`."""

from lstmlm.evaluation.text_sampler import first_stop, stop_begun


def test_stop_arithmetic() -> None:
    """The first stop text in a text is found, and how much of its end may still become one."""
    assert first_stop("xxabc", ["c", "ab"]) == (2, "ab")
    assert first_stop("xx", ["c"]) is None
    assert stop_begun("xxab", ["abc", "b!"]) == 2
    assert stop_begun("xxb", ["abc", "b!"]) == 1
    assert stop_begun("xx", ["abc"]) == 0
