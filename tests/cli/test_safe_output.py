"""Pictures on disk: whole, over earlier ones, and over nothing else."""

import os
from pathlib import Path

import pytest

from lstmlm.cli import safe_output
from lstmlm.errors import SystemProblem, UsageError
from lstmlm.storage import atomic
from tests.cli.conftest import Lstmlm

LINES = {"--svg": "inspect Bob --svg", "--html": "inspect Bob --html", "info": "info --svg"}


@pytest.mark.parametrize("line", LINES.values())
def test_a_text_is_no_place_for_a_picture(lstmlm: Lstmlm, run: Path, text: Path, line: str) -> None:
    """Who takes --svg or --html for a switch and names the text behind it gets exit 2, and the text is what it was."""
    before = text.read_bytes()
    result = lstmlm(*line.split(), "text.txt", "-m", str(run))

    assert (result.code, result.out) == (2, "")
    assert "text.txt: expected a new name or an earlier result" in result.err
    assert text.read_bytes() == before


@pytest.mark.parametrize(("flag", "name"), [("--svg", "logo.svg"), ("--html", "index.html")])
@pytest.mark.parametrize("start", ["<svg ", "<!DOCTYPE html>", "<!-- written by lstmlm -->"])
def test_a_page_of_somebody_else_stays(lstmlm: Lstmlm, run: Path, flag: str, name: str, start: str) -> None:
    """A user's own page or logo is refused, and is what it was, whatever it begins with."""
    Path(name).write_text(f"{start}\n<title>mine</title>\n")
    result = lstmlm("inspect", "Bob", flag, name, "-m", str(run))

    assert (result.code, result.out) == (2, "")
    assert "found a file that lstmlm has not written" in result.err
    assert Path(name).read_text() == f"{start}\n<title>mine</title>\n"


@pytest.mark.parametrize("line", LINES.values())
def test_an_earlier_picture_is_replaced(lstmlm: Lstmlm, run: Path, line: str) -> None:
    """The same command twice is no mistake, also where an empty file lies or a link leads."""
    Path("empty").write_bytes(b"")
    Path("link").symlink_to("aim")

    assert [lstmlm(*line.split(), name, "-m", str(run)).code for name in ("new", "new", "empty", "link", "link")] == [0] * 5
    assert Path("new").read_bytes() == Path("aim").read_bytes() == Path("empty").read_bytes()
    assert Path("link").is_symlink()


@pytest.mark.parametrize("line", LINES.values())
def test_a_name_is_needed(lstmlm: Lstmlm, run: Path, line: str) -> None:
    """An empty name, as of a variable that is not set, is refused and not passed over."""
    result = lstmlm(*line.split(), "", "-m", str(run))

    assert (result.code, result.out) == (2, "")
    assert "expected the name of a file to write, found nothing" in result.err


def test_a_full_disk_leaves_the_earlier_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where writing fails the earlier picture is still there, whole, and nothing beside it."""
    safe_output.write("--svg", "a.svg", "<svg one>")

    def full(fd: int, data: atomic.Bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.calls, "write", full)
    with pytest.raises(SystemProblem, match=r"a\.svg: the disk is full"):
        safe_output.write("--svg", "a.svg", "<svg two>")

    assert Path("a.svg").read_text() == f"<svg one>\n{safe_output.MARK}"
    assert os.listdir(tmp_path) == ["a.svg"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    """What is no regular file, such as /dev/stdout, is written to as it is; a folder is refused."""
    reading, writing = os.pipe()
    safe_output.write("--svg", f"/dev/fd/{writing}", "<svg three>")

    assert os.read(reading, 100).decode() == f"<svg three>\n{safe_output.MARK}"
    with pytest.raises(SystemProblem, match="a folder stands where"):
        safe_output.write("--html", str(tmp_path), "<!DOCTYPE html>")
    with pytest.raises(UsageError):
        safe_output.write("--html", "", "<!DOCTYPE html>")
    os.close(reading)
    os.close(writing)
