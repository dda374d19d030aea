"""After the text that parts documents every state is empty, in all that reads, learns and writes, and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lstmlm
from lstmlm.api import LanguageModel
from lstmlm.data.corpus import Corpus
from lstmlm.data.ids import Ids
from lstmlm.evaluation import sampler, scoring, torch_sampler
from lstmlm.evaluation.reader import reading
from lstmlm.evaluation.sampler import Sampling
from lstmlm.evaluation.torch_reader import TorchReader
from lstmlm.kernels import Kernel, native
from lstmlm.kernels.cuda_graph import Graph
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import cell, ensemble
from lstmlm.model.cell import LSTMState
from lstmlm.model.char_lm import CharLM, nats
from lstmlm.model.ensemble import Network
from lstmlm.training.backprop import Backprop
from tests import pretend
from tests.cli.trained import make_run
from tests.helpers import assert_close, small_model
from tests.training.test_trainer import Bench, configured

V, T, B = 5, 40, 3
SEPARATORS = [(2,), (1, 3), (2, 2, 2), (0, 1, 0, 0)]
SHAPES: list[dict[str, Any]] = [
    {},
    {"layers": 3, "residual": False, "bias": False},
    {"layer_norm": False, "readout": "direct"},
    {"pairs": 7},
]


def text(separator: Sequence[int], rows: int = B, steps: int = T) -> Tensor:
    """Draw ids in which a separator stands every ten or so. (T, B)"""
    ids = torch.randint(V, (steps, rows))
    for row in range(rows):
        for start in range(2 + row, steps - len(separator), 11):
            ids[start : start + len(separator), row] = torch.tensor(separator)
    return ids


def ended(ids: Tensor, separator: Sequence[int]) -> Tensor:
    """Say where a separator ends, one place at a time. (T, B)"""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for t in range(len(separator) - 1, len(ids)):
        for row in range(ids.shape[1]):
            found[t, row] = tuple(ids[t + 1 - len(separator) : t + 1, row].tolist()) == tuple(separator)
    return found


def rows_of(model: CharLM, ids: Tensor, ends: Tensor) -> Tensor:
    """Look the row of each id up, one at a time: that of the pair that it ends, if it is in the same document. (T, B)"""
    pairs = [tuple(map(int, pair)) for pair in model.pairs.tolist()] if model.config.pairs else []
    rows = ids.clone()
    for t in range(1, len(ids)):
        for stream in range(ids.shape[1]):
            pair = (int(ids[t - 1, stream]), int(ids[t, stream]))
            if pair in pairs and not ends[t - 1, stream]:
                rows[t, stream] = V + pairs.index(pair)
    return rows


def slowly(model: CharLM, ids: Tensor, separator: Sequence[int]) -> Tensor:
    """Read by the equations, a step at a time, each state set to zero behind a separator. (T, B, V)"""
    states = [layer.initial_state(ids.shape[1]) for layer in model.stack()]
    logits = []
    for row, end in zip(rows_of(model, ids, ended(ids, separator)), ended(ids, separator), strict=True):
        x = torch.empty(0)
        for index, layer in enumerate(model.stack()):
            m = states[index].hidden if layer.M is None else (1 + layer.M[row]) * states[index].hidden
            a = (x @ layer.U if index else layer.U[row]) + m @ layer.W
            state = cell.update(cell.gates(a if layer.b is None else a + layer.b), states[index])
            states[index] = LSTMState(*(part * ~end[:, None] for part in state))
            y = states[index].hidden
            if model.norms is not None and index < len(model.norms):
                y = model.norms[index](y)
            x = x + y if model.config.residual and index and index < len(model.norms or ()) else y
        logits.append(x if model.readout is None else model.readout(x))
    return torch.stack(logits)


def twin(model: CharLM, kernel: Kernel, dtype: torch.dtype = torch.float32) -> CharLM:
    """Return a model of the same weights with another kernel, each parameter with a gradient of zero."""
    other = CharLM(model.config, V, kernel, model.separator).to(dtype).eval()
    other.load_state_dict(model.state_dict())
    for p in other.parameters():
        p.grad = torch.zeros_like(p)
    return other


def in_c() -> Kernel:
    """Return the native kernel, with float32 products."""
    try:
        return native.load("float32")
    except native.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("separator", SEPARATORS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reading_equals_the_equations(separator: tuple[int, ...], shape: dict[str, Any]) -> None:
    """Logits and gradient are those of the equations with the states set to zero, however the text is cut into calls."""
    model = small_model(V, separator=separator, **shape)
    ids = text(separator)
    expected = slowly(model, ids, separator)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()), allow_unused=True)
    for step in (T, 1, 3, 7):
        state, parts = model.initial_state(B), []
        for part in ids.split(step):
            logits, state = model(part, state)
            parts.append(logits)
        found = torch.cat(parts)
        assert_close(found, expected, f"logits in calls of {step}", 1e-12)
        gradients = torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)
        for one, other in zip(gradients, wanted, strict=True):
            assert_close(one, other, f"gradient in calls of {step}", 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("separator", SEPARATORS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("segment", "chunks"), [(0, 1), (7, 1), (0, 3)])
@pytest.mark.parametrize("kernel", ["eager", "native"])
def test_learning_equals_the_equations(
    separator: tuple[int, ...], shape: dict[str, Any], segment: int, chunks: int, kernel: str
) -> None:
    """Loss and gradient of two windows by hand are autograd's; the second window begins in the midst of a separator or not."""
    dtype, tolerance = (torch.float64, 1e-12) if kernel == "eager" else (torch.float32, 2e-4)
    model = small_model(V, separator=separator, **shape)
    other = twin(model, EagerKernel() if kernel == "eager" else in_c(), dtype)
    for at in (T // 2 - 1, T // 2):  # where a window ends is in a separator
        ids = text(separator, steps=T + 1)
        ids[at : at + len(separator), 1] = torch.tensor(separator)
        for p in (*other.parameters(), *model.parameters()):
            p.grad = torch.zeros_like(p)
        loss, half = 0.0, T // 2
        state, backprop = other.initial_state(B), Backprop(other, B, half, segment, chunks)
        for start in (0, half):
            own, state = backprop(ids[start : start + half], ids[start + 1 : start + half + 1], state, 0.1)
            loss += float(own)
        state, total = model.initial_state(B), torch.zeros(())
        for start in (0, half):
            before = tuple(LSTMState(*(part.detach() for part in layer)) for layer in state)
            logits, state = model(ids[start : start + half], before)
            total = total + nats(logits, ids[start + 1 : start + half + 1]).sum()
        (0.1 * total).backward()

        assert loss == pytest.approx(float(total.detach()), rel=1e-12 if kernel == "eager" else 1e-5)
        for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
            assert_close(q.grad, p.grad, name, tolerance)


def test_a_window_with_an_end_is_two() -> None:
    """Loss and gradient of a window with a separator in its midst are the sum of those of the two documents alone."""
    separator, document, last = (1, 3), torch.tensor([0, 2, 2, 4, 1, 3]), torch.tensor([4, 0, 4, 2, 2])
    model = small_model(V, separator=separator)
    before = twin(model, EagerKernel(), torch.float64)
    after = twin(model, EagerKernel(), torch.float64)
    whole = twin(model, EagerKernel(), torch.float64)

    def learn(model: CharLM, ids: Tensor) -> float:
        return float(Backprop(model, 1, len(ids) - 1)(ids[:-1, None], ids[1:, None], model.initial_state(1), 1.0)[0])

    both = learn(whole, torch.cat([document, last]))
    # The first character of the second document is predicted from the empty state: it belongs to the first window.
    parts = learn(before, torch.cat([document, last[:1]])), learn(after, last)

    assert both == pytest.approx(sum(parts), rel=1e-12)
    for p, q, r in zip(whole.parameters(), before.parameters(), after.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert r.grad is not None
        assert_close(p.grad, q.grad + r.grad, "gradient", 1e-12)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., LanguageModel]:
    """Return what opens an untrained model with a separator, drawn larger than it starts."""
    in_c()

    def open_(separator: str, byte: bool = False, **shape: Any) -> LanguageModel:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return lstmlm.load(make_run(folder, document_separator=separator, byte=byte, **shape), device="cpu", threads=2)

    return open_


KINDS: list[dict[str, Any]] = [{"hidden": 33}, {"byte": True}, {"members": 2}, {"readout": "direct", "layer_norm": False}]
ONE = "Bob ate bread. Dan ran home.\nBob is"
OTHERS = ("not a farmer\n", "Dan", "Bob ate bread. Bob ate bread. Dan is (not", "D" * 300)
SHOWN = " home"
"""The separator: it ends in `e`, and begins with what stands everywhere."""


@pytest.mark.parametrize("shape", KINDS, ids=str)
def test_what_was_before_changes_nothing(opened: Callable[..., LanguageModel], shape: dict[str, Any]) -> None:
    """Each character behind the separator has the same bits whatever stands before it; those of the text alone but the first."""
    model = opened(SHOWN, **shape)
    alone = model.score(ONE.replace(SHOWN, "")).costs
    found = [model.score(before + SHOWN + ONE.replace(SHOWN, "")).costs[-len(alone) :] for before in OTHERS]

    assert all(one == found[0] for one in found)
    assert found[0][1:] == alone[1:]
    assert model.score(ONE.replace(SHOWN, ""), after=OTHERS[0] + SHOWN).costs == found[0]
    plain = opened("ananas", **shape) if shape.get("byte") else None
    if plain:
        assert plain.score(OTHERS[0] + SHOWN + ONE).bits_per_char > 0


@pytest.mark.parametrize("shape", KINDS, ids=str)
def test_both_readers_agree(opened: Callable[..., LanguageModel], shape: dict[str, Any]) -> None:
    """The reader in C and that in torch give each character the same, cut anywhere, each row from its own state."""
    model = opened(SHOWN, **shape)
    texts = [one + SHOWN + two for one, two in zip(OTHERS, reversed(OTHERS), strict=True)]
    ids = [model.tokenizer.encode(one) for one in texts]
    in_torch = TorchReader(model.network)
    expected = in_torch.read(ids, in_torch.empty(len(ids)))
    with reading(model.network) as reader:
        for cut in (1, 5, len(OTHERS[0]) + 2, len(OTHERS[1]) + 3):
            first = reader.read([row[: cut + 1] for row in ids], reader.empty(len(ids)))
            second = reader.read([row[cut:] for row in ids], first.state)
            for one, other, wanted in zip(first.nats, second.nats, expected.nats, strict=True):
                assert [*one, *other] == pytest.approx(list(wanted), abs=1e-5)


@pytest.mark.parametrize("separator", SEPARATORS, ids=str)
def test_scoring_side_by_side_is_exact(separator: tuple[int, ...]) -> None:
    """A long text read in streams, whose borders fall into separators too, has the scores of one pass."""
    model = twin(small_model(V, torch.float32, separator), in_c())
    ids = text(separator, 1, 3000)[:, 0].tolist()
    for batch in (1, 7, 16):
        found = scoring.warm(model, ids, batch=batch, window=8)
        with reading(model) as reader:
            wanted = reader.read([ids], reader.empty(1)).nats[0]
        assert list(found.nats) == pytest.approx(list(wanted), abs=1e-5)


@pytest.mark.parametrize("separator", SEPARATORS, ids=str)
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("how", [Sampling(exact=True), Sampling()], ids=["exact", "bytes"])
def test_what_is_written_is_read(separator: tuple[int, ...], members: int, how: Sampling) -> None:
    """Drawn characters cost what a reader says, through separators that were drawn or begun in the prompt; so on both roads."""
    own = [twin(small_model(V, torch.float32, separator), in_c()) for _ in range(members)]
    network: Network = ensemble.of(own).eval()
    prompts = [[0, *separator], [4, *separator[:-1]] if separator[1:] else [4], [3], [3]]
    streams = sampler.generate_each(network, prompts, [1, 2, 3, 4], how)
    found = [next(streams) for _ in range(200)]
    for row, prompt in enumerate(prompts):
        drawn = [ids[row] for ids, _ in found]
        whole = [*prompt, *drawn]
        ends = int(ended(torch.tensor(whole)[:, None], separator).sum())
        assert ends > (5 if len(separator) == 1 else 0) or len(separator) > 2
        in_torch = TorchReader(network)
        wanted = in_torch.read([whole], in_torch.empty(1)).nats[0][len(prompt) - 1 :]
        costs = [nats[row] for _, nats in found]
        # In so wild a network a rounding grows; how exact bytes are, `kernels/test_bytes.py` says.
        assert costs == pytest.approx(list(wanted), abs=1e-4 if how.exact else 0.5)
    if how.exact:
        others = torch_sampler.generate(network, prompts, [1, 2, 3, 4], how)
        assert [next(others)[0] for _ in range(200)] == [ids for ids, _ in found]


def test_a_text_begins_as_a_document(opened: Callable[..., LanguageModel]) -> None:
    """Without a prompt a sample goes on after the separator, and so does what is filled in and what is looked into."""
    model = opened(SHOWN)

    assert model.sample(length=40, seed=1)[0].text == model.sample("Dan ate" + SHOWN, length=40, seed=1)[0].text
    assert model.next("", 3) == model.next(SHOWN, 3)
    answers = model.fill("____ ate", ["Bob", "Dan"])
    costs = {name: sum(model.score(f"{name} ate", after=SHOWN).costs) for name in ("Bob", "Dan")}
    assert {one.words[0]: one.bits for one in answers} == pytest.approx(costs, abs=1e-4)
    found = model.gates("Bob" + SHOWN + "Bob")
    assert not found.layers[1]["hidden"][len("Bob" + SHOWN) - 1].any()
    assert torch.equal(found.layers[1]["hidden"][-3:], found.layers[1]["hidden"][:3])
    assert found.surprise[-3:] == found.surprise[:3]


def parted(tmp_path: Path, corpus: Corpus, name: str, separator: str | None = "là; Ann", **changes: Any) -> Bench:
    """Return a run whose documents are parted."""
    config = configured(weight_dropout=0.2, save_every=1, **changes)
    config = replace(config, model=replace(config.model, document_separator=separator, members=2))
    return Bench(corpus, tmp_path / name, config)


CHANGES = [{"accumulate": 3}, {"segment": 2}, {"state_dropout": 0.3, "average": 0.3}]


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.usefixtures("short_samples")
def test_a_run_goes_on_to_the_same_bits(corpus: Corpus, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Stopped after any step, in the midst of a separator too, a run ends with the bits of one that was not."""
    expected = parted(tmp_path, corpus, "whole", **changes).run().end()
    for step in (1, 2, 7, 12):
        stopped = parted(tmp_path, corpus, f"parted{step}", **changes).stop_at(step)
        assert stopped.run(resume=True).end() == expected
    assert parted(tmp_path, corpus, "other", None, **changes).run().end() != expected


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.usefixtures("short_samples")
def test_a_device_is_asked_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """A run on a device leaves the CPU's bits, and a step of it waits for nothing."""
    expected = parted(tmp_path, corpus, "here", **changes).run().end()
    monkeypatch.setattr("lstmlm.training.train_step.Graph", lambda run, device, record: Graph(run, device, pretend.alone))
    there = parted(tmp_path, corpus, "there", **changes)
    with pretend.device() as there.device:
        there.run()

    assert there.end() == expected


def test_separators_are_counted() -> None:
    """However ids are stored and wherever a piece ends, each separator counts once, and two share no id."""
    for width, high in ((1, 4), (2, 4), (4, 4)):
        generator = torch.Generator().manual_seed(width)
        values = torch.randint(high, (5000,), generator=generator).tolist()
        ids = Ids(bytearray(b"".join(value.to_bytes(width, "little") for value in values)), width, 0, len(values))
        joined = "".join(map(str, values))
        for pattern in ((0,), (1, 1), (2, 2, 2), (0, 1, 0), (3, 0, 0, 0)):
            for piece in (1, 7, 1 << 20):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("lstmlm.data.ids.PIECE", piece)
                    assert ids.occurrences(pattern) == joined.count("".join(map(str, pattern)))
