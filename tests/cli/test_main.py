import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lstmlm as package
from lstmlm.cli.app import COMMANDS
from lstmlm.config import schema
from lstmlm.kernels import generate
from tests.cli.conftest import TINY, Lstmlm

ROOT = Path(package.__file__).resolve().parents[1]
FORCING = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "PY_COLORS": "1", "TERM": "xterm-256color", "COLUMNS": "80"}


def process(*args: object, shell: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the command line, or a shell line in which it is $LSTMLM, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LSTMLM_KERNEL": "eager", **(env or {})}
    command = [sys.executable, "-m", "lstmlm", *map(str, args)]
    if shell:
        command = ["bash", "-c", shell]
        environment["LSTMLM"] = f"{sys.executable} -m lstmlm"
    return subprocess.run(command, capture_output=True, env=environment, timeout=120)


IMPORTS = """
import sys
sys.argv = ["lstmlm", *sys.argv[1:]]
from lstmlm.cli import main
try:
    main()
finally:
    slow = {"torch", "rich", "numpy", "pydantic"} & set(sys.modules)
    print("imported:", *slow, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0), (["train", "--help"], 0), (["inspect", "--help"], 0), (["--version"], 0), (["sampel"], 2),
        (["train"], 2),
        (["train", "x", "--lr", "high"], 2),
        (["train", "missing.txt"], 3), (["info"], 4), (["sample", "--length", "-1"], 2), (["info", "runs/text"], 0),
        (["train", "text.txt", "--print-config"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_imports_no_torch(run: Path, text: Path, args: list[str], code: int) -> None:
    """Help, version, mistakes and `info` wait for no torch."""
    if args == ["info"]:
        run.rename("elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *args], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )

    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(lstmlm: Lstmlm, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], width: int) -> None:
    """-h and --help say the same on stdout, as wide as the terminal, without types that only Python people read."""
    monkeypatch.setenv("COLUMNS", str(width))
    short, long = lstmlm(*command, "-h"), lstmlm(*command, "--help")

    assert short.code == long.code == 0
    assert short.stdout == long.stdout
    assert short.err == ""
    assert max(map(len, short.out.splitlines())) <= max(50, min(width, 100))  # the parser's own least width
    assert not any(odd in short.out for odd in ("<=x", "<str", "<int", "<float", "<list", "{", "...]]", "\x1b", "None"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_for_each_group(lstmlm: Lstmlm, command: str) -> None:
    """Options stand in groups; what a group's heading offers as an example are flags of this command, one of them its own."""
    out = lstmlm(command, "-h").out
    parts = re.split(r"^(\S.*):$", out, flags=re.MULTILINE)
    groups = {head: text for head, text in zip(parts[1::2], parts[2::2], strict=True) if head != "Arguments"}

    assert f"  lstmlm {command} " in parts[0], "an example to copy comes before all options"
    for head, text in groups.items():
        offered = re.findall(r"(?<!\S)--?[a-z][a-z-]*", head)
        assert offered, head
        assert all(re.search(rf"(?<!\S){flag}\b", out.replace(head, "")) for flag in offered), head
        assert any(re.search(rf"^  .*(?<!\S){flag}\b", text, re.MULTILINE) for flag in offered), head


def test_flags_of_settings(lstmlm: Lstmlm) -> None:
    """Each setting with a group is a flag of train, with the help and default of its declaration; others are --set's alone."""
    out = " ".join(lstmlm("train", "-h").out.split())
    for one in schema.KEYS.values():
        if one.group:
            default = "" if one.none_word == "null" else f" [default: {one.none_word if one.default is None else one.default}]"
            help = f"{one.help[0].upper()}{one.help[1:]}.{default}"
            assert f" {one.flag} {'|'.join(one.choices) or one.metavar} {help}" in out, one.key
        else:
            assert not re.search(rf"(?<!\S){one.flag}(?!\S)", out), one.key


@pytest.mark.parametrize(
    ("command", "form"), [("sample", ""), ("eval", " [TEXT...]"), ("inspect", " [TEXT]"), ("train", " CORPUS...")]
)
def test_usage(lstmlm: Lstmlm, command: str, form: str) -> None:
    """The first line of help shows what may be typed, and no argument that is there to be refused."""
    assert lstmlm(command, "-h").out.splitlines()[0] == f"Usage: lstmlm {command} [OPTIONS]{form}"


@pytest.mark.slow
@pytest.mark.parametrize("line", ["inspect --file -", "sample --prompt-file -", "eval --lines -", "eval --files-from -"])
def test_a_closed_stdin(run: Path, line: str) -> None:
    """Where a service has no standard input and one is asked for, that is exit 3 and said, not a traceback."""
    done = process(shell=f"$LSTMLM {line} -q <&-")

    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert b"on standard input, found it closed" in done.stderr


def test_interrupted_at_the_door(tmp_path: Path) -> None:
    """Ctrl-C while the command's own imports run is exit 130 in silence."""
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = process("info", env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})

    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


FLAGS = {
    "train": """--out --val --val-fraction --config --set --minutes --steps --epochs --hidden --layers
        --dropout --lr --batch --window
        --seed --threads --device --precision --tokenizer --resume --from --overwrite --dry-run --print-config --json -q -v""",
    "sample": """-m --model --prompt --length --temperature --top-k --top-p --greedy --seed --stop -n
        --prompt-file --no-echo --json
        --on-unknown""",
    "eval": "-m --model --protocol --window --max-bpc --json",
    "info": "-m --model --json --verify",
}


@pytest.mark.parametrize("command", FLAGS)
def test_contract(lstmlm: Lstmlm, command: str) -> None:
    """Every flag that scripts rely on is there, and in the help."""
    words = lstmlm(command, "-h").out.replace(",", " ").split()

    assert [flag for flag in FLAGS[command].split() if flag not in words] == []


def test_version(lstmlm: Lstmlm) -> None:
    """--version names the program, torch and Python, in one line."""
    assert lstmlm("--version").out.startswith(f"lstmlm {package.__version__} (torch ")


def test_module() -> None:
    """`python -m lstmlm` is the command, name and all."""
    done = process("--help")

    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage: lstmlm [OPTIONS] COMMAND")


MISTAKES = [
    # typed wrong
    ("sampel", 2, "sample"), ("trian text.txt", 2, "train"), ("evla text.txt", 2, "eval"), ("inof", 2, "info"), ("", 2, "Usage"),
    ("train text.txt --hiden 7", 2, "--hidden"), ("train text.txt --step 5", 2, "--steps"),
    ("train text.txt --epoch 5", 2, "--epochs"),
    ("train text.txt --overwrit", 2, "--overwrite"), ("sample --promt a", 2, "--prompt"),
    ("sample --temprature 1", 2, "--temperature"),
    ("eval text.txt --max-bcp 2", 2, "--max-bpc"), ("info --verfy", 2, "--verify"),
    # values
    ("train text.txt --lr high", 2, "--lr"), ("train text.txt --lr 0.1.2", 2, "--lr"),
    ("train text.txt --hidden 7.5", 2, "--hidden"),
    ("train text.txt --hidden -3", 2, "--hidden"), ("train text.txt --dropout 1.5", 2, "--dropout"),
    ("train text.txt --minutes 0", 2, "--minutes"), ("train text.txt --minutes 1m", 2, "--minutes"),
    ("train text.txt --steps 0", 2, "--steps"), ("train text.txt --device gpu", 2, "cuda"),
    ("train text.txt --device cpux", 2, "cpu"),
    ("train text.txt --precision fp16", 2, "bfloat16"), ("train text.txt --tokenizer word", 2, "char"),
    ("train text.txt --steps 5 --minutes 1", 2, "--minutes"), ("train text.txt --lr", 2, "--lr"),
    ("train text.txt --val-fraction 0.9", 2, "--val-fraction"), ("train text.txt --seed -1", 2, "--seed"),
    ("sample --length many", 2, "--length"), ("eval text.txt --protocol luke", 2, "warm"),
    # keys and configurations
    ("train text.txt --set lr=3", 2, "train.lr"), ("train text.txt --set train.lrr=3", 2, "train.lr"),
    ("train text.txt --set train.lr", 2, "="), ("train text.txt --set model.bias=maybe", 2, "model.bias"),
    ("train text.txt --config minut", 2, "minute"), ("train text.txt --config artcle", 2, "article"),
    ("train text.txt --config nowhere.yaml", 2, "nowhere.yaml"), ("train text.txt --config text.txt", 2, "text.txt"),
    # paths
    ("train", 2, "a CORPUS to learn"), ("train texd.txt", 3, "text.txt"), ("train storys", 3, "stories"),
    ("train empty.txt", 3, "empty.txt"),
    ("train runs/text --out a", 2, "--from runs/text"), ("train text.txt --out text.txt", 2, "--out"),
    ("train text.txt --val none.txt --out a", 3, "none.txt"),
    ("train text.txt --from none --out a", 4, "runs/text"), ("train text.txt --resume --out none", 4, "runs/text"),
    ("sample -m text.txt", 4, "text.txt"), ("sample -m runs/tex", 4, "runs/text"), ("sample -m .", 4, "runs/text"),
    ("sample runs/text", 2, "runs/text"), ("sample Bob", 2, "Bob"), ("sample --prompt-file none", 3, "none"),
    ("sample --prompt-file runs", 3, "runs"), ("eval none.txt", 3, "none.txt"),
    ("eval runs/text/best.safetensors", 2, "Did you mean -m runs/text/best.safetensors?"),
    ("eval runs/text", 2, "Did you mean -m runs/text?"),
    ("train - --resume runs/text", 2, "Did you mean --resume --out runs/text?"),
    ("sample --next 3 -n 2", 2, "expected no -n beside it"), ("eval -m text.txt text.txt", 4, "lstmlm train FILE"),
    ("eval text.txt --lines --sort foo", 2, "--sort: expected surprise, found 'foo'"),
    ("inspect --find --file text.txt", 2, "write --find=--file"), ("sample -m --json", 2, "found the option --json"),
    ("info none", 4, "runs/text"), ("info text.txt", 4, "text.txt"), ("info runs/text/best.safetensor", 4, "best.safetensors"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "code", "hint"), MISTAKES, ids=[mistake[0] or "nothing" for mistake in MISTAKES])
def test_mistakes(lstmlm: Lstmlm, run: Path, text: Path, line: str, code: int, hint: str) -> None:
    """A mistaken command line has its exit code, nothing on stdout, no traceback, at most six lines, and a useful hint."""
    Path("empty.txt").write_bytes(b"")
    before = sorted(path.name for path in run.iterdir())
    result = lstmlm(*line.split())

    assert result.code == code, result.err
    assert hint in result.err + (result.out if not line else "")
    assert "Traceback" not in result.err
    assert not line or (result.out == "" and len(result.err.splitlines()) <= 6), result.err
    assert sorted(path.name for path in run.iterdir()) == before


PIPED = [
    ("train text.txt --steps 3 --hidden 7 --threads 1 --out new", b""),
    ("train text.txt --steps 3 --hidden 7 --threads 1 --out new --json", b"{"),
    ("sample -m runs/text --length 9 --seed 1 --threads 1", b"*"),
    ("eval text.txt -m runs/text --threads 1", b"*"),
    ("info runs/text", b"model"),
    ("train text.txt --hidden 0", b""),
    ("frobnicate", b""),
]


@pytest.mark.parametrize(("line", "begins"), PIPED, ids=[piped[0] for piped in PIPED])
@pytest.mark.parametrize(
    "env", [{}, FORCING, {"NO_COLOR": "1", "TERM": "dumb"}, {"CI": "1"}], ids=["plain", "forced", "dumb", "CI"]
)
def test_pipes(
    lstmlm: Lstmlm, run: Path, text: Path, monkeypatch: pytest.MonkeyPatch, line: str, begins: bytes, env: dict[str, str]
) -> None:
    """In a pipe there is not one ESC byte on either stream, whatever the environment wants, and only results on stdout."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    result = lstmlm(*line.split())

    assert b"\x1b" not in result.stdout + result.stderr
    assert result.stdout.startswith(begins) if begins != b"*" else result.stdout
    assert bool(result.stdout) == bool(begins)


@pytest.mark.slow
def test_head(run: Path, text: Path) -> None:
    """A reader that leaves early is no error: every command ends with 0 and says nothing about it."""
    script = (
        "for line in 'sample -m runs/text --length 0 --seed 1 --threads 1 -q' 'info runs/text' 'train text.txt --print-config' "
        "'train -h'; do "
        "$LSTMLM $line | head -c 1 > /dev/null; echo ${PIPESTATUS[0]}; done"
    )
    done = process(shell=script)

    assert done.stdout.split() == [b"0"] * 4
    assert done.stderr == b""


@pytest.mark.slow
def test_head_of_all_ways(run: Path) -> None:
    """Several samples and JSON into a pipe that nobody reads end with 0 too."""
    script = (
        "for way in '-n 50' '-n 50 --json' '--stop nnn'; do "
        "$LSTMLM sample -m runs/text --length 2000 --seed 1 --threads 1 $way | true; echo ${PIPESTATUS[0]}; done"
    )
    done = process(shell=script)

    assert done.stdout.split() == [b"0"] * 3
    assert done.stderr == b""


def test_closed_streams(run: Path, text: Path) -> None:
    """Closed streams are no traceback: the work is done, and the exit code kept."""
    script = (
        "$LSTMLM info runs/text >&-; echo $?; $LSTMLM info runs/text 2>&- | head -n 1; $LSTMLM info none 2>&-; echo $?; "
        "$LSTMLM sample -m runs/text --prompt-file - --length 3 --threads 1 <&-; echo $?"
    )
    done = process(shell=script)
    lines = done.stdout.decode().splitlines()

    assert lines[0] == "0"
    assert lines[1].startswith("model ")
    assert lines[2:] == ["4", "3"]
    assert "Traceback" not in done.stderr.decode()


def test_full_disk(run: Path) -> None:
    """A result that cannot be written is exit 5."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = process(shell="$LSTMLM info runs/text > /dev/full; echo $?")

    assert done.stdout.split() == [b"5"]
    assert b"No space left" in done.stderr


def test_ascii_terminal(run: Path) -> None:
    """Under LANG=C what cannot be shown is escaped, and nothing fails."""
    env = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = process("info", "runs/text", env=env)

    assert done.returncode == 0
    assert rb"\xe0" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.slow
def test_interrupted_reading(run: Path) -> None:
    """Ctrl-C outside of training is 130, without a traceback."""
    script = (
        "set -m; $LSTMLM sample -m runs/text --length 0 --threads 1 -q > out & pid=$!; "
        "while ! [ -s out ]; do sleep 0.1; done; kill -INT $pid; wait $pid; echo $?"
    )
    done = process(shell=script)

    assert done.stdout.split()[-1] == b"130"
    assert b"Traceback" not in done.stderr


def test_narrow(lstmlm: Lstmlm, run: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 40 columns has help, and training goes on in it."""
    monkeypatch.setenv("COLUMNS", "40")

    assert lstmlm("train", "-h").code == 0
    assert lstmlm("train", text, *TINY, "--out", "narrow").code == 0


@pytest.mark.parametrize("error", [ZeroDivisionError("odd\x1b[31m"), RuntimeError("odd"), ImportError("odd", name="lstmlm.odd")])
def test_a_fault_of_the_program_is_no_failed_check(
    lstmlm: Lstmlm, run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What nobody foresaw is exit 70, not the 1 of --max-bpc, with a traceback fit for a terminal and what to do with it."""

    def odd(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("lstmlm.storage.run_dir.load_header", odd)
    result = lstmlm("info", run)

    assert (result.code, result.out) == (70, "")
    assert "Traceback" in result.err
    assert "Report these lines" in result.err
    assert "\x1b" not in result.err


PLACES = {
    "deleted": ("rmdir $PWD", "working folder"),
    "tight": ("ulimit -v 400000", "memory: expected"),
    "small": ("ulimit -v 650000", "memory: expected"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems delete and limit in other ways")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", ["eval stories --dynamic", "train stories --steps 1 --hidden 5"])
def test_a_place_where_torch_cannot_run(run: Path, place: str, command: str) -> None:
    """A working folder that was deleted, and too little memory for torch: exit 5 in a sentence, in real processes."""
    Path("gone").mkdir()
    model = "" if command.startswith("train") else f"-m {run}"
    done = process(shell=f"cd gone && {PLACES[place][0]} && exec $LSTMLM {command} {model}")
    said = done.stderr.decode()

    assert done.returncode == 5, said
    assert len(said.splitlines()) <= 6, said
    assert "Traceback" not in said
    assert PLACES[place][1] in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit in other ways")
@pytest.mark.parametrize(
    "command", ["sample --length 3", "info", "eval text.txt", "eval text.txt --lines", "fill ____b --choice a"]
)
def test_little_room_is_enough_without_torch(run: Path, command: str) -> None:
    """What runs without torch runs in 200 MiB of address space, and is not asked for the room that torch takes."""
    if generate.examined_library() is None:
        pytest.skip("there is no kernel in C")
    Path("text.txt").write_text("Bob is a baker.\n")
    command += " --choice a --choice d" if "fill" in command else ""
    model = str(run) if command == "info" else f"-m {run} --device cpu"
    done = process(shell=f"ulimit -v 204800 && exec $LSTMLM {command} {model}", env={"LSTMLM_KERNEL": "auto"})

    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout
