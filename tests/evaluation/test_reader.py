"""The reader in C: the numbers of the reader in torch, to the last bit the same alone and in company."""

import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm.api import LanguageModel
from lstmlm.evaluation import scoring
from lstmlm.evaluation.per_line import LineScorer
from lstmlm.evaluation.reader import NativeReader, reading
from lstmlm.evaluation.reading import Read
from lstmlm.evaluation.torch_reader import TorchReader
from lstmlm.kernels import generate, native
from lstmlm.model import char_lm, devices
from lstmlm.model.weights import StoredNetwork
from tests.cli.trained import make_run
from tests.helpers import small_model, some_ids

MODELS: list[dict[str, Any]] = [
    {"hidden": 33},
    {"layers": 1, "hidden": 40, "layer_norm": False, "residual": False, "bias": False},
    {"layers": 2, "readout": "direct", "layer_norm": False, "hidden": 19},
    {"members": 3, "hidden": 20},
    {"byte": True, "hidden": 21},
]
LENGTHS = (5, 70, 1, 0, 130, 2, 3, 300, 70)

Open = Callable[..., LanguageModel]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return what opens an untrained model of some shape, from its bytes."""
    try:
        native.load("float32")
    except native.Unavailable as reason:
        pytest.skip(str(reason))
    if generate.examined_library() is None:
        pytest.skip("there is no cache that can be written")
    monkeypatch.setattr(devices, "GPU_FILES", ())

    def open_(threads: int = 1, **shape: Any) -> LanguageModel:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        model = LanguageModel.open(make_run(folder, **shape), device="cpu", threads=threads)
        assert isinstance(model.readable, StoredNetwork)
        return model

    return open_


def rows_of(model: LanguageModel, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Draw a row of ids of each length."""
    return [some_ids(length, len(model.tokenizer)).tolist() for length in lengths]


@pytest.mark.parametrize("shape", MODELS, ids=str)
def test_it_reads_what_torch_reads(opened: Open, shape: dict[str, Any]) -> None:
    """Every kind of model gives each character the nats that it has in torch, to 1e-5, and the mean to 1e-6; states likewise."""
    model = opened(**shape)
    rows = rows_of(model)
    with reading(model.readable) as reader:
        first = reader.read(rows, reader.empty(len(rows)))
        second = reader.read(rows, first.state)  # from where the first one has come to
    torch_reader = TorchReader(model.network)
    expected = torch_reader.read(rows, torch_reader.empty(len(rows)))
    again = torch_reader.read(rows, expected.state)

    for found, wanted in ((first, expected), (second, again)):
        one, other = ([cost for row in each.nats for cost in row] for each in (found, wanted))
        assert list(map(len, found.nats)) == list(map(len, wanted.nats)) == [max(0, length - 1) for length in LENGTHS]
        assert one == pytest.approx(other, abs=1e-5)
        assert sum(one) / len(one) == pytest.approx(sum(other) / len(other), abs=1e-6)
        assert list(map(list, found.correct)) == [list(map(int, row)) for row in wanted.correct]


@pytest.mark.parametrize("shape", [{"hidden": 33}, {"members": 3, "hidden": 20}], ids=str)
@pytest.mark.parametrize("threads", [2, 3])
def test_company_and_threads_do_not_matter(opened: Open, shape: dict[str, Any], threads: int) -> None:
    """A row costs the same to the last bit alone, among 70, by any number of threads, and when the network is in torch."""
    model = opened(threads, **shape)
    rows = rows_of(model, (LENGTHS * 8)[:70])
    with reading(model.readable) as reader:
        together = reader.read(rows, reader.empty(len(rows)))
    torch.manual_seed(0)
    with reading(model.readable) as reader:
        alone = [reader.read([row], reader.empty(1)) for row in rows]
    network = model.network
    with reading(network) as reader:
        assert isinstance(reader, NativeReader)
        there = reader.read(rows, reader.empty(len(rows)))

    assert together.nats == [one.nats[0] for one in alone] == there.nats
    assert together.correct == [one.correct[0] for one in alone]
    assert together.state == b"".join(one.state for one in alone) == there.state


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_text_has_one_score(opened: Open, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm and cold, the mean is that of torch to 1e-6 nats, whatever the batch; a text read after another goes on from it."""
    model = opened(hidden=24, forget_bias=0.0)
    ids = some_ids(2000, len(model.tokenizer)).tolist()

    def scores(network: Any) -> list[float]:
        found = [scoring.warm(network, ids, None, batch, 8), scoring.cold(network, ids, 100, batch)]
        before = scoring.warm(network, ids[:301], None, batch, 8)
        rest = scoring.warm(network, ids[300:], before.state, batch, 8)
        assert len(before.nats) + len(rest.nats) == len(found[0].nats) == len(ids) - 1
        return [sum(one.nats) / len(one.nats) for one in (*found, before, rest)]

    here = scores(model.readable)
    with monkeypatch.context() as patch:
        patch.setattr("lstmlm.evaluation.reader.native_generator", lambda *given: None)
        there = scores(model.network)

    assert here == pytest.approx(there, abs=1e-6)
    assert here[0] * (len(ids) - 1) == pytest.approx(here[2] * 300 + here[3] * (len(ids) - 301), rel=1e-6)


def test_a_long_memory_is_no_reason_to_read_a_text_again(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of 100,000 characters is read less than twice by a model that forgets where it began after some thousands."""
    model = opened(hidden=8, layers=1, forget_bias=6.0)
    ids = some_ids(100_000, len(model.tokenizer)).tolist()
    network = model.network
    with torch.no_grad():
        for layer in network.stack():  # of what comes in and of its state next to nothing reaches the forget gates
            layer.U.mul_(0.2)
            layer.W.mul_(0.01)
    read: list[int] = []
    own = NativeReader.read

    def counted(self: NativeReader, rows: Sequence[Sequence[int]], state: bytes) -> Read:
        read.extend(len(row) - 1 for row in rows)
        return own(self, rows, state)

    monkeypatch.setattr(NativeReader, "read", counted)
    found = scoring.warm(network, ids, one_pass=False)

    assert 1.1 * len(ids) < sum(read) < 1.8 * len(ids)
    assert found.nats[-100:] == pytest.approx(scoring.warm(network, ids, batch=1).nats[-100:], abs=1e-5)


def test_states_are_compared_by_their_own_roundings(opened: Open) -> None:
    """Numbers differ by so many roundings of 1 or of their own size, whichever number of a state it is."""
    model = opened(hidden=7)
    with reading(model.readable) as reader:
        width = len(reader.empty(1)) // 4
        for place in (0, 1, width - 1):
            values = torch.linspace(-300, 300, 3 * width).view(3, width)
            other = values.clone()
            other[1, place] += 64 * 2**-23 * (1 + abs(float(values[1, place])))
            one, two = (array("f", v.flatten().tolist()).tobytes() for v in (values, other))
            assert reader.roundings(two, one) == [0.0, pytest.approx(64, rel=0.5), 0.0]


def test_states_are_picked_put_and_joined(opened: Open) -> None:
    """Both readers take rows out of a state, put some in and join two alike."""
    model = opened(hidden=5)
    rows = rows_of(model, (4, 9, 2))
    costs = []
    with reading(model.readable) as native_reader:
        for reader in (native_reader, TorchReader(model.network)):
            state = reader.read(rows, reader.empty(3)).state
            changed = reader.put(reader.joined(state, reader.pick(state, [2, 0])), [1, 3], reader.pick(state, [0, 1]))
            costs.append([list(row) for row in reader.read([[1, 2]] * 5, changed).nats])

    assert torch.tensor(costs[0]).allclose(torch.tensor(costs[1]), atol=1e-5)
    assert costs[0][0] == costs[0][1] == costs[0][4]
    assert costs[0][0] != costs[0][3]


def test_who_is_asked_can_end_it(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each piece of a text somebody is asked, and what that raises ends the reading, in C and in torch."""
    model = opened(hidden=5)
    monkeypatch.setattr("lstmlm.evaluation.reader.PIECE", 16)
    monkeypatch.setattr(char_lm, "PIECE", 16)
    ids = some_ids(200, len(model.tokenizer)).tolist()
    for network in (model.readable, model.network):
        asked: list[int] = []

        def ask(asked: list[int] = asked) -> None:
            asked.append(1)
            if len(asked) == 5:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            scoring.warm(network, ids, ask=ask)
        assert scoring.warm(network, ids).nats


def test_what_is_no_number_is_seen(opened: Open) -> None:
    """A logit that is not a number gives no cost that is one, whichever character it belongs to."""
    model = opened(hidden=5)
    network = model.network
    with torch.no_grad():
        assert isinstance(network, char_lm.CharLM)
        assert network.readout is not None
        network.readout.bias[3] = torch.nan
    with reading(network) as reader:
        assert isinstance(reader, NativeReader)
        [nats], _, _ = reader.read([[1, 2, 4]], reader.empty(1))

    assert all(cost != cost for cost in nats)


def test_another_kernel_reads_with_torch() -> None:
    """A network of another floating type, or with another kernel, is read by torch."""
    for dtype in (torch.float32, torch.float64):
        with reading(small_model(dtype=dtype)) as reader:
            assert isinstance(reader, TorchReader)


def test_rare_characters_cost_the_same_in_c_and_torch(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rare or unknown character takes the nats of the symbol for such and 20.09 bits, by every reader, whole or by line."""
    model, text = opened(rare=True, hidden=21), "Bob is 山.\nDan\ufffdis not.\n"
    score, rare = model.score(text), model.tokenizer.rare
    network = [math.log2(1_114_112) if id_ == rare else 0.0 for id_ in model.tokenizer.encode(text)]
    lines = LineScorer(model.readable, model.tokenizer, model.counts, carried=True).score(text.splitlines(keepends=True))
    monkeypatch.setenv("LSTMLM_KERNEL", "eager")
    torch_ = LanguageModel.open(model.path, device="cpu")
    in_torch = torch_.score(text)

    assert (score.unknown, score.rare, score.chars) == (2, 2, len(text))
    assert all(cost >= charge for cost, charge in zip(score.costs, network, strict=True))
    assert math.fsum(score.costs) == pytest.approx(score.nats / math.log(2))
    assert [cost for line in lines for cost in line.costs] == pytest.approx(score.costs, abs=1e-4)
    assert [line.unknown for line in lines] == [1, 1]
    assert not isinstance(torch_.readable, StoredNetwork)
    assert in_torch.costs == pytest.approx(score.costs, abs=1e-4)
    assert in_torch.unknown == 2
    assert in_torch.known_bits_per_char == pytest.approx(score.known_bits_per_char, abs=1e-4)
