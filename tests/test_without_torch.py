"""Sampling, scoring and looking at a model where torch cannot be imported: the same texts and scores, and no wait for it."""

import hashlib
import json
import os
import subprocess
import sys
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import lstmlm
from lstmlm import kernels
from lstmlm.api import LanguageModel
from lstmlm.data.prepare import fingerprint_of
from lstmlm.errors import UsageError
from lstmlm.kernels import build, native
from lstmlm.kernels import generate as generating
from lstmlm.model import devices
from lstmlm.model.weights import StoredNetwork
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Blob, Checkpoint
from tests.cli.trained import TEXT, make_run

MODELS: list[dict[str, Any]] = [
    {},
    {"layers": 1, "hidden": 33, "layer_norm": False, "residual": False, "bias": False},
    {"layers": 3, "hidden": 70},
    {"layers": 3, "hidden": 20, "residual": False},
    {"layers": 2, "readout": "direct", "layer_norm": False},
    {"layers": 1, "readout": "direct"},
    {"members": 3, "hidden": 20},
    {"byte": True, "hidden": 150},
]
SHORT, LONG = "Bob is", "Bob is a baker. Dan ran home.\n" * 9
ASKED: list[dict[str, Any]] = [
    {"n": 3},
    {"prompt": LONG, "n": 2, "length": 30},
    {"exact": True, "prompt": LONG},
    {"greedy": True},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8, "seed": 2**40},
    {"top_k": 9, "top_p": 0.9, "stop": ["e", "an"], "length": 400, "n": 5},
    {"prompt": "", "n": 70, "length": 12},
    {"exact": True, "n": 2, "length": 300},
]

# A finder that refuses torch, in front of all others.
REFUSES = (
    "import sys\n"
    "class Refuses:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.partition('.')[0] == 'torch': raise AssertionError('torch is imported')\n"
    "sys.meta_path.insert(0, Refuses())\n"
)


@pytest.fixture(autouse=True)
def _examined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel compiled and examined, or skip where it cannot be kept."""
    try:
        native.load("float32")
    except native.Unavailable as reason:
        pytest.skip(str(reason))
    if generating.examined_library() is None:
        pytest.skip("there is no cache that can be written")
    monkeypatch.setattr(devices, "GPU_FILES", ())


def python(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a process where importing torch raises."""
    command = [sys.executable, "-c", REFUSES + code, *arguments]
    root = str(Path(lstmlm.__file__).parents[1])
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})


def samples(folder: str, *, in_torch: bool = False) -> list[list[dict[str, Any]]]:
    """Return what is drawn in each way that is asked for, from a checkpoint's bytes or through the network in torch."""
    model = LanguageModel.open(folder, device="cpu", threads=2)
    assert not in_torch or model.network
    assert isinstance(model._network, StoredNetwork) is not in_torch
    return [[asdict(s) for s in model.sample(**{"prompt": SHORT, "length": 60, "seed": 7, **how})] for how in ASKED]


@pytest.mark.slow
def test_a_seeds_text_is_the_same_without_torch(tmp_path: Path) -> None:
    """Every kind of model, asked in every way, writes the same text at the same cost by either road, to the last bit."""
    folders = [str(make_run(tmp_path / str(index), **shape)) for index, shape in enumerate(MODELS)]
    code = (
        "import json\nfrom lstmlm.api import LanguageModel\nfrom dataclasses import asdict\n"
        "folders, asked, short = json.loads(sys.argv[1])\n"
        "for folder in folders:\n"
        "    model = LanguageModel.open(folder, device='cpu', threads=2)\n"
        "    found = [[asdict(s) for s in model.sample(**{'prompt': short, 'length': 60, 'seed': 7, **how})] for how in asked]\n"
        "    print(json.dumps(found))\n"
    )
    done = python(code, json.dumps([folders, ASKED, SHORT]))

    assert done.returncode == 0, done.stderr
    apart = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(apart) == len(folders)
    for folder, found, shape in zip(folders, apart, MODELS, strict=True):
        assert found == samples(folder, in_torch=True) == samples(folder), shape


def test_company_does_not_matter(tmp_path: Path) -> None:
    """A seed's text and its nats are the same alone, among five, and by the next call."""
    model = LanguageModel.open(make_run(tmp_path / "run", hidden=40), device="cpu")
    together = model.sample(LONG, length=50, n=5, seed=3)

    assert together == [model.sample(LONG, length=50, seed=seed)[0] for seed in range(3, 8)]
    assert isinstance(model._network, StoredNetwork)


@pytest.mark.parametrize("shape", [{"hidden": 40}, {"members": 3, "hidden": 20}, {"layers": 1, "readout": "direct"}], ids=str)
def test_prompts_side_by_side(tmp_path: Path, shape: dict[str, Any]) -> None:
    """Prompts that are drawn from together get the text and the nats that they get alone, to the last bit, 90 of them too."""
    model = LanguageModel.open(make_run(tmp_path / "run", **shape), device="cpu")
    prompts = [LONG[: 1 + number % 7 * 5] for number in range(90)]

    for exact in (False, True):
        together = model.sample(prompts, length=6, seed=3, exact=exact)
        assert together == [sample for prompt in prompts for sample in model.sample(prompt, length=6, seed=3, exact=exact)]
    assert model.sample(prompts[:3], n=2, length=9, seed=1) == [
        sample for prompt in prompts[:3] for sample in model.sample(prompt, n=2, length=9, seed=1)
    ]


def test_commands_without_torch(tmp_path: Path) -> None:
    """Help, refusals, `info`, `sample`, `eval` and `fill` end as they should where importing torch raises."""
    (tmp_path / "text.txt").write_text(TEXT)
    whole = fingerprint_of([hashlib.sha256(TEXT.encode()).hexdigest()], len(TEXT))
    corpus = {"name": "text", "sources": [str(tmp_path / "text.txt")], "fingerprint": whole, "chars": len(TEXT)}
    run, text = str(make_run(tmp_path / "runs" / "one", corpus=corpus)), str(tmp_path / "long.txt")
    Path(text).write_text(LONG * 40)
    commands: list[tuple[list[str], int]] = [
        (["--help"], 0), (["sample", "--help"], 0), (["train", "--help"], 0), (["sample", "--what"], 2),
        (["info", run], 0), (["info", run, "--json"], 0), (["info", run, "--verify"], 0),
        (["sample", "-m", run, "--length", "30", "--seed", "1"], 0),
        (["sample", "-m", run, "--length", "9", "-n", "70", "--json", "--prompt", SHORT, "--stop", "e", "--exact"], 0),
        (["sample", "-m", run, "--prompt", SHORT, "--next", "3"], 0),
        (["sample", "-m", run, "--prompts", __file__, "--length", "3"], 3),
        (["sample", "-m", run, "-n", "9", "--new", "--length", "30", "--lines", "1"], 0),
        (["sample", "-m", run, "--prompt", "Ħ"], 3), (["sample", "-m", "nowhere"], 4), (["sample", "--device", "tpu"], 2),
        (["eval", "-m", run, text], 0), (["eval", "-m", run, text, "--json", "--max-bpc", "0.1"], 1),
        (["eval", "-m", run, text, "--protocol", "cold"], 0), (["eval", "-m", run, "--lines", text], 0),
        (["eval", "-m", run, "--lines", "--state", "carried", "--sort", "surprise", text], 0),
        (["eval", "-m", run, "--files-from", __file__], 3), (["eval", "-m", run, "--chars", text], 0),
        (["fill", "-m", run, "____ is here.", "--choice", "Bob", "--choice", "Dan"], 0),
        (["fill", "-m", run, "____ is", "--choice", "Ħ", "--choice", "Dan"], 3),
    ]  # fmt: skip
    code = (
        "import json, os\nfrom lstmlm.cli import main\nfrom lstmlm.model import devices\ndevices.GPU_FILES = ()\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['lstmlm', *command]\n"
        "    try:\n        main()\n"
        "    except SystemExit as left:\n        print('left', left.code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = python(code, json.dumps([command for command, _ in commands]))
    left = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("left ")]

    assert left == [[str(expected), "False"] for _, expected in commands], done.stderr


@pytest.mark.slow
def test_scores_are_the_same_without_torch(tmp_path: Path) -> None:
    """Every kind of model scores a text, its lines and the fillings of a blank to the last bit the same by either road."""
    folders = [str(make_run(tmp_path / str(index), **shape)) for index, shape in enumerate(MODELS)]
    code = (
        "import json\nfrom lstmlm.api import LanguageModel\nfrom dataclasses import asdict\n"
        "from lstmlm.evaluation.per_line import LineScorer\n"
        "def scores(model):\n"
        "    lines = LineScorer(model.readable, model.tokenizer, model.counts).score(long.splitlines(keepends=True))\n"
        "    text = model.score(long * 20, after='Dan ran.'), model.score(long, protocol='cold', window=30)\n"
        "    filled = model.fill('____ is a baker. ____ ran.', ['Bob', 'Dan'])\n"
        "    return json.dumps([*map(asdict, (*lines, *text, *filled))])\n"
    )
    told = "folders, long = json.loads(sys.argv[1])\n"
    asked = "for folder in folders:\n    print(scores(LanguageModel.open(folder, device='cpu', threads=2)))\n"
    done = python(code + told + asked, json.dumps([folders, LONG]))

    assert done.returncode == 0, done.stderr
    apart = done.stdout.splitlines()
    namespace: dict[str, Any] = {"long": LONG}
    exec(code, namespace)
    for folder, found in zip(folders, apart, strict=True):
        model = LanguageModel.open(folder, device="cpu", threads=2)
        here = namespace["scores"](model)
        assert model.network
        assert found == here == namespace["scores"](model)


def test_what_needs_torch_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kernel, a GPU, a kernel that was never examined and weights of another type are for torch, as before."""
    folder = make_run(tmp_path / "run")
    opened = LanguageModel.open(folder)
    expected = opened.sample(SHORT, length=20, seed=0)
    assert isinstance(opened._network, StoredNetwork)

    with monkeypatch.context() as patch:
        patch.setenv("LSTMLM_KERNEL", "eager")
        assert LanguageModel.open(folder).network.stack()[0].kernel.name == "eager"
    with monkeypatch.context() as patch:
        patch.setattr(devices, "GPU_FILES", ("/",))
        assert not devices.is_cpu("auto")
        assert not isinstance(LanguageModel.open(folder)._network, StoredNetwork)
        assert isinstance(LanguageModel.open(folder, device="cpu")._network, StoredNetwork)
    with monkeypatch.context() as patch:
        patch.setattr(build, "ever_passed", lambda shared, beginning: False)
        unexamined = LanguageModel.open(folder)
        assert not isinstance(unexamined._network, StoredNetwork)
        assert unexamined.sample(SHORT, length=20, seed=0) == expected

    saved = checkpoint.read(folder / "best.safetensors")
    wider = {
        name: Blob("float64", blob.shape, bytearray(array("d", memoryview(blob.data).cast("f"))))
        for name, blob in saved.tensors.items()
    }
    checkpoint.write(folder / "best.safetensors", Checkpoint("best", saved.meta, wider))
    double = LanguageModel.open(folder)
    assert not isinstance(double._network, StoredNetwork)
    assert double.sample(SHORT, length=20, seed=0) == expected


@pytest.mark.slow
def test_the_first_opening_examines_and_later_ones_need_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a new machine the first opening compiles and examines the kernel, with torch; the next one finds that it was."""
    folder = make_run(tmp_path / "run")
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    native.load.cache_clear()

    first = LanguageModel.open(folder)
    second = LanguageModel.open(folder)

    assert not isinstance(first._network, StoredNetwork)
    assert isinstance(second._network, StoredNetwork)
    assert first.sample(SHORT, length=40, n=2, seed=0) == second.sample(SHORT, length=40, n=2, seed=0)
    native.load.cache_clear()


def test_the_network_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    """A model opened for sampling scores as well, and samples the network that it then has, with what is done to it."""
    model = LanguageModel.open(make_run(tmp_path / "run"), device="cpu")
    before = model.sample(SHORT, length=40, seed=0)
    assert model.device == "cpu"

    score = model.score("Bob is here.")
    assert isinstance(model._network, StoredNetwork)
    assert model.network
    assert model.score("Bob is here.") == score
    assert not isinstance(model._network, StoredNetwork)
    assert model.sample(SHORT, length=40, seed=0) == before
    model.network.stack()[0].W.data.mul_(-1.0)
    assert model.sample(SHORT, length=40, seed=0) != before
    assert kernels.requested_kernel() == "auto"


@pytest.mark.parametrize("shape", [{}, {"members": 3}, {"byte": True}, {"layers": 1, "readout": "direct"}], ids=str)
def test_next_characters(tmp_path: Path, shape: dict[str, Any]) -> None:
    """The likeliest next characters are those of the network in torch, to 1e-5, for members together and for bytes."""
    model = LanguageModel.open(make_run(tmp_path / "run", **shape), device="cpu")
    found = model.next(LONG, 1000)
    with torch.inference_mode():
        logits, _ = model.network(torch.tensor(model.tokenizer.encode(LONG))[:, None])
    p = torch.softmax(logits[-1, 0].double(), -1)
    again = model.next(LONG, 1000)

    assert len(found) == len(model.tokenizer)
    assert dict(found) == pytest.approx({model.tokenizer.symbol(id_): float(p[id_]) for id_ in range(len(p))}, abs=1e-5)
    assert [q for _, q in found] == sorted((q for _, q in found), reverse=True)
    assert found == again
    assert model.next(LONG, 3) == found[:3]
    with pytest.raises(UsageError):
        model.next(LONG, 0)


def test_an_answer_comes_before_the_next_question(tmp_path: Path) -> None:
    """A program that asks through a pipe reads the answer to a line while the pipe is open."""
    folder = make_run(tmp_path / "run")
    command = [
        sys.executable,
        "-m",
        "lstmlm",
        "sample",
        "-m",
        str(folder),
        "--prompts",
        "-",
        "--length",
        "9",
        "--seed",
        "1",
        "-q",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(lstmlm.__file__).parents[1]
    ) as asked:
        assert asked.stdin is not None
        assert asked.stdout is not None
        for prompt in ("Bob", "Dan"):
            asked.stdin.write(prompt + "\n")
            asked.stdin.flush()
            assert json.loads(asked.stdout.readline())["prompt"] == prompt
        asked.stdin.close()
        assert asked.stdout.read() == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_samples(tmp_path: Path) -> None:
    """After torch's threads have run, a forked process makes threads of its own and writes the same text."""
    model = LanguageModel.open(make_run(tmp_path / "run", hidden=40), device="cpu", threads=2)
    code = (
        "import os, sys, torch\nfrom lstmlm.api import LanguageModel\n"
        "model = LanguageModel.open(sys.argv[1], device='cpu', threads=2)\n"
        "other = LanguageModel.open(sys.argv[1], device='cpu', threads=2)\n"
        "other.score('Bob is here. ' * 50)\n"
        "other.sample(length=200, seed=0)\n"
        "if os.fork() == 0:\n"
        "    print(model.sample('Bob', length=200, seed=3)[0].text, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    command = [sys.executable, "-c", code, str(model.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(lstmlm.__file__).parents[1])

    assert done.stdout == model.sample("Bob", length=200, seed=3)[0].text + "\n", done.stderr
