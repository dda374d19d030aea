"""The Python interface: `load`, and the `LanguageModel` that it and `lstmlm.train` (`api_train`) return.

It joins checkpoint, tokenizer, network, scoring and sampler. The commands `sample`, `eval`, `fill` and `inspect` open their
model here.
"""

import contextlib
import copy
import itertools
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from lstmlm import arguments, kernels, machine
from lstmlm.arguments import in_python
from lstmlm.config.run_config import RunConfig
from lstmlm.data import saved_model
from lstmlm.data.saved_model import check, parts
from lstmlm.data.tokenizer import OnUnknown, Tokenizer, in_form, readable, separator_ids
from lstmlm.errors import CheckpointError, TextError, UsageError, not_finite, printable
from lstmlm.evaluation import text_sampler
from lstmlm.evaluation.reading import TOGETHER
from lstmlm.evaluation.sampler import Sampling, probabilities
from lstmlm.evaluation.sampling import DRAWN_TOGETHER
from lstmlm.evaluation.text_sampler import Ends, drawn_seed
from lstmlm.evaluation.text_sampler import Sample as Sample  # what `LanguageModel.sample` gives
from lstmlm.kernels import generate as native_generate
from lstmlm.kernels.buffers import floats_of_bytes
from lstmlm.model import devices, weights
from lstmlm.model.weights import StoredNetwork
from lstmlm.storage import checkpoint, run_dir
from lstmlm.storage.header import Header
from lstmlm.units import bits, counted

if TYPE_CHECKING:
    from lstmlm.analysis.activations import Gates
    from lstmlm.evaluation.cloze import Answer
    from lstmlm.evaluation.scoring import Score
    from lstmlm.model.char_lm import CharLM
    from lstmlm.model.ensemble import Network


class Stream(Iterator[str]):
    """A sample as it is written, piece by piece.

    seed: Draws the same text again.
    sample: The whole, once the last piece has been taken.
    """

    def __init__(self, pieces: Iterator[tuple[int, str, Sample | None]], seed: int, prompt: str) -> None:
        self.seed = seed
        self.sample: Sample | None = None
        self._pieces = pieces
        self._prompt = prompt
        self._text: list[str] = []

    def __next__(self) -> str:
        _, piece, end = next(self._pieces)
        self._text.append(piece)
        if end is not None:
            self.sample = replace(end, text=readable("".join(self._text)), prompt=self._prompt)
        return piece


class _Opened(NamedTuple):
    """How a model was opened, and so how it is opened again in another process.

    sha256: Of the checkpoint.
    member: 0: all of them.
    """

    path: str
    sha256: str
    threads: int
    device: str
    member: int = 0


class LanguageModel:
    """A trained network with its vocabulary.

    Args:
        path: The file it came from.
        meta: What the checkpoint says of itself.
        symbols: Its tokenizer.
        config: Its configuration.
        network: In evaluation mode; or its weights, from which it can be sampled.
        build: Makes the network in torch, where only its weights are given.
        opened: How it was opened; None: it cannot be pickled.

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
        opened: _Opened | None = None,
    ) -> None:
        self.path = path
        self.meta = meta
        self.tokenizer = symbols
        self.config = config
        self._network = network
        self._build = build
        self._opened = opened
        self._terms: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext  # or those of Python
        self._building = threading.Lock()
        self.counts: list[int] = meta["counts"]

    @classmethod
    def open(
        cls,
        path: str | Path | None = None,
        *,
        threads: int = 0,
        device: str = "auto",
        report: Callable[[str], None] | None = None,
        whole_process: bool = True,
    ) -> "LanguageModel":
        """Open a run folder, a checkpoint file, or the newest run below `runs/`.

        Args:
            path: None is the newest run.
            threads: 0 is all cores for sampling, and what torch has otherwise; a number is set for torch in the whole process.
            device: auto (a CUDA device where it works), cpu or cuda.
            report: Called with a sentence where a damaged checkpoint is replaced by the run's other one.
            whole_process: Whether a number of threads is torch's too.

        Raises:
            CheckpointError: It is missing, damaged or of another version.
            UsageError: There is no such device.
        """
        requested = "cpu" if device == "auto" and kernels.requested_kernel() == "native" else device
        instant = devices.is_cpu(requested) and kernels.requested_kernel() in ("auto", "native")
        library = native_generate.examined_library() if instant else None
        if library is None and requested != "auto":
            devices.choose(requested)  # what cannot be is said before a file is read
        digests: list[str] = []

        def checked(header: Header) -> None:
            digests.append(header.sha256)
            check(header)

        found, saved = run_dir.load(path, report=report, check=checked)
        opened = _Opened(os.path.abspath(found), digests[-1], threads if not whole_process else 0, device)
        ignored: list[str] = []
        config, symbols = parts(saved.meta, ignored)
        separator = separator_ids(config.model.document_separator, symbols)
        if report and ignored:
            report(f"checkpoint {printable(str(found))}: {saved_model.note(saved.meta, ignored)}")
        blobs = saved.part("model.")

        def build() -> "Network":
            import torch

            from lstmlm.model import ensemble
            from lstmlm.model.char_lm import load_weights

            if threads and whole_process:
                torch.set_num_threads(threads)
            where, kernel, _ = devices.with_kernel(requested if library is None else "cpu", precision="float32")
            network = ensemble.build(config.model, len(symbols), kernel, separator).to(where)
            load_weights(network, checkpoint.to_tensors(blobs))
            return network

        if library is None or any(blob.dtype != "float32" for blob in blobs.values()):
            return cls(found, saved.meta, symbols, config, build(), None, opened)
        named = {name: floats_of_bytes(blob.data, blob.shape) for name, blob in blobs.items()}
        shared = min(threads or machine.cpus(), len(machine.processors()))
        network = weights.stored(library, config.model, named, shared, separator)
        return cls(found, saved.meta, symbols, config, network, build, opened)

    def __repr__(self) -> str:
        model, scores = self.config.model, self.meta["scores"]
        count, alone = model.members, self._opened.member if self._opened else 0
        members = "" if count == 1 else f"member {alone} of {count}, " if alone else f"{count} members of "
        symbols = "bytes" if self.tokenizer.kind == "byte" else counted(len(self.tokenizer), "character")
        nats = None if members and alone else scores.get("validation_nats_per_char")  # that is of all together
        reached = f", {bits(nats):.3f} bits/char in validation" if nats is not None else ""
        parameters = self.meta["parameters"] // (count if alone else 1)
        sizes = f"{members}{model.layers} x {model.hidden} units, {symbols}, {parameters:,} parameters"
        return f"<LanguageModel {printable(str(self.path))}: {sizes}, step {self.meta['step']:,}{reached}>"

    def __reduce__(self) -> tuple[Callable[[_Opened], "LanguageModel"], tuple[_Opened]]:
        """Pickle the path and the digest: what was done to the network since does not travel."""
        if self._opened is None:
            raise TypeError(f"model {self.path}: expected one that was loaded, found one without a file to load it from again.")
        return _reopened, (self._opened,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LanguageModel":
        """Return a model with weights of its own."""
        twin = copy.copy(self.__dict__)
        model = LanguageModel.__new__(LanguageModel)
        network = self._network
        if not isinstance(network, StoredNetwork):  # as stored its weights never change
            shared = (getattr(module, "kernel", None) for module in network.modules())
            twin["_network"] = copy.deepcopy(network, {**memo, **{id(kernel): kernel for kernel in shared if kernel}})
        model.__dict__.update(twin, _building=threading.Lock())
        return model

    @property
    def network(self) -> "Network":
        """The network in torch, in evaluation mode; an `Ensemble` where several were trained side by side.

        Made when it is first asked for: sampling on the CPU needs no torch.
        """
        with self._building:  # several threads may ask at once
            if isinstance(self._network, StoredNetwork):
                assert self._build is not None
                self._network, self._build = self._build(), None
            return self._network

    @property
    def readable(self) -> "Network | StoredNetwork":
        """What samples and scores are read from: the network in torch where it was made, else its weights."""
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

        [number] = arguments.whole(member=number)
        models = ensemble.members(self.network)
        if not 1 <= number <= len(models):
            several = f"a number from 1 to {len(models)}, as the model has so many"
            there = several if len(models) > 1 else "1, as the model is one network"
            with self._terms():
                raise UsageError(f"--member: expected {there}, found {number}.")
        opened = self._opened and self._opened._replace(member=number)
        alone = LanguageModel(self.path, self.meta, self.tokenizer, self.config, models[number - 1], None, opened)
        alone._terms = self._terms
        return alone

    def score(
        self, text: str, *, after: str = "", protocol: str = "warm", window: int = 256, batch: int | None = None
    ) -> "Score":
        """Score a text, every character once; the rules are in `lstmlm.evaluation.scoring`.

        Args:
            text: What is scored.
            after: What stands before it: it is read first, and not scored. Characters that the model does not know are left out.
            protocol: warm, the state carried through the text, or cold, in windows that start empty.
            window: Inputs of a cold window.
            batch: Cold windows side by side; None: as many as are quick. Only a matter of speed.

        Returns:
            The sum, and in `costs` the bits of each character of the text, which is in the Unicode form that the model reads.

        Raises:
            TextError: The text is empty.
            UsageError: There is no such protocol, or the window is not positive, or a cold text is to be read after another.
        """
        from lstmlm.evaluation.scoring import Scorer, which_char

        with self._terms():
            arguments.require_text(text=text, after=after)
            if not text:
                raise TextError("text to score: expected at least one character, found none.")
            if protocol not in ("warm", "cold"):
                raise UsageError(f"protocol {protocol!r}: expected warm or cold.")
            window, rows = arguments.whole(window=window, batch=1 if batch is None else batch)
            if (least := min(window, rows)) < 1:
                raise UsageError(f"window and batch: expected at least 1, found {least}.")
            if after and protocol == "cold":
                raise UsageError("after: expected none with cold windows, which start from nothing, found one.")
            text = in_form(text, self.tokenizer.form)
            before, ids = map(self.tokenizer.encode_scored, (after, text))
            rare = self.tokenizer.rare
            strange = {position for position, _ in self.tokenizer.unknown(text)}
            # Streams of a text that is read warm read parts of it again: their number is not the caller's.
            given = rows if protocol == "cold" and batch is not None else None
            scorer = Scorer(self.readable, self.counts, protocol, window, given, after=before, rare=rare)
            scorer.costs = []
            left_out = len(strange) if rare is None else 0
            scorer.add(ids, len(ids) + left_out, len(text.encode("utf-8", "surrogatepass")))
            score = scorer.finish()
            costs, each = iter(scorer.costs), []
            for position, char in enumerate(text):
                if position in strange:
                    symbols = 0 if rare is None else 1
                else:
                    symbols = 1 if self.tokenizer.kind == "char" else len(char.encode("utf-8", "surrogateescape"))
                nats = math.fsum(itertools.islice(costs, symbols))
                each.append(bits(nats + which_char(position in strange)))
            return replace(score, costs=tuple(each))

    def fill(self, text: str, choices: Sequence[str], *, on_unknown: OnUnknown = "error") -> "list[Answer]":
        """Rank what may stand in the blanks of a text, by the bits of the whole: what comes after a blank counts too.

        Args:
            text: With `____` where something is missing.
            choices: The candidates; with several blanks every combination is compared.
            on_unknown: As for `sample`.

        Returns:
            An answer for each, the best one first.

        Raises:
            TextError: There is no blank, or a character outside the vocabulary.
            UsageError: There are fewer than two choices.
        """
        from lstmlm.evaluation.cloze import Filler, Question

        with self._terms():
            arguments.require_text(text=text)
            arguments.require_word(get_args(OnUnknown), on_unknown=on_unknown)
            if isinstance(choices, str):
                raise TypeError("choices: expected several strings, found one.")
            encode = partial(self.tokenizer.encode, on_unknown=on_unknown)
            filler = Filler(self.readable, encode, self.counts, self.opening, self.tokenizer.rare)
            return next(filler.rank([Question(text, tuple(arguments.strings("choices", choices)))]))

    def gates(self, text: str, *, on_unknown: OnUnknown = "error") -> "Gates":
        """Return what every gate and unit does along a text, which is read after what parts documents, or a line end.

        Of several networks it is asked by member: `model.member(1).gates(text)`.

        Raises:
            TextError: There is no character that the model knows, or one that it does not know.
            UsageError: There are several networks.
        """
        with self._terms():
            arguments.require_text(text=text)
            arguments.require_word(get_args(OnUnknown), on_unknown=on_unknown)
            ids = self.tokenizer.encode(text, on_unknown)
            if not ids:
                raise TextError("text: expected a character that the model knows, found none.")
            from lstmlm.analysis.activations import gates

            return gates(self.alone, ids, self.opening, self.counts, [self.tokenizer.decode([id_]) for id_ in ids])

    def sample(
        self,
        prompt: str | Sequence[str] = "",
        *,
        length: int = 500,
        n: int = 1,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        exact: bool = False,
        stop: str | Sequence[str] = (),
        lines: int = 0,
        on_unknown: OnUnknown = "error",
    ) -> list[Sample]:
        """Go on after a prompt, or after each of several, which are read and continued side by side.

        Args:
            prompt: Empty: as after what parts documents, or a line end, or after the commonest character where there is neither.
            length: Characters of each sample, at most; of a model of bytes characters too, never a part of one.
            n: Samples of each prompt, drawn side by side; the seeds are seed, seed + 1, ...
            seed: Of the first sample of each prompt; None: drawn, and kept in the samples.
            temperature: Divides the logits; 0 is greedy.
            top_k: Keep the k likeliest characters (0: all).
            top_p: Keep the fewest characters that together have this probability (1: all).
            greedy: The likeliest character always.
            exact: From the weights as they are, not from bytes, which are quicker and change less than 0.0001 nats a character; a
                model that was trained with `train.precision: float32` is always sampled so.
            stop: A sample ends before this text, or any of these.
            lines: A sample ends before the line end of so many lines; 0: it does not.
            on_unknown: What becomes of a prompt character outside the vocabulary: error, skip or replace.

        Returns:
            n samples of the first prompt, then those of the next one.

        Raises:
            TextError: A prompt has a character outside the vocabulary.
            UsageError: A number makes no sense, or the model cannot write a stop text or a line end.
        """
        with self._terms():
            length, n, lines = arguments.whole(length=length, n=n, lines=lines)
            if length < 1 or n < 1:
                raise UsageError(f"length and n: expected at least 1, found {min(length, n)}.")
            prompts = arguments.strings("prompt", prompt)
            how = _sampling(temperature, top_k, top_p, greedy, exact)
            first = drawn_seed(seed)
            most = DRAWN_TOGETHER[self.device]
            each = max(1, min(TOGETHER, most) // n)

            def drawn(low: int, start: int) -> Iterator[tuple[int, str, Sample | None]]:
                return self.draw(
                    prompts[low : low + each],
                    length=length,
                    n=min(most, n - start),
                    seed=first + start,
                    how=how,
                    stop=stop,
                    lines=lines,
                    on_unknown=on_unknown,
                )

            # What is wrong with any prompt is said before the first is gone on from.
            begun = [(low, drawn(low, 0)) for low in range(0, len(prompts), each)]

            def parts() -> Iterator[Iterator[tuple[int, str, Sample | None]]]:
                for low, pieces in begun:
                    yield pieces
                    yield from (drawn(low, start) for start in range(most, n, most))

            samples: list[Sample] = []
            for pieces in parts():
                texts: dict[int, list[str]] = defaultdict(list)
                ends: dict[int, Sample] = {}
                for index, piece, end in pieces:
                    texts[index].append(piece)
                    if end is not None:
                        own = prompts[(len(samples) + index) // n]
                        ends[index] = replace(end, text=readable("".join(texts[index])), prompt=own)
                samples += [ends[index] for index in sorted(ends)]
            return samples

    def stream(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        seed: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        greedy: bool = False,
        exact: bool = False,
        stop: str | Sequence[str] = (),
        lines: int = 0,
        on_unknown: OnUnknown = "error",
    ) -> Stream:
        """Go on after a prompt, piece by piece.

        Args: as `sample`; a length of 0 has no end.

        Returns:
            An iterator over the pieces, each as soon as it is drawn and cannot be part of a stop text.

        Raises: as `sample`; at once.
        """
        with self._terms():
            arguments.require_text(prompt=prompt)
            length, lines = arguments.whole(length=length, lines=lines)
            if length < 0:
                raise UsageError(f"length: expected a number from 0 on (0: without end), found {length}.")
            first = drawn_seed(seed)
            how = _sampling(temperature, top_k, top_p, greedy, exact)
            pieces = self.draw(prompt, length=length, n=1, seed=first, how=how, stop=stop, lines=lines, on_unknown=on_unknown)
            return Stream(pieces, first, prompt)

    def draw(
        self,
        prompt: str | Sequence[str],
        *,
        length: int,
        n: int,
        seed: int,
        how: Sampling,
        stop: str | Sequence[str] = (),
        lines: int = 0,
        on_unknown: OnUnknown = "error",
    ) -> Iterator[tuple[int, str, Sample | None]]:
        """Go on after a prompt, or several, with n samples of each side by side, piece by piece.

        Args: as `sample`; a length of 0 has no end.

        Returns:
            An iterator over the number of the sample, a piece of its text as soon as it cannot be part of a stop text, and,
            with the last piece, the sample with an empty text. Bytes that are no UTF-8 come as the characters that stand for
            them (`surrogateescape`), so that none is lost.

        Raises:
            TextError: As `sample`; at once.
            UsageError: As `sample`; at once.
        """
        arguments.require_word(get_args(OnUnknown), on_unknown=on_unknown)
        ends = Ends(length, tuple(arguments.strings("stop", stop)), lines)
        text_sampler.refuse_endless(self.tokenizer, ends)
        how.refuse()
        # Here and not with the first piece: what is wrong with the prompt is said before anything of it is written.
        prompts = [self._prompt_ids(one, on_unknown) for one in arguments.strings("prompt", prompt)]
        if self.config.train.precision == "float32":
            how = replace(how, exact=True)
        seeds = [seed + index for index in range(n)] * len(prompts)
        return text_sampler.draw(self._network, self.tokenizer, [ids for ids in prompts for _ in range(n)], seeds, how, ends)

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
        with self._terms():
            arguments.require_text(prompt=prompt)
            arguments.require_word(get_args(OnUnknown), on_unknown=on_unknown)
            [k] = arguments.whole(k=k)
            if k < 1:
                raise UsageError(f"k: expected at least 1, found {k}.")
            found = probabilities(self._network, self._prompt_ids(prompt, on_unknown))
            if not all(map(math.isfinite, found)):
                raise not_finite()
        likeliest = sorted(range(len(found)), key=lambda id_: -found[id_])[:k]
        return [(self.tokenizer.symbol(id_), found[id_]) for id_ in likeliest]

    def _prompt_ids(self, prompt: str, on_unknown: OnUnknown) -> list[int]:
        return self.tokenizer.encode(prompt, on_unknown) or self.opening or [self.start()]

    @property
    def line_end(self) -> list[int]:
        """The id of the line end, alone; empty where the model knows none."""
        return self.tokenizer.encode("\n", on_unknown="skip")

    @property
    def opening(self) -> list[int]:
        """The ids that stand before a text: what parts documents, else a line end; empty where the model knows neither."""
        return list(separator_ids(self.config.model.document_separator, self.tokenizer)) or self.line_end

    def start(self) -> int:
        """Return one id that a text may begin after: a line end, or the commonest symbol."""
        return self.line_end[0] if self.line_end else max(range(len(self.counts)), key=self.counts.__getitem__)


def load(path: str | os.PathLike[str] | None = None, *, threads: int | None = None, device: str = "auto") -> LanguageModel:
    """Open a trained model; see `lstmlm.load`."""
    with in_python():
        arguments.require_text(device=device)
        if threads is not None:
            [threads] = arguments.whole(threads=threads)
            if threads < 1:
                raise UsageError(f"threads: expected at least 1, or None, found {threads}.")
        name = None if path is None else arguments.file_name("path", path)
        model = LanguageModel.open(name, threads=threads or 0, device=device, whole_process=False)
    model._terms = in_python
    return model


def _reopened(opened: _Opened) -> LanguageModel:
    """Open a model that was pickled.

    Raises:
        CheckpointError: The file is gone, or is another model by now.
    """
    model = load(opened.path, threads=opened.threads or None, device=opened.device)
    if model._opened is None or model._opened.sha256 != opened.sha256:
        raise CheckpointError(
            f"model {printable(opened.path)}: expected the one that was pickled, found that its file holds another one by now. "
            "Keep a copy of a file that is to be opened again."
        )
    return model.member(opened.member) if opened.member else model


def _sampling(temperature: float, top_k: int, top_p: float, greedy: bool, exact: bool) -> Sampling:
    """Return how the next id is chosen, of numbers of any type.

    Raises:
        UsageError: One of them is no number, or neither True nor False.
    """
    temperature, top_p = arguments.real(temperature=temperature, top_p=top_p)
    [top_k] = arguments.whole(top_k=top_k)
    greedy, exact = arguments.switches(greedy=greedy, exact=exact)
    return Sampling(temperature, top_k, top_p, greedy, exact)
