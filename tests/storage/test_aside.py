"""Files that are set aside come back, all of them, or those that replace them are there, all of them."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lstmlm
from lstmlm.storage import aside, atomic

ROOT = Path(lstmlm.__file__).parents[1]

PROCESS = """
    import os, signal, sys
    from pathlib import Path
    from lstmlm.storage import aside, atomic as disk

    class Deadly(disk.Disk):
        def __getattribute__(self, name):
            call = super().__getattribute__(name)
            def counted(*args):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args)
            return counted

    folder, left, names = Path(sys.argv[1]), int(sys.argv[2]), ["one", "two", "deep/three", "four"]
    aside.put_back(folder, names)
    disk.calls = Deadly()
    if sys.argv[3] == "begin":
        with aside.set_aside(folder, names):
            disk.write_text(folder / "four", "new")
            disk.write_text(folder / "one", "new")
    else:
        aside.put_back(folder, names)
"""
FOLDER = {"one": "old 1", "two": "old 2", "deep/three": "old 3", "deep/mine": "mine", "mine": "mine"}


def _contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def _run(folder: Path, at: int, what: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(folder), str(at), what]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 on this system")
def test_a_kill_while_files_are_set_aside_loses_none(tmp_path: Path) -> None:
    """Killed at any call, and at any call of putting back: what is there in the end is all of the old files or the new ones."""
    new = {"one": "new", "four": "new", "deep/mine": "mine", "mine": "mine"}
    seen = []
    for at in itertools.count(1):
        folder = tmp_path / str(at)
        for name, text in FOLDER.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        ended = _run(folder, at, "begin")
        if at % 6 == 1:  # each fourth and more of these states are put back by processes that are killed too
            for again in itertools.count(1):
                if _run(folder, again, "put back") == 0:
                    break
        aside.put_back(folder, ["one", "two", "deep/three", "four"])
        atomic.clean(folder)

        assert _contents(folder) in (FOLDER, new), at
        assert not list(folder.glob(".*")), at
        seen.append(_contents(folder) == new)
        if ended == 0:
            break

    assert seen == sorted(seen), "old up to the commit, new from there on"
    assert seen[0] is False
    assert seen[-1] is True
    assert at > 20


def test_what_nobody_had_is_not_set_aside(tmp_path: Path) -> None:
    """Where there is nothing to replace, a block that fails leaves what it has written: a later command goes on from it."""
    with contextlib.suppress(ZeroDivisionError), aside.set_aside(tmp_path, ["one"]):
        atomic.write_text(tmp_path / "one", "new")
        raise ZeroDivisionError

    assert _contents(tmp_path) == {"one": "new"}
