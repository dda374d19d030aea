"""Context mixing: probabilities that sum to 1, of what was read before, the same in C and in Python."""

import math

import pytest
import torch

from lstmlm.kernels import build
from lstmlm.kernels.contexts import ContextMixer, Mixer, NativeMixer, open_mixer, tree
from tests.helpers import some_ids

V = 11
COUNTS = [7, 0, 3, 1, 9, 2, 5, 11, 0, 6, 8]
LETTERS = [True] * 8 + [False] * 3
MIXERS = ["python", "native"]


def mixer(which: str) -> Mixer:
    """Return a new one."""
    if which == "python":
        return ContextMixer(COUNTS, LETTERS)
    try:
        return NativeMixer(build.library(), COUNTS, LETTERS)
    except build.Unavailable as error:
        pytest.skip(str(error))


def test_every_symbol_has_a_place() -> None:
    """The tree has each symbol once, each node but the first once, and children come after their parents."""
    for counts in ([3, 4], COUNTS, [0] * 300, [1 << 40, *range(100)]):
        children = [child for pair in tree(counts) for child in pair]
        assert sorted(~child for child in children if child < 0) == list(range(len(counts)))
        assert sorted(child for child in children if child >= 0) == list(range(1, len(counts) - 1))
        assert all(child > node for node, pair in enumerate(tree(counts)) for child in pair if child >= 0)


@pytest.mark.parametrize("primed", [0, 200])
def test_probabilities_sum_to_1(primed: int) -> None:
    """Whatever was read, the probabilities of all symbols sum to 1, and the symbol that comes takes what it was given."""
    ids, logits = some_ids(300), 3 * torch.randn(300, V)
    one = ContextMixer(COUNTS, LETTERS)
    one.learn(ids[:primed])
    one.read(ids[primed : primed + 1], logits[:1])
    for t in range(primed + 1, primed + 30):
        given = one.probabilities(logits[t])
        assert sum(given) == pytest.approx(1.0, abs=1e-9)
        [nats] = one.read(ids[t : t + 1], logits[t : t + 1])
        assert nats == pytest.approx(-math.log(given[int(ids[t])]), abs=1e-5)


@pytest.mark.parametrize("primed", [0, 8000])
def test_native_equals_python(primed: int) -> None:
    """Both give the same nats, with a text read before and without one: no context of many is taken for another."""
    ids, logits = some_ids(primed + 800), 3 * torch.randn(800, V)
    found = []
    for which in MIXERS:
        one = mixer(which)
        one.learn(ids[:primed])
        one.follow(4)
        found.append(torch.tensor(one.read(ids[primed:], logits)))

    assert (found[0] - found[1]).abs().max() < 1e-5


@pytest.mark.parametrize("which", MIXERS)
def test_only_what_came_before(which: str) -> None:
    """What comes later in a text changes no score before it, and pieces of any size give the same."""
    ids, logits = some_ids(120), torch.randn(120, V)
    changed = ids.clone()
    changed[70:] = (changed[70:] + 1) % V
    one, other, pieces = (mixer(which) for _ in range(3))
    whole = one.read(ids, logits)

    assert other.read(changed, logits)[:70] == whole[:70]
    assert pieces.read(ids[:31], logits[:31]) + pieces.read(ids[31:], logits[31:]) == whole


@pytest.mark.parametrize("which", MIXERS)
def test_what_a_network_rules_out(which: str) -> None:
    """Branches that a network gives no probability at all are left to the counts: what comes costs a finite number of nats."""
    logits = torch.zeros(20, V)
    logits[:, 3:] = -2000.0

    assert all(0 < nats < 20 for nats in mixer(which).read(some_ids(20), logits))


@pytest.mark.parametrize("which", MIXERS)
def test_it_learns(which: str) -> None:
    """A text that repeats itself soon takes less than by a network that knows nothing, and less where it was read before."""
    ids = torch.tensor([1, 7, 7, 2, 9] * 60)
    new, old = mixer(which), mixer(which)
    old.learn(ids)
    alone, after = (sum(one.read(ids, torch.zeros(len(ids), V))) / len(ids) for one in (new, old))

    assert after < 0.5 * alone < 0.5 * math.log(V)


def test_what_is_no_symbol_is_refused() -> None:
    """C follows ids into tables: one that is none, or logits of another shape, are refused."""
    one = mixer("native")
    for ids, logits in (([11], (1, V)), ([-1], (1, V)), ([3], (1, V - 1)), ([3], (2, V))):
        with pytest.raises(ValueError, match="expected"):
            one.read(torch.tensor(ids), torch.zeros(*logits))
    with pytest.raises(ValueError, match="letters: expected one for each"):
        NativeMixer(build.library(), COUNTS, LETTERS[:-1])


def test_the_slow_mixer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where C cannot run the slow mixer is there, with a line that says why."""

    def missing() -> None:
        raise build.Unavailable("it is Sunday")

    monkeypatch.setattr(build, "library", missing)
    slow, note = open_mixer(COUNTS, LETTERS)

    assert isinstance(slow, ContextMixer)
    assert "native is not available (it is Sunday)" in note
