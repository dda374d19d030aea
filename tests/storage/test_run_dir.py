"""Which model a user means, and that one process alone trains in a folder."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import lstmlm
from lstmlm.errors import CheckpointError, SystemProblem
from lstmlm.storage import atomic, checkpoint, run_dir
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.storage.journal import Journal

ROOT = Path(lstmlm.__file__).parents[1]
META: dict[str, Any] = {
    "config": {},
    "tokenizer": {"kind": "byte"},
    "counts": [],
    "step": 3,
    "scores": {},
    "corpus": {},
    "versions": {},
    "command": [],
    "parameters": 0,
}


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: str, *kinds: str, age: int = 0) -> Path:
    """Make a run whose checkpoints were written some seconds ago."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        file = path / f"{kind}.safetensors"
        checkpoint.write(file, Checkpoint(kind, META, {}))
        os.utime(file, (1e9 - age, 1e9 - age))
    return path


def refusal(model: str | None) -> str:
    """Ask for a model that is not there, and return the message, which has to be fit for a terminal."""
    with pytest.raises(CheckpointError) as caught:
        run_dir.find(model)
    text = str(caught.value)
    assert text.count("\n") < 6
    assert all(line.isprintable() for line in text.split("\n"))
    return text


def test_without_a_name_the_newest_run_is_meant(home: Path) -> None:
    """The age of a run is that of its newest checkpoint, up to three folders down; other folders are no runs."""
    make("runs/old", "best", age=10)
    make("runs/new", "best", age=20)
    make("runs/new", "last", age=1)
    make("runs/a/b/deep", "last", age=5)
    make("runs/a/b/c/too-deep", "best")
    make("runs/empty")
    (home / "runs" / "file").write_text("")

    assert [str(run.folder) for run in run_dir.found()] == ["runs/new", "runs/a/b/deep", "runs/old"]
    assert run_dir.find(None) == Path("runs/new/best.safetensors")


def test_runs_of_equal_age_come_in_order_of_name(home: Path) -> None:
    """On a clock that stands still the choice is the same every time."""
    for name in ("b", "a", "c"):
        make(f"runs/{name}", "best")

    assert [run.folder.name for run in run_dir.found()] == ["a", "b", "c"]


def test_a_run_gives_the_kind_asked_for_first(home: Path) -> None:
    """Of a folder the one asked for comes first and the other second; what is missing is left out."""
    both, last = make("both", "best", "last"), make("one", "last")

    assert run_dir.candidates("both") == [both / "best.safetensors", both / "last.safetensors"]
    assert run_dir.candidates("both", "last") == [both / "last.safetensors", both / "best.safetensors"]
    assert run_dir.candidates(last) == [last / "last.safetensors"]


def test_a_file_of_any_name_is_itself(home: Path) -> None:
    """A file is taken as it is named, and nothing else instead of it."""
    Path("model.pt").write_bytes(b"")

    assert run_dir.candidates("model.pt") == [Path("model.pt")]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("runs/storys", "runs/stories"),
        ("stories", "runs/stories"),
        ("Stories/", "runs/stories"),
        ("runs/shakespear", "runs/shakespeare"),
        ("runs", "runs/"),
        ("runs/stories/best.safetensor", "runs/stories/best.safetensors"),
    ],
)
def test_a_mistaken_name_gets_help(home: Path, wrong: str, meant: str) -> None:
    """What was perhaps meant is named, and naming it works."""
    make("runs/stories", "best")
    make("runs/shakespeare", "best")
    text = refusal(wrong)

    assert meant in text
    if "Did you mean" in text:
        assert run_dir.find(text.rpartition("Did you mean ")[2].rstrip("?")).exists()


@pytest.mark.parametrize("wrong", ["t", "T", "runs/T", "run/t", "elsewhere/t"])
def test_the_same_name_elsewhere_comes_first(home: Path, wrong: str) -> None:
    """A run of that very name is offered before one that is merely spelled like what was typed."""
    for name in ("tt", "x", "t"):
        make(f"runs/{name}", "best")

    assert refusal(wrong).endswith("Did you mean runs/t?")


def test_a_common_folder_makes_no_name_alike(home: Path) -> None:
    """Runs that share only the folder with what was typed are listed, and none of them is said to be meant."""
    make("runs/t", "best")

    assert refusal("runs/nothere").endswith("There are: runs/t.")


def test_a_name_like_no_other_gets_a_list(home: Path) -> None:
    """Where nothing is similar the runs that exist are listed, the newest first, and not without end."""
    for number in range(9):
        make(f"runs/r{number}", "best", age=number)
    text = refusal("something else")

    assert "runs/r0, runs/r1, runs/r2, runs/r3, runs/r4 and 4 more" in text


@pytest.mark.parametrize("model", [None, "gone", "folder", "a\0b", "n" * 5000, "\x1b]8;;x\x07", ""])
def test_without_any_run_the_way_to_one_is_told(home: Path, model: str | None) -> None:
    """Where no model has been trained yet, the message says how to train one; odd names are no accident."""
    Path("folder").mkdir()

    assert "train" in refusal(model)


def test_a_folder_that_may_not_be_looked_into_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told that a run has no model where it cannot be seen."""
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(CheckpointError, match="permission denied"):
        run_dir.find("closed")


def test_names_of_runs_are_shown_without_their_escapes(home: Path) -> None:
    """A folder named with control characters cannot write on the terminal."""
    make("runs/\x1b[31mred", "best")

    assert "x1b[31mred" in refusal("other")


def test_links_in_a_circle_end(home: Path) -> None:
    """A folder that contains itself by a link is searched to a bounded depth."""
    make("runs/a", "best")
    (home / "runs" / "again").symlink_to(home / "runs")

    assert Path("runs/a") in [run.folder for run in run_dir.found()]


def test_a_damaged_checkpoint_falls_back_by_name(home: Path) -> None:
    """The other checkpoint of the run is used, and the report names both and what is wrong."""
    folder = make("run", "best", "last")
    (folder / "best.safetensors").write_bytes(b"damage")
    said: list[str] = []
    path, state = run_dir.load("run", report=said.append)

    assert (path, state.kind) == (folder / "last.safetensors", "last")
    assert len(said) == 1
    assert "run/best.safetensors: expected" in said[0]
    assert "Using run/last.safetensors instead" in said[0]


def test_nothing_falls_back_in_silence(home: Path) -> None:
    """Without a report, from a file, or with both damaged, the error is that of the one asked for."""
    folder = make("run", "best", "last")
    (folder / "best.safetensors").write_bytes(b"damage")
    said: list[str] = []
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        run_dir.load("run")
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        run_dir.load("run/best.safetensors", report=said.append)
    (folder / "last.safetensors").write_bytes(b"damage")
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        run_dir.load("run", report=said.append)

    assert said == []


def test_a_sound_run_is_loaded_without_a_word(home: Path) -> None:
    """Nothing is reported where nothing is wrong."""
    make("run", "best", "last")
    said: list[str] = []

    assert run_dir.load("run", "last", report=said.append)[1].kind == "last"
    assert said == []


def test_one_process_holds_a_folder(home: Path) -> None:
    """A second one is refused at once with exit 5, number and host; after the first it is free again."""
    with run_dir.lock(home) as note:
        assert note is None
        start = time.perf_counter()
        with (
            pytest.raises(SystemProblem, match=rf"in use by process {os.getpid()} on \S+\.") as caught,
            run_dir.lock(home),
        ):
            pytest.fail("two have it")

        assert time.perf_counter() - start < 1
        assert caught.value.exit_code == 5
    with run_dir.lock(home), pytest.raises(ZeroDivisionError), run_dir.lock(make("other")):
        raise ZeroDivisionError
    with run_dir.lock(home), run_dir.lock(Path("other")):
        pass


def test_of_many_exactly_one_wins(home: Path) -> None:
    """Eight that try at the same moment, a hundred times: one has it, seven are told so."""
    for _ in range(100):
        gate, done = threading.Barrier(8), threading.Barrier(8)
        won: list[bool] = []

        def race(gate: threading.Barrier, done: threading.Barrier, won: list[bool]) -> None:
            gate.wait()
            try:
                with run_dir.lock(home):
                    won.append(True)
                    done.wait()
            except SystemProblem:
                won.append(False)
                done.wait()

        threads = [threading.Thread(target=race, args=(gate, done, won)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(won) == [False] * 7 + [True]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs on this system")
def test_a_holder_that_is_a_fifo_is_not_waited_for(home: Path) -> None:
    """What stands in the place of the holder's note is read only if it is a file."""
    with run_dir.lock(home):
        (home / run_dir.HOLDER).unlink()
        os.mkfifo(home / run_dir.HOLDER)
        with pytest.raises(SystemProblem, match="in use by another process"), run_dir.lock(home):
            pytest.fail("two have it")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 on this system")
def test_the_lock_of_a_killed_process_is_free(home: Path) -> None:
    """Another process is named while it lives; after kill -9 its folder can be taken at once."""
    program = """
        import sys, time
        from pathlib import Path
        from lstmlm.storage import run_dir as runs
        with runs.lock(Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(home)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(SystemProblem, match=f"process {holder.pid} on"), run_dir.lock(home):
            pytest.fail("two have it")
        holder.kill()
    with run_dir.lock(home) as note:
        assert note is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"pid": 1e999, "host": 2}', b'{"pid": []}', b"[" * 900])
def test_a_strange_lock_file_is_no_accident(home: Path, content: bytes) -> None:
    """What the holder's file says is shown only if it is a number and a name."""
    with run_dir.lock(home):
        (home / run_dir.HOLDER).write_bytes(content)
        with pytest.raises(SystemProblem, match="in use by another process"), run_dir.lock(home):
            pytest.fail("two have it")


def test_a_holder_cannot_write_on_the_terminal(home: Path) -> None:
    """A host's name with control characters is shown without them."""
    with run_dir.lock(home):
        (home / run_dir.HOLDER).write_bytes(b'{"pid": 7, "host": "a\\u001b[31m"}')
        with pytest.raises(SystemProblem) as caught, run_dir.lock(home):
            pytest.fail("two have it")

    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.name == "nt", reason="there is no flock on this system")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said(home: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where the file system has no locks training goes on, and the weaker promise is told."""
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with run_dir.lock(home) as note:
        assert note is not None
        assert "its file system has no locks" in note


def test_a_folder_that_cannot_be_locked_is_said(home: Path) -> None:
    """A missing folder, or a link or folder in the place of the lock, is exit 5."""
    (home / "link").mkdir()
    (home / "link" / ".lock").symlink_to(home / "victim")
    (home / "full" / ".lock").mkdir(parents=True)
    for name in ("gone", "link", "full"):
        with pytest.raises(SystemProblem, match="cannot lock"), run_dir.lock(home / name):
            pytest.fail("locked")

    assert not (home / "victim").exists()


def test_no_descriptor_is_left_open(home: Path) -> None:
    """Locks, journals, writes and refusals, many times over, leave no file open."""
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("open files are counted in /proc")
    folder = make("run", "best")
    (folder / "last.safetensors").write_bytes(b"damage")
    before = len(list(open_files.iterdir()))
    for _ in range(20):
        with run_dir.lock(folder), pytest.raises(SystemProblem), run_dir.lock(folder):
            pytest.fail("two have it")
        with pytest.raises(CheckpointError):
            run_dir.load("run", "last")
        with pytest.raises(CheckpointError):
            Journal.open(folder / "metrics.jsonl", 10)
        Journal.open(folder / "metrics.jsonl").close()
        atomic.write_text(folder / "config.yaml", "")

    assert len(list(open_files.iterdir())) == before


def test_contents(home: Path) -> None:
    """What lies in a folder is named, but for a run's lock; there is nothing where there is no folder, and a file is refused."""
    make("run", "last")
    with run_dir.lock(Path("run")):
        assert run_dir.contents(Path("run")) == ["last.safetensors"]
    assert run_dir.contents(home / "none") == []
    with pytest.raises(SystemProblem, match="cannot look into"):
        run_dir.contents(home / "run" / "last.safetensors")
