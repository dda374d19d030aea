"""What the READMEs say is what the program does: their commands, Python, links, paths, flags, settings and tables."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lstmlm import cli
from lstmlm.cli.app import COMMANDS
from lstmlm.config import run_config

ROOT = Path(__file__).parent.parent
SMALL = ["--steps", "3", "--hidden", "5", "--layers", "1", "--batch", "3", "--window", "7", "--threads", "1"]
PLACES = ("scripts/", "tests/", "lstmlm/", "configs/", "data/")  # what a path in a README begins with
OTHERS = {"--help", "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--max-restarts"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def load(name: str) -> Any:
    """Import a script, which lies outside the package."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in load("scripts/dev/readme.py").DOCUMENTS}
each_document = pytest.mark.parametrize("name", TEXTS)


def code(text: str) -> list[str]:
    """Return what is set as code: indented lines and spans, without what a comment adds; fenced blocks are Python or YAML."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [*lines, *(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))]


RUN = [
    command
    for text in TEXTS.values()
    for command in (line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("    lstmlm "))
]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the files that the READMEs name, a few of the blanks, and two trained runs."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "data").mkdir()
    blanks = (ROOT / "data" / "blanks.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "data" / "blanks.tsv").write_text("".join(blanks[:1] + blanks[1::80]), encoding="utf-8")
    for name in ("corpus.txt", "held-out.txt"):
        (folder / name).write_text("Bob is a sailor. He lives in Dover. Dan is brave.\n" * 40)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        for name in ("corpus.txt", "stories"):
            assert run(["lstmlm", "train", name, *SMALL, "-q"], monkeypatch) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a copy of that folder to work in."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def flags_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], set[str]]:
    """Give a function that returns the flags which a command's own help names."""

    def ask(command: str) -> set[str]:
        assert run(["lstmlm", command, "--help"], monkeypatch) == 0, command
        return set(FLAG.findall(capsys.readouterr().out))

    return ask


@pytest.mark.slow
@pytest.mark.parametrize("command", dict.fromkeys(RUN))
def test_commands_of_the_readmes_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in a README runs as written, but for a smaller network and fewer steps."""
    words = shlex.split(command)
    if "onnx" in words:
        pytest.importorskip("onnx")
    if words[1] == "train":
        small = SMALL[:2] if "--from" in words else SMALL
        words = [*words, *small, "--overwrite"]
        if "--minutes" in words:
            del words[words.index("--minutes") : words.index("--minutes") + 2]
    allowed = {0, 1} if "--max-bpc" in words else {0}

    assert run(words, monkeypatch) in allowed


@each_document
def test_python_of_the_readmes_runs(name: str, folder: Path) -> None:
    """The Python in a README runs as written, and the YAML is read."""
    for block in re.findall(r"```python\n(.*?)```", TEXTS[name], flags=re.DOTALL):
        exec(compile(block, name, "exec"), {})
    for block in re.findall(r"```yaml\n(.*?)```", TEXTS[name], flags=re.DOTALL):
        assert run_config.parse_yaml(block, name)


def test_generated_tables_are_up_to_date() -> None:
    """The tables of settings, presets and scripts are what the code gives now."""
    command = [sys.executable, "scripts/dev/readme.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@each_document
def test_links_and_paths_lead_somewhere(name: str) -> None:
    """Each link and picture is a file beside the README, each path in its code is in the checkout, and there are no addresses."""
    folder = (ROOT / name).parent
    for link in re.findall(r"\]\(([^)]*)\)", TEXTS[name]):
        assert (folder / link).is_file(), link
    for word in (word for piece in code(TEXTS[name]) for word in re.split(r"[\s'\"]+", piece)):
        if word.startswith(PLACES):
            assert (ROOT / word).exists(), word
    assert "http" not in TEXTS[name]


@each_document
def test_flags_and_settings_exist(name: str, flags_of: Callable[[str], set[str]]) -> None:
    """Each flag in a README is one of the command or script that it stands behind, and each setting is one."""
    commands = tuple(COMMANDS)
    known = {command: flags_of(command) for command in commands}
    sources = (path.read_text(encoding="utf-8") for end in ("py", "sh") for path in (ROOT / "scripts").rglob(f"*.{end}"))
    everywhere = OTHERS.union(*known.values(), *(FLAG.findall(source) for source in sources))
    for piece in code(TEXTS[name]):
        script = re.search(r"scripts/\S+\.(?:py|sh)", piece)
        first = piece.removeprefix("lstmlm ").split()[0]
        for flag in FLAG.findall(piece):
            if script:
                assert flag in (ROOT / script[0]).read_text(encoding="utf-8"), piece
            else:
                assert flag in known.get(first, everywhere) | OTHERS, piece
        for setting in re.findall(r"(?<![\w./])(?:model|train|data)\.[a-z_0-9]+(?![\w.(/])", piece):
            assert setting in run_config.keys(), piece  # noqa: SIM118  # a function, not a dictionary's


def test_promises_are_those_that_are_tried() -> None:
    """Each pytest command among the promises is one that scripts/campaigns/promises.py runs, and its words name tests."""
    tried = {tests for _, tests, _ in load("scripts/campaigns/promises.py").PROMISES}
    listed = re.findall(r"`pytest ([^`]*)`", TEXTS["tests/README.md"])

    assert listed
    for command in listed:
        assert command in tried
        paths, _, words = command.partition(" -k ")
        tests = "".join((ROOT / path).read_text(encoding="utf-8") for path in paths.split())
        for word in set(re.findall(r"\w+", words)) - {"not", "and", "or"}:
            assert re.search(rf"def test_\w*{word}", tests), (command, word)


def test_the_page_of_the_package_names_nothing_that_it_lacks() -> None:
    """As pyproject.toml makes it from the README, it has no picture and no link, which lead into a checkout, and all else."""
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    page = TEXTS["README.md"]
    for change in hook["fancy-pypi-readme"]["substitutions"]:
        page = re.sub(change["pattern"], change["replacement"], page)

    assert "](" not in page
    assert "- lstmlm/README.md: the equations" in page
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        line for line in TEXTS["README.md"].splitlines() if line.startswith("#")
    ]


def test_the_top_readme_is_a_page() -> None:
    """It is below 8,000 bytes, and each of its pictures says in words what it shows."""
    text = TEXTS["README.md"]

    assert len(text.encode()) < 8_000
    assert all(len(alt) > 20 for alt in re.findall(r"!\[([^\]]*)\]", text))
