import copy
import math
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch

import lstmlm
from lstmlm.api import LanguageModel
from lstmlm.config.run_config import DataConfig, ModelConfig, RunConfig, to_dict
from lstmlm.data.tokenizer import FORMS, CharTokenizer
from lstmlm.errors import CheckpointError, LstmlmError, TextError, UsageError
from lstmlm.evaluation import sampling, scoring
from lstmlm.evaluation.sampler import Sampling
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model.char_lm import CharLM
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint
from lstmlm.training.events import StepDone
from tests.cli.trained import TEXT, make_run

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
        ("ab", {"batch": 0}, UsageError), ("ab", {"window": 2.5}, UsageError),
        ("ab", {"after": "a", "protocol": "cold"}, UsageError),
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


def test_more_samples_than_are_drawn_together(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many samples some are drawn at a time, so that any number may be begun; they are those of their seeds."""
    monkeypatch.setitem(sampling.DRAWN_TOGETHER, "cpu", 2)
    expected = [model.sample(prompt, length=9, seed=seed)[0] for prompt in ("ab", "cd") for seed in range(4, 9)]

    assert model.sample(["ab", "cd"], length=9, n=5, seed=4) == expected


def test_sample_nats(model: LanguageModel) -> None:
    """A sample's nats are those of its characters after the prompt, however it was cut and heated."""
    for exact, apart in ((True, 1e-3), (False, 0.2)):
        sample = model.sample("ab", length=20, temperature=3.0, top_k=5, exact=exact, seed=0)[0]
        expected = model.score("ab" + sample.text).nats - model.score("ab").nats

        assert sample.nats == pytest.approx(expected, abs=apart)


def test_a_float32_model_is_sampled_in_float32(model: LanguageModel) -> None:
    """Who trained without reduced precision draws without it, to the last digit of the nats."""
    exact = model.sample("ab", length=20, exact=True, seed=0)[0]
    model.config = replace(model.config, train=replace(model.config.train, precision="float32"))

    assert model.sample("ab", length=20, seed=0)[0] == exact


@pytest.mark.parametrize("size", [1, 2, 5])
def test_stop(model: LanguageModel, size: int) -> None:
    """A sample ends before the first stop text, of any length, and no piece shows a part of it."""
    text = model.sample("ab", length=60, seed=0)[0].text
    stop = text[20 : 20 + size]
    sample = model.sample("ab", length=60, stop=[stop, "é" * 9], seed=0)[0]

    assert sample.text == text[: text.index(stop)]
    assert sample.stop == "stop"


def test_one_stop_text(model: LanguageModel) -> None:
    """A stop text that is given alone is one text, not each of its characters."""
    alone, listed = (model.sample("ab", length=60, stop=stop, seed=0) for stop in ("ab", ["ab"]))

    assert alone == listed
    assert len(alone[0].text) > 1


def test_score_after(model: LanguageModel) -> None:
    """A text after another one costs what both cost together less what the first one costs."""
    given = model.score("bad\n", after="a b")

    assert given.nats == pytest.approx(model.score("a bbad\n").nats - model.score("a b").nats, abs=1e-5)
    assert given.chars == 4


def test_lines(model: LanguageModel) -> None:
    """A sample of N lines ends before its N-th line end, or at its length; without line ends in the vocabulary it is refused."""
    text = model.sample("ab", length=400, seed=0)[0].text
    first, second, *_ = text.split("\n")
    lines = [model.sample("ab", length=400, lines=n, seed=0)[0] for n in (1, 2)]
    short = model.sample("ab", length=len(first), lines=1, seed=0)[0]

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
    monkeypatch.setattr("lstmlm.evaluation.text_sampler.generate_each", lambda *_: (([byte], [1.0]) for byte in drawn))

    streamed = "".join(piece for _, piece, _ in model.draw("ab", length=length, n=1, seed=0, how=Sampling()))

    assert model.sample("ab", length=length)[0].text == text
    assert streamed == text.replace("\ufffd", "\udce2")


def test_stream_pieces(model: LanguageModel) -> None:
    """Pieces come as soon as they cannot begin a stop text, and together are the sample."""
    pieces = list(model.draw("ab", length=25, n=2, seed=1, how=Sampling(), stop=["ab"]))
    texts = ["".join(piece for index, piece, _ in pieces if index == which) for which in (0, 1)]

    assert texts == [sample.text for sample in model.sample("ab", length=25, n=2, seed=1, stop=["ab"])]
    assert sum(end is not None for _, _, end in pieces) == 2


def test_wrong_at_once(model: LanguageModel) -> None:
    """What is wrong with a prompt is said when a stream is asked for, not with its first piece."""
    with pytest.raises(TextError, match=r"U\+0078"):
        model.stream("abx")


@pytest.mark.parametrize(
    "how",
    [
        {"length": 0}, {"n": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 1.1}, {"top_k": -1},
        {"stop": [""]}, {"stop": ["ab", "aΩ"]}, {"lines": -1}, {"top_p": float("nan")}, {"temperature": float("inf")},
        {"length": 3.5}, {"length": float("inf")}, {"n": 2.5}, {"lines": 1.5}, {"top_k": 2.5}, {"seed": 1.5},
    ],
)  # fmt: skip
def test_sample_refused(model: LanguageModel, how: dict[str, Any]) -> None:
    """Numbers that make no sense are refused instead of giving some text, none, or one without end."""
    with pytest.raises(UsageError):
        model.sample("ab", **how)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda model: model.score(b"ab"), "text: expected a string, found b'ab'"),
        (lambda model: model.score("ab", after=None), "after: expected a string, found None"),
        (lambda model: model.sample(5), "prompt: expected a string, or several, found 5"),
        (lambda model: model.sample(["ab", b"c"]), "prompt: expected a string, or several"),
        (lambda model: model.sample("ab", stop=[7]), "stop: expected a string, or several"),
        (lambda model: model.sample("ab", temperature="hot"), "temperature: expected a number, found 'hot'"),
        (lambda model: model.sample("ab", greedy="no"), "greedy: expected True or False, found 'no'"),
        (lambda model: model.sample("ab", on_unknown="leave"), "on_unknown: expected error, skip or replace, found 'leave'"),
        (lambda model: model.stream(["ab", "c"]), "prompt: expected a string, found"),
        (lambda model: model.next(None), "prompt: expected a string, found None"),
        (lambda model: model.fill("____", "ab"), "choices: expected several strings, found one"),
        (lambda model: model.fill("____", ["a", 5]), "choices: expected a string, or several, found ['a', 5]"),
        (lambda model: model.gates(5), "text: expected a string, found 5"),
        (lambda model: model.member("first"), "member: expected a whole number, found 'first'"),
        (lambda model: lstmlm.load(model.path, device=cast("Any", None)), "device: expected a string, found None"),
    ],
)  # fmt: skip
def test_another_type_is_named(model: LanguageModel, what: Callable[[Any], object], words: str) -> None:
    """What is of another type is refused by its name, not taken apart into characters nor met by whatever breaks on it."""
    with pytest.raises((TypeError, UsageError), match=re.escape(words)):
        what(model)


def test_numbers_of_other_libraries(model: LanguageModel) -> None:
    """A seed or a length that is a whole number of another type, as NumPy's and torch's are, is that number."""
    threes: list[Any] = [torch.tensor(3), 3]
    of_torch, of_python = (model.sample("ab", length=three, seed=three, top_k=three, n=three) for three in threes)

    assert of_torch == of_python


def test_without_prompt(model: LanguageModel) -> None:
    """Without a prompt a text begins as after a line end, or after the commonest character where there is none."""
    bare, after_a_line = (model.sample(prompt, length=9, seed=0)[0] for prompt in ("", "\n"))
    assert (bare.text, bare.nats) == (after_a_line.text, after_a_line.nats)
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


def test_a_seed_is_drawn_and_kept(model: LanguageModel) -> None:
    """Without a seed two samples differ, and each can be drawn again by the seed that it says; so can a stream."""
    one, other = (model.sample("ab", length=40)[0] for _ in range(2))
    stream = model.stream("ab", length=40)
    text = "".join(stream)

    assert one.seed != other.seed
    assert model.sample("ab", length=40, seed=one.seed) == [one]
    assert stream.sample == model.sample("ab", length=40, seed=stream.seed)[0]
    assert stream.sample is not None
    assert stream.sample.text == text


def test_several_prompts(model: LanguageModel) -> None:
    """Of several prompts each gets the samples that it gets alone, in order, and every sample says its prompt."""
    found = model.sample(["ab", "", "cd"], length=12, n=2, seed=5)

    assert found == [sample for prompt in ("ab", "", "cd") for sample in model.sample(prompt, length=12, n=2, seed=5)]
    assert [sample.prompt for sample in found] == ["ab", "ab", "", "", "cd", "cd"]
    with pytest.raises(TextError):
        model.sample(["ab", "x"])


def test_a_stream_without_end(model: LanguageModel) -> None:
    """With a length of 0 pieces come as long as somebody takes them."""
    stream = model.stream("ab", length=0, seed=1)
    pieces = [next(stream) for _ in range(50)]

    assert "".join(pieces) == model.sample("ab", length=50, seed=1)[0].text
    assert stream.sample is None


def test_costs(model: LanguageModel) -> None:
    """A score has the bits of each character, unknown ones too, and they sum to the whole."""
    text = "abxé\nba"
    score = model.score(text)

    assert len(score.costs) == len(text)
    assert score.costs[2] == pytest.approx(math.log2(1_114_112))
    assert math.fsum(score.costs) == pytest.approx(score.nats / math.log(2))
    assert model.score(text, protocol="cold", window=2).costs[:2] == pytest.approx(score.costs[:2], abs=1e-5)


def test_score_reads_as_few_streams_as_eval(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many cold windows are read side by side may be said; a text that is read warm has as many streams as are quick."""
    batches: list[Any] = []
    init = scoring.Scorer.__init__

    def watched(self: scoring.Scorer, *args: Any, **more: Any) -> None:
        batches.append(args[4])
        init(self, *args, **more)

    monkeypatch.setattr(scoring.Scorer, "__init__", watched)
    for how in ({}, {"batch": 3}, {"protocol": "cold"}, {"protocol": "cold", "batch": 3}):
        model.score("a bad cab\n", **how)

    assert batches == [None, None, None, 3]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_costs_in_a_unicode_form(tmp_path: Path, form: Literal["NFC", "NFD"]) -> None:
    """A model that reads a Unicode form gives the costs of the text in that form, character by character."""
    config = RunConfig(ModelConfig(hidden=7, layers=1, dropout=0.0), DataConfig(normalize=form.lower()))
    symbols = CharTokenizer(unicodedata.normalize(form, SYMBOLS) + "aeo")
    network = CharLM(config.model, len(symbols), EagerKernel())
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    facts = {
        "config": to_dict(config), "tokenizer": symbols.to_dict(), "counts": [1] * len(symbols),
        "parameters": network.parameter_count(),
    }  # fmt: skip
    checkpoint.write(tmp_path / "best.safetensors", replace(saved(**facts), tensors=checkpoint.to_blobs(tensors)))
    model = lstmlm.load(str(tmp_path))
    one, other = (model.score(unicodedata.normalize(name, "dé bé xa")) for name in FORMS.values())
    length = len(unicodedata.normalize(form, "dé bé xa"))

    assert one.costs == other.costs
    assert (len(one.costs), one.chars) == (length, length)
    assert max(one.costs) == one.costs[-2] == pytest.approx(math.log2(1_114_112))


def test_costs_after_a_text(model: LanguageModel) -> None:
    """What stands before a text is read and not scored: the two costs add up to that of both in one."""
    whole, before = model.score("a bad cab\n"), model.score("a bad")
    after = model.score(" cab\n", after="a bad")

    assert after.nats == pytest.approx(whole.nats - before.nats, abs=1e-5)
    assert after.costs == pytest.approx(whole.costs[5:], abs=1e-5)
    assert (after.chars, after.correct) == (5, whole.correct - before.correct)
    assert model.score("ab", after="x").nats == model.score("ab").nats  # nothing of it is known
    with pytest.raises(UsageError):
        model.score("ab", after="a", protocol="cold")


def test_costs_of_bytes(tmp_path: Path) -> None:
    """In a model of bytes a character costs what its bytes cost."""
    model = lstmlm.load(make_run(tmp_path / "run", byte=True))
    score = model.score("Bé€b")

    assert (score.chars, len(score.costs)) == (7, 4)
    assert math.fsum(score.costs) == pytest.approx(score.nats / math.log(2))


def test_fill(model: LanguageModel) -> None:
    """Candidates come best first, with the bits of the whole text and their shares."""
    answers = model.fill("a ____ c", ["b", "dd", "é"])

    assert {answer.words for answer in answers} == {("b",), ("dd",), ("é",)}
    assert sum(answer.probability for answer in answers) == pytest.approx(1)
    assert answers[0].bits == min(answer.bits for answer in answers)
    difference = model.score("a b c", after="\n").nats - model.score("a dd c", after="\n").nats
    bits = {answer.words[0]: answer.bits for answer in answers}
    assert (bits["b"] - bits["dd"]) * math.log(2) == pytest.approx(difference, abs=1e-5)


def test_gates(model: LanguageModel) -> None:
    """Along a text there is a value of every quantity for every unit, and the bits that each character costs after a line end."""
    gates = model.gates("abé")

    assert gates.characters == ["a", "b", "é"]
    assert [set(layer) for layer in gates.layers] == [{"forget", "input", "output", "new", "cell", "hidden"}]
    assert all(values.shape == (3, 7) for layer in gates.layers for values in layer.values())
    assert gates.surprise == pytest.approx(model.score("abé", after="\n").costs, abs=1e-5)
    with pytest.raises(TextError):
        model.gates("")


def test_it_says_what_it_is(model: LanguageModel) -> None:
    """A model shows its file, sizes and vocabulary."""
    assert repr(model) == f"<LanguageModel {model.path}: 1 x 7 units, 8 characters, 582 parameters, step 1>"
    several = lstmlm.load(make_run(model.path.parent / "several", members=3))
    of_all = several.meta["parameters"]
    assert f": 3 members of 2 x 6 units, 21 characters, {of_all:,} parameters, step 1>" in repr(several)
    assert f": member 2 of 3, 2 x 6 units, 21 characters, {of_all // 3:,} parameters, step 1>" in repr(several.member(2))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.sample(temperature=-1.0), "temperature: expected a number from 0 on"),
        (lambda m: m.sample(top_p=2.0), "top_p: expected a number from 0 to 1"),
        (lambda m: m.sample("x"), 'use `on_unknown="skip"` or `on_unknown="replace"`'),
        (lambda m: m.sample(seed=-1), "seed: expected"),
        (lambda m: m.fill("a ____", ["a"]), "Give a choice for each."),
        (lambda m: lstmlm.load("nowhere"), "not found"),
        (lambda m: lstmlm.load(device="gpu"), "device: expected auto, cpu or cuda"),
        (lambda m: lstmlm.load(threads=0), "threads: expected at least 1"),
        (lambda m: lstmlm.train("a.txt", hiden=3), "Did you mean hidden?"),
        (lambda m: lstmlm.train("a.txt", lr=-1), "lr: expected"),
        (lambda m: lstmlm.train("a.txt", minutes="x"), "or None, found 'x'. The default is None."),  # type: ignore[arg-type]  # is refused
        (lambda m: lstmlm.train([]), "text: expected"),
        (lambda m: lstmlm.train("a text " * 900), "expected the name of a file or folder, found a text of 6,300 characters."),
        (lambda m: lstmlm.train(["a\n", "b\n"]), "text: expected the name of a file or folder, found a text of 2 characters."),
        (lambda m: lstmlm.train("a\nb\n", val="c\n"), "val: expected the name of a file or folder"),
        (lambda m: lstmlm.train(m.path.parent), "text: expected a text, found the model"),
        (lambda m: lstmlm.train("a\nb\n", val=m.path), "val: expected a text, found the model"),
        (lambda m: m.stream("a", length=1e3), "length: expected a whole number, found 1000.0."),
        (lambda m: m.next("a", k=2.5), "k: expected a whole number, found 2.5."),
    ],
)
def test_errors_speak_of_arguments(model: LanguageModel, call: Callable[[LanguageModel], object], says: str) -> None:
    """An error in Python names arguments, and no flag of the command line."""
    with pytest.raises(LstmlmError) as raised:
        call(model)

    assert says in str(raised.value)
    assert "--" not in str(raised.value)


def test_pickled_and_copied(model: LanguageModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model is pickled by its path, opens anywhere, and is refused where the file is another by then; a copy is its own."""
    expected = model.sample("ab", length=20, seed=3)
    pickled = pickle.dumps(model)
    monkeypatch.chdir("/")

    assert len(pickled) < 1000
    assert pickle.loads(pickled).sample("ab", length=20, seed=3) == expected
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.network.stack()[0].W.mul_(2)
    assert copy.deepcopy(twin).sample("ab", length=20, seed=3) == twin.sample("ab", length=20, seed=3) != expected
    assert model.sample("ab", length=20, seed=3) == expected
    checkpoint.write(tmp_path / "best.safetensors", saved(step=2))
    with pytest.raises(CheckpointError, match="pickled"):
        pickle.loads(pickled)


def test_threads_are_ones_own(model: LanguageModel) -> None:
    """Opening a model with a number of threads, and reading with it, leaves torch's number as it was."""
    torch.set_num_threads(1)
    other = lstmlm.load(model.path, threads=2)

    assert other.network
    assert other.score("abc").chars == 3
    assert torch.get_num_threads() == 1


def test_in_a_pool(model: LanguageModel) -> None:
    """Sixty-four seeds and scores in eight threads are those of one after another."""
    other = lstmlm.load(model.path)
    texts = ["ab" * n for n in range(1, 65)]
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda seed: other.sample("ab", length=30, seed=seed)[0], range(64)))
        scored = list(pool.map(other.score, texts))

    assert drawn == [model.sample("ab", length=30, seed=seed)[0] for seed in range(64)]
    assert [score.costs for score in scored] == [model.score(text).costs for text in texts]


@pytest.mark.slow
def test_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text in memory, and a file, are learnt in a new folder by steps that are reported; torch's threads stay."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT * 30)
    seen: list[object] = []
    torch.set_num_threads(1)
    model = lstmlm.train(TEXT * 30, out="runs/memory", steps=8, hidden=9, seed=3, progress=seen.append)
    other = lstmlm.train(Path("book.txt"), steps=8, hidden=9, seed=3)

    assert sum(isinstance(event, StepDone) for event in seen) == 8
    assert torch.get_num_threads() == 1
    assert (str(model.path), str(other.path)) == ("runs/memory/best.safetensors", "runs/book/best.safetensors")
    assert model.score("Bob").nats == other.score("Bob").nats
    assert model.config.model.hidden == 9
    assert "in validation" in repr(model)
    with pytest.raises(UsageError, match=r"run runs/memory: expected an empty or new folder.* Use resume=True with a larger"):
        lstmlm.train(TEXT, out="runs/memory")
    with pytest.raises(TextError, match="nowhere"):
        lstmlm.train("nowhere")


@pytest.mark.slow
def test_train_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on to the bits of one that asked for as many steps at once, is replaced, and is what another starts from."""
    monkeypatch.chdir(tmp_path)
    text = TEXT * 30
    more: dict[str, Any] = {"hidden": 9, "seed": 3, "lr": 0.01, "final_lr": 1, "warmup": 2, "batch": 4, "window": 16}
    lstmlm.train(text, out="run", steps=6, **more)
    further = lstmlm.train(text, out="run", steps=12, resume=True)
    at_once = lstmlm.train(text, out="whole", steps=12, **more)
    tuned = lstmlm.train(text + "é\n", out="tuned", steps=2, start_from="run", on_unknown="grow")
    fresh = lstmlm.train(text, out="run", steps=2, hidden=7, overwrite=True)

    assert further.score("Bob").nats == at_once.score("Bob").nats
    assert (further.meta["scores"], further.config) == (at_once.meta["scores"], at_once.config)
    assert (tuned.config.model.hidden, fresh.config.model.hidden) == (9, 7)
    assert "é" in tuned.tokenizer.decode(range(len(tuned.tokenizer)))
    with pytest.raises(TextError, match="start_from run out run-2"):
        lstmlm.train(TEXT * 20, out="run", resume=True)
    with pytest.raises(UsageError, match=r"resume=True goes on with a run as it is; leave out .*, start_from and distill"):
        lstmlm.train(text, out="run", resume=True, overwrite=True)
    with pytest.raises(UsageError, match=r"hidden is 7 in this run, and 8 was asked for \(settings\)"):
        lstmlm.train(text, out="run", resume=True, hidden=8)


def test_odd_arguments() -> None:
    """What is no name of a file, or no function, is a TypeError that says for which argument, and what was found."""
    anything: Any = lstmlm
    with pytest.raises(TypeError, match=r"^text: expected a string or a path, found bytes\.$"):
        anything.train(b"a text\n")
    with pytest.raises(TypeError, match=r"^text: expected a string or a path, found int\.$"):
        anything.train(["a.txt", 3])
    with pytest.raises(TypeError, match=r"^text: expected a string or a path, found NoneType\.$"):
        anything.train(None)
    with pytest.raises(TypeError, match=r"^val: expected a string or a path, found int\.$"):
        anything.train("a\nb\n", val=3)
    with pytest.raises(TypeError, match=r"^progress: expected a function, found int\.$"):
        anything.train("a\nb\n", progress=3)
    with pytest.raises(TypeError, match=r"^path: expected a string or a path, found int\.$"):
        anything.load(3)


@pytest.mark.parametrize("argument", ["out", "start_from", "distill", "val"])
@pytest.mark.parametrize("name", ["", "a\0b"])
def test_no_name(argument: str, name: str) -> None:
    """An empty name is not the folder one is in, whose run `overwrite` would delete, nor a name with a NUL that of anything."""
    given: dict[str, Any] = {argument: name}
    with pytest.raises(UsageError, match=rf"^{argument}: expected the name of a file or folder, found '.*'\. Name one"):
        lstmlm.train("a\nb\n", steps=1, **given)


@pytest.mark.parametrize("argument", ["overwrite", "resume"])
def test_no_switch(argument: str) -> None:
    """A text, "no" too, is no True: it would have deleted a run."""
    given: dict[str, Any] = {argument: "no"}
    with pytest.raises(UsageError, match=rf"^{argument}: expected True or False, found 'no'"):
        lstmlm.train("a\nb\n", steps=1, **given)


@pytest.mark.slow
def test_what_progress_raises_ends_a_run(tmp_path: Path) -> None:
    """An error out of the callback comes through, and leaves a run that can be opened."""

    def stop(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lstmlm.train(TEXT * 30, out=tmp_path / "run", steps=8, hidden=9, progress=stop)

    assert checkpoint.read(tmp_path / "run" / "last.safetensors").meta["step"] == 0


USER = """
import lstmlm
from lstmlm.errors import TextError

model = lstmlm.load("runs/stories", threads=2)
reveal_type(model)
reveal_type(model.sample(["Bob", "Dan"], n=2)[0].text)
reveal_type([piece for piece in model.stream("Bob")])
reveal_type(model.next("Bob", 3))
reveal_type(model.score("Bob", after="Dan").costs)
reveal_type(model.fill("____", ["Bob", "Dan"])[0].words)
reveal_type(model.gates("Bob").surprise)
reveal_type(lstmlm.train("a text\n", minutes=1.0, hidden=20))


def shown(one: lstmlm.LanguageModel, sample: lstmlm.Sample) -> str:
    return f"{one} {sample.seed}"
"""


@pytest.mark.slow
def test_a_users_types(tmp_path: Path) -> None:
    """A user's own file passes `mypy --strict`, and nothing in it is Any."""
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER.replace('"a text\n"', '"a text\\n"'))
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")  # a minute's work, and not ours
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "user.py"]
    root = str(Path(lstmlm.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": root})
    types = re.findall('Revealed type is "(.*)"', done.stdout)

    assert done.returncode == 0, done.stdout
    assert types == [
        "lstmlm.api.LanguageModel", "str", "list[str]", "list[tuple[str, float]]", "tuple[float, ...]", "tuple[str, ...]",
        "list[float]", "lstmlm.api.LanguageModel",
    ]  # fmt: skip
