import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmlm.data import batches
from lstmlm.data.batches import Streams
from lstmlm.data.ids import Ids
from lstmlm.data.names import Renaming
from tests.helpers import ids_of


def counting(chars: int, batch: int, window: int) -> Streams:
    """Make streams over ids that are their own positions."""
    return Streams(ids_of(range(chars)), batch, window)


sizes = st.tuples(st.integers(2, 300), st.integers(1, 9), st.integers(1, 40))


@pytest.fixture(params=[False, True], ids=["in the text's order", "in sections"], autouse=True)
def _sections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read texts of this size as short ones and as long ones."""
    if request.param:
        monkeypatch.setattr(batches, "SECTION_CHARS", 12)
        monkeypatch.setattr(batches, "FEWEST_CHARS", 1)
        monkeypatch.setattr(batches, "SECTIONS", 2)


@settings(deadline=None)  # on a busy machine a step may take long
@given(sizes=sizes)
def test_each_character_is_a_target_once_in_a_pass(sizes: tuple[int, int, int]) -> None:
    """A pass predicts no character twice, and leaves out exactly the few that the formula states."""
    chars, streams = sizes[0], counting(*sizes)
    B, T = streams.batch_size, streams.window
    for p in range(4):
        steps = range(p * streams.steps_per_epoch, (p + 1) * streams.steps_per_epoch)
        seen = Counter(i for step in steps for i in streams.batch(step)[1].flatten().tolist())
        left_out = 1 + B * (streams.length % T) + (chars - 1) % B

        assert max(seen.values()) == 1
        assert len(seen) == chars - left_out


@settings(deadline=None)  # on a busy machine a step may take long
@given(sizes=sizes)
def test_four_passes_see_everything(sizes: tuple[int, int, int]) -> None:
    """In any four passes that belong together every character but the first of the text is a target."""
    streams = counting(*sizes)
    for group in (0, 1):
        first = 4 * group * streams.steps_per_epoch
        steps = range(first, first + 4 * streams.steps_per_epoch)
        seen = {i for step in steps for i in streams.batch(step)[1].flatten().tolist()}

        assert seen == set(range(1, sizes[0]))


@settings(deadline=None)  # on a busy machine a step may take long
@given(sizes=sizes, step=st.integers(0, 10**15))
def test_targets_are_inputs_one_further_on(sizes: tuple[int, int, int], step: int) -> None:
    """At any step targets follow inputs by one, in the stated shape and type, and stay in the text."""
    streams = counting(*sizes)
    inputs, targets, _ = streams.batch(step)

    assert torch.equal(inputs + 1, targets)
    assert inputs.shape == (streams.window, streams.batch_size)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert int(inputs.min()) >= 0
    assert int(targets.max()) < sizes[0]


@settings(deadline=None)  # on a busy machine a step may take long
@given(sizes=sizes)
def test_state_is_fresh_only_where_a_pass_or_a_section_starts(sizes: tuple[int, int, int]) -> None:
    """Where the state is carried each stream goes on with the very next character."""
    streams = counting(*sizes)
    last = torch.empty(0)
    for step in range(3 * streams.steps_per_epoch):
        inputs, targets, fresh = streams.batch(step)

        assert fresh == (step % streams.steps_per_epoch % streams.section == 0)
        assert fresh or torch.equal(inputs[0], last)
        last = targets[-1]


def test_offsets_are_the_stated_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch worked out by hand: 23 characters, 2 streams of 11, windows of 3, 3 steps a pass."""
    monkeypatch.setattr(batches, "SECTIONS", 4)
    streams = counting(23, 2, 3)

    assert (streams.length, streams.steps_per_epoch) == (11, 3)
    assert streams.batch(1)[0].T.tolist() == [[3, 4, 5], [14, 15, 16]]
    assert streams.batch(3)[0].T.tolist() == [[2, 3, 4], [13, 14, 15]]
    assert streams.batch(1)[1].T.tolist() == [[4, 5, 6], [15, 16, 17]]


def test_a_part_of_the_streams_is_that_part_of_the_batch() -> None:
    """A process that owns some streams reads the same characters as one that owns all."""
    streams = counting(500, 7, 11)
    inputs, targets, fresh = streams.batch(5)
    part = streams.batch(5, first=2, count=3)

    assert torch.equal(part[0], inputs[:, 2:5])
    assert torch.equal(part[1], targets[:, 2:5])
    assert part[2] == fresh
    assert torch.equal(streams.batch(5, first=5)[0], inputs[:, 5:])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_every_width_of_id_reads_the_same(width: int) -> None:
    """Ids stored in 1, 2 and 4 bytes give the same batches."""
    values = [i * 7 % 256 for i in range(200)]
    stored = b"".join(value.to_bytes(width, "little") for value in values)
    inputs, _, _ = Streams(Ids(bytearray(stored), width, 0, 200), 3, 5).batch(4)

    assert torch.equal(inputs, Streams(ids_of(values), 3, 5).batch(4)[0])


def test_a_batch_is_a_copy() -> None:
    """Writing into a batch leaves the text as it was."""
    streams = counting(50, 2, 3)
    streams.batch(0)[0].zero_()

    assert streams.batch(0)[0][1, 0] == streams.starts(0)[0][0] + 1


def test_a_long_text_is_read_in_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass has an order of its own, the same whenever it is asked for; all of the text's parts are read at any time."""
    monkeypatch.undo()
    streams = counting(1_000_000, 16, 64)
    K = streams.steps_per_epoch
    passes = [[streams.starts(step)[0] for step in range(p * K, p * K + streams.section)] for p in range(3)]
    again = counting(1_000_000, 16, 64)
    tenth = [start for step in range(K // 2, K // 2 + K // 10) for start in streams.starts(step)[0]]

    assert streams.section == 4096 // 64
    assert passes[0] != passes[1] != passes[2]
    assert again.starts(2 * K + 5)[0] == passes[2][5]
    assert again.starts(5)[0] == passes[0][5]
    assert max(Counter(start // 100_000 for start in tenth).values()) < 0.3 * len(tenth)
    assert all(Counter(start // streams.length for start in starts) == Counter(range(16)) for starts in passes[1])
    assert len({start % streams.length for start in passes[0][0]}) > 8  # not the same place of each part


@pytest.mark.parametrize(
    ("batch", "window", "windows", "expected"),
    [(16, 64, 980, 64), (16, 64, 127, 127), (16, 64, 128, 16), (16, 64, 17, 17), (16, 5000, 20, 1), (4096, 64, 10**5, 6250)],
)
def test_sections_fit_the_text(monkeypatch: pytest.MonkeyPatch, batch: int, window: int, windows: int, expected: int) -> None:
    """A short text has none; a pass has at most some 65,000, whose order is drawn in a moment."""
    monkeypatch.undo()
    assert batches._section(batch, window, windows) == expected


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0, 1, 1), (9, 0, 1), (9, 1, 0)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    """A text of one character predicts nothing, and no stream or step is not a batch."""
    with pytest.raises(ValueError, match="cannot cut"):
        counting(*sizes)


class Marked(Renaming):
    """Marks a section by where it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], list[int]]] = []

    @property
    def names(self) -> frozenset[str]:
        """Any."""
        return frozenset({"any"})

    def replaced(self, section: torch.Tensor, place: tuple[int, ...]) -> torch.Tensor:
        """Add to each id what the place decides, and remember the call."""
        self.asked.append((place, section.tolist()))
        return section + mark(place)


def mark(place: tuple[int, ...]) -> int:
    """Return a number of a place."""
    return 1000 * (1 + hash(place) % 10**5)


@settings(deadline=None)  # on a busy machine a step may take long
@given(sizes=sizes, part=st.integers(1, 40))
def test_from_the_second_pass_on_sections_are_renamed_as_wholes(sizes: tuple[int, int, int], part: int) -> None:
    """The first pass is the text; after it each section, or part of one, is renamed once, as a whole, and read in its place."""
    marked = Marked()
    plain, renamed = counting(*sizes), Streams(ids_of(range(sizes[0])), *sizes[1:], marked)
    renamed._part = part
    K = plain.steps_per_epoch
    for step in range(3 * K):
        expected, found = plain.batch(step), renamed.batch(step)
        places = [place for place, _ in marked.asked[-plain.batch_size :]]
        more = torch.tensor([mark(place) for place in places] if step >= K else 0)

        assert torch.equal(found[0], expected[0] + more)
        assert torch.equal(found[1], expected[1] + more)
        assert found[2] == expected[2]

    assert len({place for place, _ in marked.asked}) == len(marked.asked)
    assert all(section == list(range(section[0], section[-1] + 1)) for _, section in marked.asked)
    assert max((len(section) for _, section in marked.asked), default=0) <= part * plain.window + 1


def test_renaming_can_begin_anywhere() -> None:
    """A run that goes on in the middle of a section, and a process that has some streams, read the same as one that reads all."""
    whole = Streams(ids_of(range(500)), 7, 11, Marked())
    for step in range(whole.steps_per_epoch, 3 * whole.steps_per_epoch):
        inputs, targets, _ = whole.batch(step)
        part = Streams(ids_of(range(500)), 7, 11, Marked()).batch(step, first=2, count=3)

        assert torch.equal(part[0], inputs[:, 2:5])
        assert torch.equal(part[1], targets[:, 2:5])


@pytest.mark.parametrize(("batch", "window", "windows"), [(16, 64, 128), (16, 20_000, 1), (1 << 16, 64, 4)])
def test_what_is_renamed_at_once_is_bounded(batch: int, window: int, windows: int) -> None:
    """A name is the same for 8,192 characters at most, and all streams together hold some 16 million, but for one window each."""
    assert Streams(ids_of(range(3 * batch * window)), batch, window, Marked())._part == windows


@pytest.mark.parametrize("width", [1, 2, 4])
def test_renamed_ids_of_every_width_are_read(width: int) -> None:
    """What is renamed is kept as it is stored, and read as int64."""
    stored = b"".join((i * 7 % 200).to_bytes(width, sys.byteorder) for i in range(200))

    class Same(Marked):
        def replaced(self, section: torch.Tensor, place: tuple[int, ...]) -> torch.Tensor:
            return section.clone()

    ids = Ids(bytearray(stored), width, 0, 200)
    step = Streams(ids, 3, 5).steps_per_epoch + 1
    found, expected = Streams(ids, 3, 5, Same()).batch(step), Streams(ids, 3, 5).batch(step)

    assert found[0].dtype == torch.int64
    assert torch.equal(found[0], expected[0])
