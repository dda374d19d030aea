import io
import os
import pty
import re
import select
import sys
import time
import tty
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import TEXT, call
from tests.cli.trained import make_run

COMMANDS = {
    "train": "train text.txt --steps 2 --hidden 7 --layers 1 --threads 1 --seed 1 --overwrite --out new --json",
    "sample": "sample -m run --length 300 --seed 1 --threads 1 --prompt à",
    "eval": "eval text.txt -m run --threads 1 --max-bpc 0.1",
    "fill": "fill B____b -m run --choice o --choice à --choice n --threads 1",
    "inspect": "inspect Bob -m run --threads 1",
    "info": "info run",
}
CODES = {"eval": 1}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "plain": {},
    "NO_COLOR": {"NO_COLOR": "1"},
    "FORCE_COLOR": {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "PY_COLORS": "1"},
    "CI": {"CI": "true", "GITHUB_ACTIONS": "true"},
    "dumb": {"TERM": "dumb"},
    "C": {"LANG": "C", "LC_ALL": "C"},
}
WAYS = ("terminal", "pipe", "file", "closed", "head")
COLOURED = ("eval", "fill", "info", "inspect")
"""Commands whose result is coloured on a terminal."""
WRAPPED = ("info", "inspect")
"""Those of them that know how wide the terminal is."""
SEQUENCE = re.compile(rb"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipes")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    make_run(folder / "run", TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LSTMLM_KERNEL", "eager")
        patch.setenv("LSTMLM_CACHE", str(folder / "cache"))
        for line in COMMANDS.values():  # what is imported only when it is used, no forked process imports again
            call(*line.split())
    return folder


@pytest.fixture(autouse=True)
def _there(_made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_made)
    monkeypatch.setenv("LSTMLM_KERNEL", "eager")
    monkeypatch.setenv("LSTMLM_CACHE", str(_made / "cache"))
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("CI", "GITHUB_ACTIONS", "CLICOLOR_FORCE", "PY_COLORS", "LANG", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("lstmlm.training.validation.SAMPLE_LENGTH", 5)


def forked(line: str, env: dict[str, str], stdout: int | None, stderr: int) -> int:
    """Run a command in a fork of this process, with streams of its own; return its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that a fork would lose: there are none at work
        pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.environ.update(env)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stderr, 2)
        if stdout is None:
            os.close(1)
        else:
            os.dup2(stdout, 1)
        os.closerange(3, 256)
        # What Python makes of the streams under LANG=C without its UTF-8 mode.
        how: tuple[str, str] = ("ascii", "surrogateescape") if "LC_ALL" in env else ("utf-8", "strict")
        opened = [
            io.TextIOWrapper(io.BufferedWriter(io.FileIO(fd, "w", closefd=False)), *how)
            for fd in ((1, 2) if stdout is not None else (2,))
        ]
        sys.stdout, sys.stderr = (opened[0] if stdout is not None else None), opened[-1]
        sys.argv = ["lstmlm", *line.split()]
        from lstmlm.cli import main

        main()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os._exit(code)


def drained(ends: dict[int, Callable[[bytes], bool]]) -> None:
    """Read from descriptors until each is at its end, or its reader has had enough; close them."""
    waiting, deadline = dict(ends), time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        for fd in select.select(list(waiting), [], [], 1)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:  # how a terminal ends
                data = b""
            if not data or not waiting[fd](data):
                os.close(fd)
                del waiting[fd]


def run(line: str, env: dict[str, str], way: str) -> tuple[int, bytes, bytes]:
    """Run a command into a terminal, pipe, file, nothing, or a reader of one line; return exit code and both streams."""
    got = {"out": b"", "err": b""}

    def keeper(name: str, enough: bool = False) -> Callable[[bytes], bool]:
        def keep(data: bytes) -> bool:
            got[name] += data
            return not (enough and b"\n" in got[name])

        return keep

    pairs: list[tuple[int, int]] = []
    for _ in range(2):
        if way == "terminal":
            pairs.append(pty.openpty())
            tty.setraw(pairs[-1][1])
        else:
            pairs.append(os.pipe())
    (out, out_end), (err, err_end) = pairs
    target: int | None = out_end
    if way == "file":
        target = os.open("out.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    elif way == "closed":
        target = None
    pid = forked(line, env, target, err_end)
    os.close(out_end)
    os.close(err_end)
    drained({out: keeper("out", way == "head"), err: keeper("err")})
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if way == "file":
        assert target is not None
        os.close(target)
        got["out"] = Path("out.txt").read_bytes()
    return code, got["out"], got["err"]


def timeless(result: bytes) -> bytes:
    """Return a result without what two runs of one command may say differently: times."""
    return re.sub(rb'"(train_)?seconds": [0-9.]+', b"", result)


@pytest.fixture(scope="module")
def known() -> dict[str, bytes]:
    """Hold the result of each command in a pipe, once it is known."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", COMMANDS)
def test_clean_pipes(known: dict[str, bytes], command: str, way: str, environment: str) -> None:
    """The result alone is on stdout, the same bytes wherever it goes; no ESC byte where none belongs; the exit code is kept."""
    env, line = ENVIRONMENTS[environment], COMMANDS[command]
    code, out, err = run(line, env, way)
    if command not in known:
        known[command] = run(line, {}, "pipe")[1]

    assert code == CODES.get(command, 0), err
    assert b"Traceback" not in err
    assert b"roken pipe" not in err
    if way != "terminal" or environment in ("NO_COLOR", "dumb"):
        assert b"\x1b" not in out + err
    if way == "closed":
        assert out == b""
    elif environment == "C":
        assert out
        assert out.isascii()
    elif command not in COLOURED or way in ("pipe", "file", "head"):
        assert timeless(out) == timeless(known[command]) or (way == "head" and known[command].startswith(out))
    elif environment in ("NO_COLOR", "dumb"):
        assert out
    else:
        assert SEQUENCE.search(out)
        if command not in WRAPPED:
            bare = [line.rstrip() for line in SEQUENCE.sub(b"", out).splitlines()]
            assert bare == known[command].splitlines()
