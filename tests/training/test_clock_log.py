"""The times of a run: they go on after a resume, and nothing that happens to their file stops anything."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lstmlm.training import clock_log
from lstmlm.training.clock_log import NAME, Times


class Watch:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time that was set."""
        return self.now


@pytest.fixture
def watch() -> Watch:
    """Give a clock that stands still."""
    return Watch()


def begun(folder: Path, watch: Watch, step: int = 0) -> Times:
    """Begin as a process does, and let half a second pass before each of two steps."""
    made = Times(folder, watch)
    watch.now += 7.0  # before training
    made.begin(step)
    for done in (1, 2):
        watch.now += 0.5
        made.reached(step + done)
    return made


def test_seconds_go_on_after_a_resume(tmp_path: Path, watch: Watch) -> None:
    """The time between two processes does not count, nor what was done after the step that is gone back to."""
    begun(tmp_path, watch)
    watch.now += 100.0
    begun(tmp_path, watch, step=1)

    assert clock_log.read(tmp_path) == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert json.loads((tmp_path / NAME).read_text().splitlines()[-1]) == {"step": 3, "seconds": 1.5}


def test_a_new_run_begins_at_nothing(tmp_path: Path, watch: Watch) -> None:
    """What another run left in the folder is gone."""
    begun(tmp_path, watch)
    begun(tmp_path, watch)

    assert clock_log.read(tmp_path) == [(1, 0.5), (2, 1.0)]


def test_stepping_back_takes_time(tmp_path: Path, watch: Watch) -> None:
    """After a step back the steps are counted again and the seconds go on."""
    made = begun(tmp_path, watch)
    made.step_back(1)
    watch.now += 3.0
    made.reached(2)

    assert clock_log.read(tmp_path) == [(1, 0.5), (2, 4.0)]


GOOD = '{"step": 1, "seconds": 0.5}\n'


@pytest.mark.parametrize(
    "rest",
    ["", '{"step": 2, "sec', "{}\n", "[1]\n", "\x00\xff\n", '{"step": 0, "seconds": 1}\n', '{"step": 2, "seconds": -1}\n',
     '{"step": 2, "seconds": NaN}\n', '{"step": 2.5, "seconds": 1}\n', '{"step": 2, "seconds": "1"}\n'],
)  # fmt: skip
def test_damage_ends_the_records(tmp_path: Path, watch: Watch, rest: str) -> None:
    """Records up to the first that is none are used; going on cuts the rest off."""
    (tmp_path / NAME).write_text(GOOD + rest + GOOD, encoding="latin-1")
    before = clock_log.read(tmp_path)
    begun(tmp_path, watch, step=5)

    assert before[:1] == [(1, 0.5)]
    assert len(before) == (1 if rest else 2)
    assert clock_log.read(tmp_path) == [*before, (6, 1.0), (7, 1.5)]


def folder_instead(path: Path) -> None:
    """Put a folder where the file should be."""
    path.mkdir()


def pipe_instead(path: Path) -> None:
    """Put a pipe there: opening it carelessly would wait for ever."""
    os.mkfifo(path)


def link_instead(path: Path) -> None:
    """Put a link to somebody else's file there."""
    path.with_name("other").write_text("mine")
    path.symlink_to(path.with_name("other"))


@pytest.mark.parametrize("put", [folder_instead, pipe_instead, link_instead])
@pytest.mark.parametrize("step", [0, 5])
def test_a_file_that_cannot_be_used_stops_nothing(tmp_path: Path, watch: Watch, put: Callable[[Path], None], step: int) -> None:
    """No times, no error, and nothing of others is touched."""
    put(tmp_path / NAME)
    begun(tmp_path, watch, step).step_back(step)

    assert clock_log.read(tmp_path) == []
    assert not (tmp_path / "other").exists() or (tmp_path / "other").read_text() == "mine"


def test_a_folder_that_is_gone_has_no_times(tmp_path: Path) -> None:
    """Reading what is not there gives nothing."""
    assert clock_log.read(tmp_path / "gone") == []
