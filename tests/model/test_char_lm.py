"""The whole network: its docstring's equations, its state, and the bound of the article's readout."""

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lstmlm.analysis.activations import windows
from lstmlm.analysis.boundaries import ablate_memory, swap
from lstmlm.config.run_config import ModelConfig
from lstmlm.data.tokenizer import CharTokenizer
from lstmlm.errors import CheckpointError, ConfigError
from lstmlm.evaluation.cloze import Filler, Question
from lstmlm.evaluation.per_line import LineScorer
from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.evaluation.scoring import cold, estimate, warm
from lstmlm.kernels.dropout import Dropout
from lstmlm.kernels.eager import EagerKernel
from lstmlm.model import cell, char_lm
from lstmlm.model.cell import GATES
from lstmlm.model.char_lm import CharLM, StackState, load_weights, nats
from tests.helpers import assert_close, normal, small_model, some_ids, state

T, B, V = 5, 3, 11


def by_hand(model: CharLM, ids: Tensor, before: StackState) -> tuple[Tensor, StackState]:
    """Compute the logits from the weights by name, with the reference layer and one-hot vectors."""
    weights = dict(model.named_parameters())
    config = model.config
    assert config.layers is not None
    x, last = functional.one_hot(ids, V).double(), []
    for index in range(config.layers):
        own = {name: weights.get(f"layers.{index}.{name}") for name in "UWbM"}
        assert own["U"] is not None
        assert own["W"] is not None
        scale = None if own["M"] is None else 1 + own["M"][ids]
        y, after = cell.layer(x, own["U"], own["W"], own["b"], before[index], scale)
        last.append(after)
        if config.readout == "direct" and index == config.layers - 1:
            return y, tuple(last)
        if config.layer_norm:
            spread = (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            y = (y - y.mean(-1, keepdim=True)) / spread
            y = y * weights[f"norms.{index}.weight"] + weights[f"norms.{index}.bias"]
        x = x + y if config.residual and index else y
    return x @ weights["readout.weight"].t() + weights["readout.bias"], tuple(last)


def states(model: CharLM) -> StackState:
    """Draw a state for each layer, of its own width."""
    return tuple(state(B, layer.width) for layer in model.stack())


@pytest.mark.parametrize("readout", ["linear", "direct"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("options", [{}, {"layer_norm": False}, {"residual": False}, {"bias": False}, {"multiplicative": False}])
def test_logits_follow_the_equations(readout: str, layers: int, options: dict[str, Any]) -> None:
    """With each option on and off, logits and last states are those of the equations, and so is every gradient."""
    model = small_model(readout=readout, layers=layers, **options)
    ids, pull, before = torch.randint(V, (T, B)), normal(T, B, V), states(model)

    logits, last = model(ids, before)
    expected, expected_last = by_hand(model, ids, before)

    assert_close(logits, expected, "logits")
    for one, other in zip(last, expected_last, strict=True):
        assert_close(one.hidden, other.hidden, "last H")
        assert_close(one.cell, other.cell, "last C")
    names = [name for name, _ in model.named_parameters()]
    wanted = torch.autograd.grad((expected * pull).sum(), list(model.parameters()))
    for name, got, grad in zip(names, torch.autograd.grad((logits * pull).sum(), list(model.parameters())), wanted, strict=True):
        assert_close(got, grad, f"gradient of {name}", 1e-9)


def test_dropout_works_where_it_is_asked_for() -> None:
    """With a step's dropout a unit is either silent or scaled so that the mean stays; without one nothing is left to chance."""
    model = small_model(layers=1, hidden=500, dropout=0.3)
    ids = torch.randint(V, (1, B))
    seen: list[Tensor] = []
    assert model.readout is not None
    model.readout.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))

    model(ids, drop=Dropout(0.3, seed=0, step=0, streams=B))
    model(ids)
    model(ids)

    dropped, whole, again = seen
    ratio = dropped / whole
    silent = ratio == 0
    assert torch.equal(whole, again)
    assert float(silent.double().mean()) == pytest.approx(0.3, abs=0.06)
    assert_close(ratio[~silent], torch.full_like(ratio[~silent], 1 / 0.7), "scale of the units that are left")


@pytest.mark.parametrize("readout", ["linear", "direct"])
def test_one_piece_equals_three_pieces(readout: str) -> None:
    """A text read in pieces with the state passed on gives what it gives at once; without a state it starts empty."""
    model = small_model(readout=readout)
    ids = torch.randint(V, (11, B))

    whole, last = model(ids)
    after, pieces = model.initial_state(B), []
    for piece in ids.split([2, 6, 3]):
        logits, after = model(piece, after)
        pieces.append(logits)

    assert_close(torch.cat(pieces), whole, "logits", 1e-13)
    for one, other in zip(after, last, strict=True):
        assert_close(one.cell, other.cell, "last C", 1e-13)


def test_streams_do_not_mix() -> None:
    """What one stream of a batch reads changes nothing in another."""
    model = small_model()
    ids = torch.randint(V, (T, B))
    changed = ids.clone()
    changed[:, 1] = (ids[:, 1] + 1) % V

    before, after = model(ids)[0], model(changed)[0]

    assert_close(after[:, [0, 2]], before[:, [0, 2]], "logits of the other streams", 1e-13)
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_no_state_hides_in_the_module() -> None:
    """Reading twice gives the same twice, and the module owns nothing but its weights."""
    model = small_model()
    ids = torch.randint(V, (T, B))

    assert torch.equal(model(ids)[0], model(ids)[0])
    assert list(model.buffers()) == []
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_the_future_does_not_reach_back() -> None:
    """A character changes the predictions after it and none before it."""
    model = small_model()
    ids = torch.randint(V, (T, B))
    changed = ids.clone()
    changed[3] = (ids[3] + 1) % V

    before, after = model(ids)[0], model(changed)[0]

    assert torch.equal(after[:3], before[:3])
    assert not torch.equal(after[3], before[3])


def test_new_rows_of_pairs_change_nothing() -> None:
    """Each begins as a copy of the row of its second character: the network is the one that it was."""
    plain = small_model()
    model = small_model(pairs=40)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            model.get_parameter(name)[: len(weight)] = weight
    model.give_rows([(first, second) for first in range(V) for second in range(V)][:40])
    ids = torch.randint(V, (T, B))

    assert torch.equal(model(ids)[0], plain(ids)[0])


def test_a_pair_has_a_row_of_its_own() -> None:
    """Changed, it changes what is read at that pair and after it, and nothing else: neither the pair turned round nor either
    character beside others.
    """
    model, changed = small_model(pairs=1), small_model(pairs=1)
    changed.load_state_dict(model.state_dict())
    for one in (model, changed):
        one.pairs[:] = torch.tensor([2.0, 5.0])
    with torch.no_grad():
        changed.get_parameter("layers.0.U")[V] += 1
    ids = torch.tensor([5, 2, 2, 3, 5, 2, 6, 2, 5, 0])[:, None]
    before, after = model(ids)[0], changed(ids)[0]

    assert torch.equal(before[:8], after[:8])
    assert not torch.equal(before[8], after[8])


def test_other_than_so_many_pairs_are_refused() -> None:
    """A network has rows for as many pairs as its configuration says."""
    for pairs in ([], [(0, 1)], [(0, 1), (1, 0), (2, 0)]):
        with pytest.raises(ValueError, match=f"expected 2, found {len(pairs)}"):
            small_model(pairs=2).give_rows(pairs)


@pytest.mark.parametrize("forged", [[[5, 2], [2, 5]], [[2, 5], [2, 5]], [[2, 5], [11, 0]], [[-1, 5], [2, 5]], [[0.5, 0], [2, 5]]])
def test_forged_pairs_are_refused(forged: list[list[float]]) -> None:
    """Weights from a file are taken only with pairs of ids, each once, in ascending order."""
    model = small_model(pairs=2)
    weights = {**model.state_dict(), "pairs": torch.tensor(forged)}

    with pytest.raises(CheckpointError, match="expected pairs of ids below 11"):
        load_weights(model, weights)


@pytest.mark.parametrize("steps", [1, 3])
def test_pairs_over_the_edge_of_a_call(steps: int) -> None:
    """A text that is read in pieces is the same text: the state says which character was the last."""
    model = small_model(pairs=40)
    ids = torch.randint(V, (12, B))
    whole, last = model(ids)
    found, carried = [], None
    for piece in ids.split(steps):
        logits, carried = model(piece, carried)
        found.append(logits)

    assert carried is not None
    assert_close(torch.cat(found), whole, "logits")
    assert torch.equal(carried[-1].hidden, last[-1].hidden)


@pytest.mark.parametrize("readout", ["linear", "direct"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_counted(readout: str, layers: int, norm: bool, bias: bool) -> None:
    """The count is the formula's: 4S(E + S + 1) a layer, VS the factors of the first, 2S a norm, V(S + 1) the readout."""
    S = 7
    model = small_model(readout=readout, layers=layers, layer_norm=norm, bias=bias)
    widths = [S] * layers if readout == "linear" else [S] * (layers - 1) + [V]
    expected = 0
    for inputs, width in zip([V, *widths], widths, strict=False):
        expected += 4 * width * (inputs + width + int(bias))
    expected += V * widths[0]
    expected += 2 * S * (layers if readout == "linear" else layers - 1) * int(norm)
    expected += V * (S + 1) if readout == "linear" else 0

    assert model.parameter_count() == expected


def test_direct_readout_is_the_hidden_state_itself() -> None:
    """The article's Output = Softmax(H_t): the logits are the last layer's H_t, which is as wide as the vocabulary."""
    model = small_model(readout="direct")

    logits, last = model(torch.randint(V, (T, B)))

    assert torch.equal(logits[-1], last[-1].hidden)
    assert float(logits.detach().abs().max()) < 1
    assert not [name for name, _ in model.named_parameters() if "readout" in name or "norms.1" in name]


def bound(vocabulary: int) -> float:
    """Return the least loss that scores in (-1, 1) allow: 1 for the right symbol and -1 for all others."""
    return math.log(math.e + (vocabulary - 1) / math.e) - 1


def test_direct_readout_keeps_above_its_bound() -> None:
    """No prediction of the direct readout costs less than ln(e + (V-1)/e) - 1 nats, however large its weights."""
    for _ in range(20):
        model = small_model(readout="direct")
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(5.0)
        logits, _ = model(torch.randint(V, (T, B)))

        assert float(nats(logits, logits.argmax(-1)).detach().min()) >= bound(V)


def test_the_bound_of_the_direct_readout_is_tight() -> None:
    """With gates wide open and the right symbol's N_t at 1, the others' at -1, the loss comes to the bound itself."""
    model = small_model(readout="direct", layers=1)
    layer = model.stack()[0]
    assert layer.b is not None
    with torch.no_grad():
        layer.U.zero_()
        layer.W.zero_()
        b = dict(zip(GATES, layer.b.split(V), strict=True))
        for gate in ("forget", "input", "output", "new"):
            b[gate].fill_(50.0)
        b["new"].neg_()
        b["new"][2] = 50.0

    logits, _ = model(torch.zeros(40, 1, dtype=torch.int64))

    loss = float(nats(logits, torch.full((40, 1), 2))[-1, 0].detach())
    assert loss == pytest.approx(bound(V), abs=1e-12)
    assert bound(65) == pytest.approx(2.27, abs=0.005)


def test_nats_are_minus_log_softmax() -> None:
    """Each target costs minus the log of its share, also for scores of thousands, and for targets in any layout."""
    logits, targets = normal(T, B, V, scale=1000.0), torch.randint(V, (B, T)).t()

    actual = nats(logits, targets)

    expected = torch.logsumexp(logits, -1) - logits.gather(-1, targets[..., None])[..., 0]
    assert_close(actual, expected, "nats", 1e-9)


@pytest.mark.parametrize("open_key", ["hidden", "layers", "dropout"])
def test_open_sizes_are_refused(open_key: str) -> None:
    """A model is not built while one of its sizes is still to be chosen."""
    sizes: dict[str, Any] = {"hidden": 7, "layers": 2, "dropout": 0.0, open_key: None}
    config = ModelConfig(**sizes)

    with pytest.raises(ConfigError, match="found auto"):
        CharLM(config, V, EagerKernel())


@pytest.mark.slow
def test_it_learns_thirty_characters_by_heart() -> None:
    """The smoke test of everything: a few hundred plain gradient steps and a sentence is known almost surely."""
    text = "the cat sat on the mat, purred"
    symbols = sorted(set(text))
    ids = torch.tensor([symbols.index(c) for c in text])[:, None]
    model = CharLM(ModelConfig(hidden=32, layers=2, dropout=0.0), len(symbols), EagerKernel())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    for _ in range(150):
        optimizer.zero_grad()
        loss = nats(model(ids[:-1])[0], ids[1:]).mean()
        loss.backward()
        optimizer.step()

    assert float(loss.detach()) < 0.05


SYMBOLS = CharTokenizer("\nabcdefghij")
WORDS = list("abcdefghij")
READERS: dict[str, Callable[[CharLM], object]] = {
    "warm": lambda m: warm(m, some_ids(3000).tolist(), batch=4),
    "left to right": lambda m: warm(m, some_ids(300).tolist(), batch=1),
    "cold": lambda m: cold(m, some_ids(400).tolist(), window=70, batch=3),
    "an estimate": lambda m: estimate([m], some_ids(5000).tolist(), [1] * V, 4096),
    "lines": lambda m: LineScorer(m, SYMBOLS, [1] * V).score(["abcdefghij" * 9 + "\n", "abc\n"]),
    "blanks": lambda m: list(Filler(m, SYMBOLS.encode, [1] * V, [0]).rank([Question("ab____cd____" + "j" * 90, tuple(WORDS))])),
    "a prompt": lambda m: list(islice(generate(m, some_ids(300).tolist(), [1], Sampling()), 2)),
    "every gate": lambda m: list(windows(m, some_ids(300))),
    "memory taken away": lambda m: ablate_memory(m, some_ids(600), mark=1, length=50),
    "names swapped": lambda m: swap(m, [([1], [2], some_ids(90).tolist())], 90),
}


@pytest.mark.parametrize("reader", READERS)
def test_scores_of_next_characters_are_bounded(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a text, however large the vocabulary, whoever reads makes so many scores at once, or a step of 64 rows."""
    monkeypatch.setattr(char_lm, "PIECE_SCORES", 20 * V)
    model, made = small_model(), []
    model.register_forward_hook(lambda _, __, output: made.append(output[0].shape[:2]))
    READERS[reader](model)

    assert made
    assert max((T * B for T, B in made if T > 1), default=0) <= 20
    assert max((B for T, B in made if T == 1), default=0) <= 64
