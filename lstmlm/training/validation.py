"""What a run is validated by: the score of a text kept apart, and a sample.

The trainer decides when, keeps the best model and writes; here the networks only read. It happens in rank 0 alone.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from torch import Tensor

from lstmlm.data.corpus import Corpus
from lstmlm.evaluation.sampler import Sampling, generate
from lstmlm.evaluation.scoring import StreamsApartError, estimate, frequencies, side_by_side, streams_of, which_char
from lstmlm.model.char_lm import load_weights
from lstmlm.training import budget
from lstmlm.training.members import Members

SAMPLE_LENGTH = 240  # characters
STRETCH, FEWEST, MOST = 100, 10, 100  # characters of a stretch at least, and how many stretches two models are compared by
SURE = 2.0  # standard errors


class Interrupted(Exception):  # no error: a signal came while a text was read
    """Validating was left before its end; nothing of it counts."""


def stretches(costs: Sequence[float]) -> list[float]:
    """Return the means of stretches of equal length, of some nats in the order of the text; none of a text that is too short."""
    count = min(MOST, len(costs) // STRETCH)
    if count < FEWEST:
        return []
    length = len(costs) // count
    return [math.fsum(costs[at : at + length]) / length for at in range(0, count * length, length)]


def surely_less(now: Sequence[float], before: Sequence[float]) -> bool:
    """Say whether a text takes less now: the mean difference of its stretches, if they are enough, is above `SURE` errors."""
    if len(now) < FEWEST or len(now) != len(before):
        return False
    less = [was - one for was, one in zip(before, now, strict=True)]
    return statistics.fmean(less) > SURE * statistics.stdev(less) / math.sqrt(len(less))


class Validation:
    """The validation text of a run, and how its networks read it: in strict float32, as `lstmlm eval` does.

    Args:
        corpus: Whose validation part is scored: all of it, or of a long one the beginning.
        members: That read.
        stop: Asked on the way; what it returns is a signal for which validating is left.
    """

    def __init__(self, corpus: Corpus, members: Members, stop: Callable[[], int | None]) -> None:
        self._corpus, self._members, self._stop = corpus, members, stop
        self._ids: list[int] = corpus.val.tensor(0, min(len(corpus.val), budget.MOST_CHARS)).tolist()
        rare = 0 if corpus.tokenizer.rare is None else self._ids.count(corpus.tokenizer.rare)
        self._which = which_char(rare) / max(1, len(self._ids))  # nats per character

    def __len__(self) -> int:
        """Return the number of ids that are scored; 0 where there is no validation part."""
        return len(self._ids)

    @property
    def whole(self) -> bool:
        """Whether all of the validation part is scored: else no score here is that of `lstmlm eval`."""
        return len(self._ids) == len(self._corpus.val)

    def estimates(self, look_chars: int) -> bool:
        """Say whether `score` estimates: a short text is always scored exactly, and of a long one the beginning alone."""
        return not self.whole or streams_of(len(self._ids), look_chars) > 1

    def score(self, look_chars: int) -> tuple[float, tuple[float, ...], list[float]]:
        """Return the nats per character of all networks as one, of each alone, and of stretches, by so many of the characters.

        Raises:
            Interrupted: A signal came.
        """
        costs: list[float] = []
        with self._members.strict() as models:
            value, alone = estimate(models, self._ids, self._corpus.counts, look_chars, self._leave, costs)
        return self._with_unknown(value), tuple(map(self._with_unknown, alone)), stretches(costs)

    def score_exactly(self, weights: dict[str, Tensor]) -> float:
        """Return the exact score of other weights; infinity where its streams would not meet soon enough.

        Raises:
            Interrupted: A signal came.
        """
        network = self._members.network
        with self._members.strict() as models:
            own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            load_weights(network, weights)
            try:
                found = side_by_side(models, self._ids, self._corpus.counts, one_pass=False, ask=self._leave)
                return self._with_unknown(found[0])
            except StreamsApartError:
                return math.inf
            finally:
                load_weights(network, own)

    @property
    def counting_nats(self) -> float:
        """The nats per character that the text takes by the counts of single characters alone; infinity where there is none."""
        if not self._ids:
            return math.inf
        charge = frequencies(self._corpus.counts)
        return self._with_unknown(math.fsum(charge[id_] for id_ in self._ids) / len(self._ids))

    def sample(self, seed: int) -> str:
        """Return a text that the networks write after the first character of the training text."""
        prompt = self._corpus.train.tensor(0, 1).tolist()
        with self._members.averaged():
            stream = generate(self._members.network, prompt, [seed], Sampling(temperature=0.8))
            return self._corpus.tokenizer.decode([next(stream)[0][0] for _ in range(SAMPLE_LENGTH)])

    def _with_unknown(self, nats: float) -> float:
        """Return a score of what was read with the characters that have no symbol of their own, charged as `lstmlm eval` does."""
        known, unknown = len(self._corpus.val), self._corpus.val_unknown
        return ((nats + self._which) * known + which_char(unknown)) / (known + unknown)

    def _leave(self) -> None:
        """Leave where a signal has come."""
        if self._stop() is not None:
            raise Interrupted
