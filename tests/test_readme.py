"""What the README says is what the program does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lstmlm import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("  #")[0].strip() for line in README.splitlines() if line.startswith("    lstmlm ")]
SMALL = ["--steps", "3", "--hidden", "5", "--layers", "1", "--batch", "3", "--window", "7", "--threads", "1"]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a working folder with the files that the README names and a trained run; of the blanks there are a few."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    blanks = (ROOT / "data" / "blanks.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("data/blanks.tsv").write_text("".join(blanks[:1] + blanks[1::80]), encoding="utf-8")
    for name in ("corpus.txt", "held-out.txt"):
        Path(name).write_text("Bob is a sailor. He lives in Dover. Dan is brave.\n" * 40)
    for name in ("corpus.txt", "stories"):
        assert run(["lstmlm", "train", name, *SMALL, "-q"], monkeypatch) == 0
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in the README runs as written, but for a smaller network and fewer steps."""
    words = shlex.split(command)
    if words[1] == "train":
        words = [*words, *SMALL, "--overwrite"]
        if "--minutes" in words:
            del words[words.index("--minutes") : words.index("--minutes") + 2]
    allowed = {0, 1} if "--max-bpc" in words else {0}

    assert run(words, monkeypatch) in allowed


def test_python_of_the_readme_runs(folder: Path) -> None:
    """The Python in the README runs as written."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_generated_parts_are_up_to_date() -> None:
    """The table of settings in the README is what the code gives now."""
    command = [sys.executable, "scripts/dev/readme.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
