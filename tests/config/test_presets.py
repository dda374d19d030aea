"""Every preset trains, and the article's network is the article's."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from lstmlm import cli
from lstmlm.config import run_config
from lstmlm.storage import checkpoint

TEXT = "Bob is a sailor. He lives in Dover. Dan is a farmer. For his deeds, brave Bob was honoured.\n" * 30


def train(preset: str, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Train with a preset in this process and return what `--json` says."""
    Path("text.txt").write_text(TEXT)
    words = ["lstmlm", "train", "text.txt", "--config", preset, "--threads", "1", "--json", "-q", *flags]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    told: dict[str, Any] = json.loads(out)
    return told


@pytest.mark.parametrize("preset", run_config.presets())
def test_presets_train(preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file in configs/ trains; only its steps and sizes are made smaller here."""
    told = train(preset, ["--steps", "2", "--hidden", "5", "--batch", "3"], monkeypatch, capsys)

    assert told["steps"] == 2


def test_article_beats_frequencies_within_its_bound(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The article's network, without biases and with H_t itself in the softmax, predicts better than frequencies."""
    told = train("article", ["--steps", "150", "--batch", "4", "--window", "32", "--lr", "0.02"], monkeypatch, capsys)
    saved = checkpoint.read(Path("runs/text/best.safetensors"))

    counts = saved.meta["counts"]
    order0 = sum(-n / sum(counts) * math.log(n / sum(counts)) for n in counts if n)
    bound = math.log(math.e + (len(counts) - 1) / math.e) - 1
    assert sorted(saved.tensors) == ["model.layers.0.U", "model.layers.0.W"]
    assert bound < told["best"]["nats_per_char"] < order0
