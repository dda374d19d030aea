"""Fixtures: small, named by noun, all sizes different and none equal to 4."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lstmlm.data.corpus import Corpus, open_corpus
from tests.helpers import TEXT

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell ignores INT for what it starts with &, and so would our children
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup does so too
    signal.signal(signal.SIGHUP, lambda number, frame: None)


@pytest.fixture(autouse=True)
def _steady(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Give every test the same seed, one thread, an empty folder, and nothing of the caller's environment."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(20)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LSTMLM_KERNEL", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Open a text with accents and line ends."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return open_corpus([str(path)], cache_dir=tmp_path / "cache")


@pytest.fixture
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the samples between steps be short: what they do does not depend on their length."""
    monkeypatch.setattr("lstmlm.training.validation.SAMPLE_LENGTH", 5)
