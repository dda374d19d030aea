import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import lstmlm
from lstmlm.api import LanguageModel, _first, _overlap
from lstmlm.config.run_config import ModelConfig, RunConfig, to_dict
from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.errors import CheckpointError, TextError, UsageError
from lstmlm.evaluation.sampler import Sampling
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model.char_lm import CharLM
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint
from tests.cli.trained import make_run

SYMBOLS = "\n abcdeé"


def saved(**changes: Any) -> Checkpoint:
    """Make the checkpoint of an untrained model with seven units."""
    config = RunConfig(model=ModelConfig(hidden=7, layers=1, dropout=0.0))
    network = CharLM(config.model, len(SYMBOLS), EagerKernel())
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p), alpha=0.5)
    meta: dict[str, Any] = {
        "config": to_dict(config), "tokenizer": CharTokenizer(SYMBOLS).to_dict(), "counts": [1, 9, 8, 3, 3, 2, 5, 1],
        "step": 1, "parameters": network.parameter_count(), "scores": {}, "training": {}, "command": [], "versions": {},
        "corpus": {"name": "none", "fingerprint": "", "chars": 32},
    }  # fmt: skip
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    return Checkpoint("best", {**meta, **changes}, checkpoint.to_blobs(tensors))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """Load a small untrained model."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    checkpoint.write(tmp_path / "best.safetensors", saved())
    return lstmlm.load(str(tmp_path))


@pytest.mark.slow
def test_imports() -> None:
    """`lstmlm.load` needs neither Typer nor Rich, and importing the package imports no torch."""
    code = (
        "import sys\nsys.modules['typer'] = sys.modules['rich'] = None\n"
        "import lstmlm\nassert 'torch' not in sys.modules\n"
        "try:\n    lstmlm.load('nowhere')\nexcept Exception as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(lstmlm.__file__).parents[1])

    assert (done.returncode, done.stdout) == (0, "CheckpointError\n"), done.stderr


def test_score(model: LanguageModel) -> None:
    """The score of a text is minus the log probability of each character, the first one by its frequency."""
    ids = model.tokenizer.encode("a bad\n")
    state, nats = model.network.initial_state(1), -torch.tensor((8 + 1) / (32 + 8)).log().item()
    with torch.inference_mode():
        for before, after in pairwise(ids):
            logits, state = model.network(torch.tensor([[before]]), state)
            nats -= float(torch.log_softmax(logits[0, 0], dim=0)[after])
    score = model.score("a bad\n")

    assert score.nats == pytest.approx(nats, abs=1e-5)
    assert (score.chars, score.bytes, score.unknown) == (6, 6, 0)
    assert model.score("éé").bytes == 4
    assert model.score("axb").unknown == 1


@pytest.mark.parametrize(
    ("text", "how", "error"),
    [
        ("", {}, TextError), ("ab", {"protocol": "hot"}, UsageError), ("ab", {"window": 0}, UsageError),
        ("ab", {"batch": 0}, UsageError), ("ab", {"after": "a", "protocol": "cold"}, UsageError),
    ],
)  # fmt: skip
def test_score_refused(model: LanguageModel, text: str, how: dict[str, Any], error: type[Exception]) -> None:
    """An empty text, an unknown protocol and sizes below one are refused."""
    with pytest.raises(error):
        model.score(text, **how)


def test_sample(model: LanguageModel) -> None:
    """Samples drawn side by side are those that their seeds draw alone."""
    together = model.sample("ab", length=30, n=3, seed=4)

    assert together == [model.sample("ab", length=30, seed=seed)[0] for seed in (4, 5, 6)]
    assert {len(sample.text) for sample in together} == {30}
    assert [sample.stop for sample in together] == ["length"] * 3


def test_sample_nats(model: LanguageModel) -> None:
    """A sample's nats are those of its characters after the prompt, however it was cut and heated."""
    for exact, apart in ((True, 1e-3), (False, 0.2)):
        sample = model.sample("ab", length=20, temperature=3.0, top_k=5, exact=exact)[0]
        expected = model.score("ab" + sample.text).nats - model.score("ab").nats

        assert sample.nats == pytest.approx(expected, abs=apart)


def test_a_float32_model_is_sampled_in_float32(model: LanguageModel) -> None:
    """Who trained without reduced precision draws without it, to the last digit of the nats."""
    exact = model.sample("ab", length=20, exact=True)[0]
    model.config = replace(model.config, train=replace(model.config.train, precision="float32"))

    assert model.sample("ab", length=20)[0] == exact


@pytest.mark.parametrize("size", [1, 2, 5])
def test_stop(model: LanguageModel, size: int) -> None:
    """A sample ends before the first stop text, of any length, and no piece shows a part of it."""
    text = model.sample("ab", length=60)[0].text
    stop = text[20 : 20 + size]
    sample = model.sample("ab", length=60, stop=[stop, "é" * 9])[0]

    assert sample.text == text[: text.index(stop)]
    assert sample.stop == "stop"


def test_score_after(model: LanguageModel) -> None:
    """A text after another one costs what both cost together less what the first one costs."""
    given = model.score("bad\n", after="a b")

    assert given.nats == pytest.approx(model.score("a bbad\n").nats - model.score("a b").nats, abs=1e-5)
    assert given.chars == 4


def test_lines(model: LanguageModel) -> None:
    """A sample of N lines ends before its N-th line end, or at its length; without line ends in the vocabulary it is refused."""
    text = model.sample("ab", length=400)[0].text
    first, second, *_ = text.split("\n")
    lines = [model.sample("ab", length=400, lines=n)[0] for n in (1, 2)]
    short = model.sample("ab", length=len(first), lines=1)[0]

    assert [(sample.text, sample.stop) for sample in lines] == [(first, "lines"), (f"{first}\n{second}", "lines")]
    assert (short.text, short.stop) == (first, "length")
    model.tokenizer = CharTokenizer(" abcdeéz")
    with pytest.raises(UsageError, match="knows the line end"):
        model.sample("ab", lines=1)


@pytest.mark.parametrize(("length", "text"), [(1, "a"), (2, "aé"), (3, "aé–"), (4, "aé–𝄞"), (6, "aé–𝄞\ufffdb")])
def test_a_model_of_bytes_writes_whole_characters(
    length: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length of a sample counts characters, also of a model of bytes, and it never ends within one."""
    model = LanguageModel.open(make_run(tmp_path / "bytes", byte=True))
    drawn = "aé–𝄞".encode() + b"\xe2b" + b"c" * 9
    monkeypatch.setattr("lstmlm.api.generate", lambda *_: (([byte], [1.0]) for byte in drawn))

    streamed = "".join(piece for _, piece, _ in model.stream("ab", length=length, n=1, seed=0, how=Sampling()))

    assert model.sample("ab", length=length)[0].text == text
    assert streamed == text.replace("\ufffd", "\udce2")


def test_stream_pieces(model: LanguageModel) -> None:
    """Pieces come as soon as they cannot begin a stop text, and together are the sample."""
    pieces = list(model.stream("ab", length=25, n=2, seed=1, how=Sampling(), stop=["ab"]))
    texts = ["".join(piece for index, piece, _ in pieces if index == which) for which in (0, 1)]

    assert texts == [sample.text for sample in model.sample("ab", length=25, n=2, seed=1, stop=["ab"])]
    assert sum(end is not None for _, _, end in pieces) == 2


def test_wrong_at_once(model: LanguageModel) -> None:
    """What is wrong with a prompt is said when a stream is asked for, not with its first piece."""
    with pytest.raises(TextError, match=r"U\+0078"):
        model.stream("abx", length=1, n=1, seed=0, how=Sampling())


@pytest.mark.parametrize(
    "how",
    [
        {"length": 0}, {"n": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 1.1}, {"top_k": -1},
        {"stop": [""]}, {"stop": ["ab", "aΩ"]}, {"lines": -1}, {"top_p": float("nan")}, {"temperature": float("inf")},
    ],
)  # fmt: skip
def test_sample_refused(model: LanguageModel, how: dict[str, Any]) -> None:
    """Numbers that make no sense are refused instead of giving some text or none."""
    with pytest.raises(UsageError):
        model.sample("ab", **how)


def test_without_prompt(model: LanguageModel) -> None:
    """Without a prompt a text begins as after a line end, or after the commonest character where there is none."""
    assert model.sample("", length=9) == model.sample("\n", length=9)
    model.tokenizer = CharTokenizer(" abcdeéz")

    assert model.start() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"counts": [1, 2]}, {"tokenizer": {"kind": "char", "symbols": "abca"}},
        {"tokenizer": {"kind": "word"}}, {"config": {"model": {"hidden": 8, "layers": 1, "dropout": 0.0}}},
        {"config": {"model": {"hidden": 7}}}, {"config": {"model": {"hidden": "7"}}}, {"config": {"what": {}}},
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """A checkpoint whose description contradicts itself or its weights is refused."""
    path = tmp_path / "model.safetensors"
    checkpoint.write(path, saved(**change))

    with pytest.raises(CheckpointError):
        LanguageModel.open(path)


def test_stop_arithmetic() -> None:
    """The first stop text in a text is found, and how much of its end may still become one."""
    assert _first("xxabc", ["c", "ab"]) == (2, "ab")
    assert _first("xx", ["c"]) is None
    assert _overlap("xxab", ["abc", "b!"]) == 2
    assert _overlap("xxb", ["abc", "b!"]) == 1
    assert _overlap("xx", ["abc"]) == 0
