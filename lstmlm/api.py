"""The Python interface: `LanguageModel`, which `lstmlm.load(path)` returns, scores and samples.

It joins checkpoint, tokenizer, network, scoring and sampler. The commands `sample`, `eval`, `fill` and `inspect` open their
model here; `parts` and `check` validate what a checkpoint says, for `train` too.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstmlm import kernels, machine
from lstmlm.config.run_config import RunConfig
from lstmlm.data import saved_model
from lstmlm.data.saved_model import parts
from lstmlm.data.tokenizer import OnUnknown, Tokenizer, describe, readable
from lstmlm.errors import CheckpointError, TextError, UsageError, not_finite, printable
from lstmlm.evaluation.sampler import Sampling, generate, probabilities
from lstmlm.kernels import generate as native_generate
from lstmlm.kernels.buffers import floats_of_bytes
from lstmlm.model import devices, weights
from lstmlm.model.weights import StoredNetwork
from lstmlm.storage import checkpoint, run_dir
from lstmlm.storage.header import Header

if TYPE_CHECKING:
    from lstmlm.evaluation.scoring import Score
    from lstmlm.model.char_lm import CharLM
    from lstmlm.model.ensemble import Network


@dataclass(frozen=True)
class Sample:
    """A text that the network wrote after a prompt.

    text: Without the prompt, and without the stop text.
    seed: Draws the same text again.
    nats: Minus the log probability of its characters under the network, at temperature 1 and uncut.
    stop: Why it ended: length, lines or stop.
    """

    text: str
    seed: int
    nats: float
    stop: str


class LanguageModel:
    """A trained network with its vocabulary.

    Args:
        path: The file it came from.
        meta: What the checkpoint says of itself.
        symbols: Its tokenizer.
        config: Its configuration.
        network: In evaluation mode; or its weights, from which it can be sampled.
        build: Makes the network in torch, where only its weights are given.

    Attributes:
        text_place: Where its training text is now, or the folder that it lies in; None: where it was.
    """

    text_place: str | None = None

    def __init__(
        self,
        path: Path,
        meta: dict[str, Any],
        symbols: Tokenizer,
        config: RunConfig,
        network: "Network | StoredNetwork",
        build: "Callable[[], Network] | None" = None,
    ) -> None:
        self.path = path
        self.meta = meta
        self.tokenizer = symbols
        self.config = config
        self._network = network
        self._build = build
        self.counts: list[int] = meta["counts"]

    @classmethod
    def open(
        cls,
        path: str | Path | None = None,
        *,
        threads: int = 0,
        device: str = "auto",
        report: Callable[[str], None] | None = None,
    ) -> "LanguageModel":
        """Open a run folder, a checkpoint file, or the newest run below `runs/`.

        Args:
            path: None is the newest run.
            threads: 0 is all cores for sampling, and what torch has otherwise; a number is set for torch in the whole process.
            device: auto (a CUDA device where it works), cpu or cuda.
            report: Called with a sentence where a damaged checkpoint is replaced by the run's other one.

        Raises:
            CheckpointError: It is missing, damaged or of another version.
            UsageError: There is no such device.
        """
        requested = "cpu" if device == "auto" and kernels.requested_kernel() == "native" else device
        instant = devices.is_cpu(requested) and kernels.requested_kernel() in ("auto", "native")
        library = native_generate.examined_library() if instant else None
        if library is None and requested != "auto":
            devices.choose(requested)  # what cannot be is said before a file is read
        found, saved = run_dir.load(path, report=report, check=check)
        ignored: list[str] = []
        config, symbols = parts(saved.meta, ignored)
        if report and ignored:
            report(f"checkpoint {printable(str(found))}: {saved_model.note(saved.meta, ignored)}")
        blobs = {k.removeprefix("model."): v for k, v in saved.tensors.items() if k.startswith("model.")}

        def build() -> "Network":
            import torch

            from lstmlm.model import ensemble
            from lstmlm.model.char_lm import load_weights

            if threads:
                torch.set_num_threads(threads)
            where, kernel, _ = devices.with_kernel(requested if library is None else "cpu", precision="float32")
            network = ensemble.build(config.model, len(symbols), kernel).to(where)
            load_weights(network, checkpoint.to_tensors(blobs))
            return network

        if library is None or any(blob.dtype != "float32" for blob in blobs.values()):
            return cls(found, saved.meta, symbols, config, build())
        named = {name: floats_of_bytes(blob.data, blob.shape) for name, blob in blobs.items()}
        network = weights.stored(library, config.model, named, min(threads or machine.cpus(), len(machine.processors())))
        return cls(found, saved.meta, symbols, config, network, build)

    @property
    def network(self) -> "Network":
        """The network in torch, in evaluation mode; an `Ensemble` where several were trained side by side.

        Made when it is first asked for: sampling on the CPU needs no torch.
        """
        if isinstance(self._network, StoredNetwork):
            assert self._build is not None
            self._network, self._build = self._build(), None
        return self._network

    @property
    def corpus(self) -> dict[str, Any]:
        """What is known of the text that it was trained on: where it lies is often said by the run's own file beside it alone."""
        own: dict[str, Any] = self.meta["corpus"]
        sources = own.get("sources")
        if not any(os.path.isabs(str(name)) for name in (sources if isinstance(sources, list) else [])):
            with contextlib.suppress(CheckpointError):
                found = checkpoint.read_header(self.path.parent / "last.safetensors").meta["corpus"]
                return found if found.get("fingerprint") == own.get("fingerprint") else own
        return own

    @property
    def device(self) -> str:
        """Where it computes: cpu or cuda."""
        return "cpu" if isinstance(self._network, StoredNetwork) else self._network.stack()[0].W.device.type

    @property
    def alone(self) -> "CharLM":
        """The network, where it is one: whoever looks at its units cannot look at several at once.

        Raises:
            UsageError: There are several.
        """
        from lstmlm.model.char_lm import CharLM

        if not isinstance(self.network, CharLM):
            raise UsageError(
                f"model {printable(str(self.path))}: expected one network, found {len(self.network.members)} members. "
                "Choose one of them: `inspect --member N`, or `.member(N)` in Python."
            )
        return self.network

    def member(self, number: int) -> "LanguageModel":
        """Return one of the networks that were trained side by side, alone; a network that is alone is member 1.

        Args:
            number: Counted from 1.

        Raises:
            UsageError: There is no such member.
        """
        from lstmlm.model import ensemble

        models = ensemble.members(self.network)
        if not 1 <= number <= len(models):
            raise UsageError(f"member: expected a number from 1 to {len(models)}, as the model has so many, found {number}.")
        return LanguageModel(self.path, self.meta, self.tokenizer, self.config, models[number - 1])

    def score(self, text: str, *, protocol: str = "warm", window: int = 256, batch: int = 64, after: str = "") -> "Score":
        """Score a text, every character once; the rules are in `lstmlm.evaluation.scoring`.

        Args:
            text: Of one character or more.
            protocol: warm or cold.
            window: Inputs of a cold window.
            batch: Windows or streams side by side; only a matter of speed.
            after: A text that is read first and not scored; warm alone.

        Raises:
            TextError: The text is empty.
            UsageError: There is no such protocol, or the window is not positive, or a cold text is to be read after another.
        """
        if not text:
            raise TextError("text to score: expected at least one character, found none.")
        if protocol not in ("warm", "cold"):
            raise UsageError(f"protocol {protocol!r}: expected warm or cold.")
        if window < 1 or batch < 1:
            raise UsageError(f"window and batch: expected at least 1, found {min(window, batch)}.")
        if after and protocol == "cold":
            raise UsageError("after: expected the protocol warm, found cold, whose windows begin empty.")
        import torch

        from lstmlm.evaluation.scoring import score_ids

        ids, before = (torch.tensor(self.tokenizer.encode(part, on_unknown="skip"), dtype=torch.int64) for part in (text, after))
        return score_ids(
            self.network,
            ids,
            self.counts,
            byte_length=len(text.encode("utf-8", "surrogatepass")),
            unknown=len(self.tokenizer.unknown(text)),
            protocol=protocol,
            window=window,
            batch=batch,
            after=before,
        )

    def sample(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        n: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        exact: bool = False,
        stop: Sequence[str] = (),
        lines: int = 0,
        on_unknown: OnUnknown = "error",
    ) -> list[Sample]:
        """Go on after a prompt.

        Args:
            prompt: Empty: as after a line end, or after the commonest character where there is none.
            length: Characters of each sample, at most; of a model of bytes characters too, never a part of one.
            n: Samples, drawn side by side; the seeds are seed, seed + 1, ...
            seed: Of the first sample.
            temperature: Divides the logits; 0 is greedy.
            top_k: Keep the k likeliest characters (0: all).
            top_p: Keep the fewest characters that together have this probability (1: all).
            greedy: The likeliest character always.
            exact: From the weights as they are, not from bytes, which are quicker and change some 0.0003 nats a character; a
                model that was trained with `train.precision: float32` is always sampled so.
            stop: A sample ends before any of these texts.
            lines: A sample ends before the line end of so many lines; 0: it does not.
            on_unknown: What becomes of a prompt character outside the vocabulary: error, skip or replace.

        Raises:
            TextError: The prompt has a character outside the vocabulary.
            UsageError: A number makes no sense, or the model cannot write a stop text or a line end.
        """
        if length < 1 or n < 1:
            raise UsageError(f"length and n: expected at least 1, found {min(length, n)}.")
        how = Sampling(temperature, top_k, top_p, greedy, exact)
        texts: list[list[str]] = [[] for _ in range(n)]
        ends: dict[int, Sample] = {}
        for index, piece, end in self.stream(
            prompt, length=length, n=n, seed=seed, how=how, stop=stop, lines=lines, on_unknown=on_unknown
        ):
            texts[index].append(piece)
            if end is not None:
                ends[index] = replace(end, text=readable("".join(texts[index])))
        return [ends[index] for index in range(n)]

    def stream(
        self,
        prompt: str,
        *,
        length: int,
        n: int,
        seed: int,
        how: Sampling,
        stop: Sequence[str] = (),
        lines: int = 0,
        on_unknown: OnUnknown = "error",
    ) -> Iterator[tuple[int, str, Sample | None]]:
        """Go on after a prompt, piece by piece.

        Args: as `sample`; a length of 0 has no end.

        Returns:
            An iterator over the number of the sample, a piece of its text as soon as it cannot be part of a stop text, and,
            with the last piece, the sample with an empty text. Bytes that are no UTF-8 come as the characters that stand for
            them (`surrogateescape`), so that none is lost.

        Raises:
            TextError: As `sample`; at once.
            UsageError: As `sample`; at once.
        """
        self._check_stop(stop, lines)
        _check_sampling(how)
        # Here and not with the first piece: what is wrong with the prompt is said before anything of it is written.
        ids = self._prompt_ids(prompt, on_unknown)
        if self.config.train.precision == "float32":
            how = replace(how, exact=True)
        return self._stream(ids, length, n, seed, how, stop, lines)

    def _check_stop(self, stop: Sequence[str], lines: int) -> None:
        """Refuse what would never end a sample: a text that the model cannot write.

        Raises:
            UsageError: With what was perhaps meant.
        """
        for text in stop:
            if not text:
                raise UsageError("--stop: expected a text of at least one character, found none.")
            if unknown := self.tokenizer.unknown(text):
                hint = "Did you mean a line end, --stop $'\\n'?" if "\\n" in text else "It would never come: leave it out."
                found = describe(unknown[0][1])
                raise UsageError(
                    f"--stop '{printable(text[:40])}': expected characters that the model knows, found {found}. {hint}"
                )
        if lines < 0 or (lines and self.tokenizer.unknown("\n")):
            found = "one that does not" if lines > 0 else str(lines)
            raise UsageError(f"--lines: expected a number from 1 on and a model that knows the line end, found {found}.")

    def _stream(
        self, ids: list[int], length: int, n: int, seed: int, how: Sampling, stop: Sequence[str], lines: int
    ) -> Iterator[tuple[int, str, Sample | None]]:
        seeds = [seed + index for index in range(n)]
        decoders = [self.tokenizer.stream_decoder() for _ in range(n)]
        held = [""] * n
        room, lines_left = [length] * n, [lines] * n
        nats = [0.0] * n
        open_ = set(range(n))
        for chosen, costs in generate(self._network, ids, seeds, how):
            for index in sorted(open_):
                nats[index] += costs[index]
                if not math.isfinite(nats[index]):
                    raise not_finite()
                reason = ""
                for char in decoders[index].push([chosen[index]]):  # of a model of bytes sometimes none, or two
                    lines_left[index] -= char == "\n"
                    if lines and not lines_left[index]:
                        reason = "lines"
                        break
                    held[index] += char
                    room[index] -= 1
                    if not room[index]:  # never, where there was none at the start
                        reason = "length"
                        break
                if hit := _first(held[index], stop):
                    held[index], reason = held[index][: hit[0]], "stop"
                keep = 0 if reason else _overlap(held[index], stop)
                piece, held[index] = held[index][: len(held[index]) - keep], held[index][len(held[index]) - keep :]
                if reason:
                    open_.discard(index)
                    yield index, piece, Sample("", seeds[index], nats[index], reason)
                elif piece:
                    yield index, piece, None
            if not open_:
                return

    def next(self, prompt: str = "", k: int = 5, *, on_unknown: OnUnknown = "error") -> list[tuple[str, float]]:
        r"""Return the characters that most likely come next, the likeliest first, each with its probability.

        They are the network's own: from the weights as they are, at temperature 1, nothing cut.

        Args:
            prompt: As for `sample`.
            k: How many, at most as many as there are. Of a model of bytes they are bytes: `\xNN` where one is no character.
            on_unknown: As for `sample`.

        Raises:
            TextError: As `sample`.
            UsageError: k is below 1.
        """
        if k < 1:
            raise UsageError(f"k: expected at least 1, found {k}.")
        found = probabilities(self._network, self._prompt_ids(prompt, on_unknown))
        if not all(map(math.isfinite, found)):
            raise not_finite()
        likeliest = sorted(range(len(found)), key=lambda id_: -found[id_])[:k]
        return [(self.tokenizer.symbol(id_), found[id_]) for id_ in likeliest]

    def _prompt_ids(self, prompt: str, on_unknown: OnUnknown) -> list[int]:
        return self.tokenizer.encode(prompt, on_unknown) or [self.start()]

    def start(self) -> int:
        """Return the id that stands before a text without a prompt: a line end, or the commonest symbol."""
        newline = self.tokenizer.encode("\n", on_unknown="skip")
        return newline[0] if newline else max(range(len(self.counts)), key=self.counts.__getitem__)


def _check_sampling(how: Sampling) -> None:
    """Refuse what is no probability or temperature; NaN is neither.

    Raises:
        UsageError: Says which.
    """
    if not 0 <= how.temperature < math.inf:
        raise UsageError(f"--temperature: expected a number from 0 on, found {how.temperature}.")
    if not 0 <= how.top_p <= 1:
        raise UsageError(f"--top-p: expected a number from 0 to 1, found {how.top_p}.")
    if how.top_k < 0:
        raise UsageError(f"--top-k: expected a whole number from 0 on (0: all), found {how.top_k}.")


def check(header: Header, *, resumes: bool = False) -> None:
    """Compare the weights that a file says it has with those that its configuration asks for, before they are read.

    Args:
        header: Of the file.
        resumes: Its training is to go on: every setting of it has to be known.

    Raises:
        CheckpointError: They differ, or the configuration is refused.
    """
    config, symbols = parts(header.meta, None if resumes else [])
    if config.model.hidden is None or config.model.layers is None or config.model.dropout is None:
        raise CheckpointError("checkpoint: its configuration leaves the size of the network open.")
    expected = weights.shapes(config.model, len(symbols))
    found = {k.removeprefix("model."): e.shape for k, e in header.entries.items() if k.startswith("model.")}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"checkpoint: weight {printable(name)}: expected {expected.get(name, 'none')}, found {found.get(name, 'none')}."
            )


def _first(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """Return where the first stop text begins, and which it is."""
    hits = [(position, s) for s in stop if (position := text.find(s)) >= 0]
    return min(hits) if hits else None


def _overlap(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    return max((k for s in stop for k in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:k])), default=0)
