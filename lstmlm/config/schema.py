"""Which settings there are: three groups of fields, each with its type, default, help and range, declared once.

Every `--set` key, environment variable, YAML key and row of the table in `configs/README.md` comes from the fields below; a field
with a `group` is a flag of `lstmlm train` too, below that heading of its help. A new setting is a new field here; `run_config`
fills them in.
"""

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from lstmlm.config.setting import Setting, Value, at, closest, describe, setting, write
from lstmlm.errors import ConfigError

BUDGETS = ("train.minutes", "train.steps", "train.epochs")
DEFAULT_MINUTES = 3.0
MANY = 10**9
MAX_LAYERS = 320  # of all members together: a checkpoint holds no more tensors (`header.MAX_TENSORS`)


def _encodes(name: str) -> bool:
    """Say whether a name is a text encoding of this Python."""
    try:
        return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name)) and "a".encode(name) is not None
    except (LookupError, UnicodeError):
        return False


class _Section:
    """Settings that check themselves when made: a wrong value never travels."""

    __slots__ = ()
    section: ClassVar[str]

    def __post_init__(self) -> None:
        for one in SETTINGS[self.section]:
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))


@dataclass(frozen=True, slots=True)
class ModelConfig(_Section):
    """What the network is; nothing of this can change once it is trained."""

    section: ClassVar[str] = "model"
    hidden: int | None = setting(
        None, "width of the state of each layer, in units", low=1, high=65536, group="Network", metavar="S"
    )
    layers: int | None = setting(None, "number of LSTM layers", low=1, high=64, group="Network", metavar="L")
    bias: bool = setting(True, "biases b_f, b_i, b_o, b_c (the article has none)")
    readout: str = setting(
        "linear",
        "from H_t to the scores: a matrix, or H_t itself (the article; the last layer is as wide as the vocabulary)",
        choices=("linear", "direct"),
    )
    dropout: float | None = setting(
        None,
        "share of the values between layers that is dropped in training",
        low=0,
        high=1,
        below_high=True,
        group="Network",
        metavar="P",
    )
    weight_dropout: float | None = setting(
        None, "share of the recurrent weights that is dropped in each training step", low=0, high=1, below_high=True
    )
    layer_norm: bool = setting(True, "layer norm on the output of each layer")
    residual: bool = setting(True, "add the input of a layer to its output, where both have the same width")
    forget_bias: float = setting(1.0, "start of the forget gate's bias b_f (unused without biases)", low=-20, high=20)
    forget_span: float | None = setting(
        None,
        "start b_f of some units spread over memories of 2 to so many characters, and b_i at -b_f; 0: of none",
        low=0,
        high=10**6,
    )
    forget_share: float | None = setting(None, "share of the units that forget_span spreads", low=0, high=1)
    orthogonal: bool = setting(True, "start the recurrent matrices W orthogonal")
    multiplicative: bool = setting(True, "each character has its own factors for H_{t-1} in front of the first W")
    pairs: int | None = setting(
        None, "at most so many frequent pairs of characters have rows of their own in the first U and M", low=0, high=4096
    )
    document_separator: str | None = setting(
        None,
        "text that parts documents: after it the state is empty, in training and wherever the model reads or writes",
        none_word="null",
        accept=lambda text: not {"\0", "\x1b"} & set(text),  # a setting is shown, and neither is text
        group="Corpus",
        metavar="TEXT",
    )
    members: int = setting(
        1,
        "networks trained side by side, of seeds s, s + 1, ..., and read as one",
        low=1,
        high=64,
        group="Network",
        metavar="N",
    )

    def __post_init__(self) -> None:
        _Section.__post_init__(self)
        layers = self.members * (self.layers or 1)
        if layers > MAX_LAYERS:
            raise ConfigError(
                f"model: expected at most {MAX_LAYERS} layers in all members together, found {self.members} x {self.layers}. "
                "Take fewer members or fewer layers."
            )


@dataclass(frozen=True, slots=True)
class DataConfig(_Section):
    """How a text becomes ids, and which part of it is held back."""

    section: ClassVar[str] = "data"
    tokenizer: str = setting(
        "char", "what one id stands for: a character (code point) or a byte", choices=("char", "byte"), group="Corpus"
    )
    encoding: str = setting(
        "utf-8",
        "encoding of the text files",
        accept=_encodes,
        words="a text encoding, such as utf-8 or latin-1",
        group="Corpus",
        metavar="NAME",
    )
    include: str | None = setting(
        None,
        "patterns of the files that are read of a folder or archive, with commas between them, such as *.md,*.txt",
        none_word="null",
        accept=str.isprintable,
        words="patterns",
        group="Corpus",
        metavar="PATTERNS",
    )
    exclude: str | None = setting(
        None,
        "patterns of files and folders that are not",
        none_word="null",
        accept=str.isprintable,
        words="patterns",
        group="Corpus",
        metavar="PATTERNS",
    )
    on_bad_file: str = setting(
        "error", "what to do with a file that cannot be read or decoded", choices=("error", "skip"), group="Corpus"
    )
    field: str | None = setting(
        None,
        "field of each record that is text, in .jsonl, .csv and .tsv files; a.b: the field b of a",
        none_word="null",
        accept=lambda name: re.fullmatch(r"\w[\w. -]*", name) is not None,
        words="the name of a field",
        group="Corpus",
        metavar="NAME",
    )
    normalize: str = setting(
        "none", "Unicode form of all text: accents joined (nfc), apart (nfd), as they come", choices=("nfc", "nfd", "none"),
        group="Corpus",
    )  # fmt: skip
    val_fraction: float = setting(0.1, "share of the text held back for validation", low=0, high=0.5, group="Corpus", metavar="F")
    split: str = setting(
        "auto",
        "what is held back: the end, or lines, paragraphs or files drawn by the seed; auto: files if there are 20, else the end",
        choices=("auto", "tail", "lines", "paragraphs", "files"),
        group="Corpus",
    )
    on_unknown: str = setting(
        "error",
        "characters that the model of --from or --distill does not know: refused, left out, replaced by like ones, or, "
        "with --from, learnt",
        choices=("error", "skip", "replace", "grow"),
        group="Corpus",
    )
    min_count: int = setting(
        1,
        "characters that the training part has fewer times share one symbol, written U+FFFD; 1: none do",
        low=1,
        high=MANY,
        group="Corpus",
        metavar="N",
    )
    paths: bool = setting(False, "say in the model too where its text lies, not only in the run's own files")


@dataclass(frozen=True, slots=True)
class TrainConfig(_Section):
    """How long and how the network is trained."""

    section: ClassVar[str] = "train"
    minutes: float | None = setting(
        None,
        "wall time of the whole command, in minutes; 3 if no budget is set",
        low=0,
        above_low=True,
        high=10**6,
        none_word="null",
        group="Budget",
        metavar="M",
    )
    steps: int | None = setting(
        None, "budget in optimizer steps", low=1, high=MANY, none_word="null", group="Budget", metavar="N"
    )
    epochs: float | None = setting(
        None,
        "budget in passes over the training text",
        low=0,
        above_low=True,
        high=10**6,
        none_word="null",
        group="Budget",
        metavar="E",
    )
    batch: int | None = setting(None, "B, streams of text read side by side", low=1, high=65536, group="Learning", metavar="B")
    accumulate: int = setting(1, "shards of the batch, computed one after another", low=1, high=65536)
    window: int | None = setting(
        None, "T, time steps of a window, in characters", low=1, high=10**6, group="Learning", metavar="T"
    )
    segment: int = setting(
        0, "steps of a window that are kept in memory at a time, the rest computed twice; 0: all", low=0, high=10**6
    )
    state_dropout: float = setting(
        0.03, "share of the streams that begin a step with an empty state", low=0, high=1, below_high=True
    )
    rename: float = setting(
        0.2, "share of the names in a section of the text that are others in each pass after the first", low=0, high=1
    )
    lr: float | None = setting(None, "largest learning rate", low=0, high=10, group="Learning", metavar="RATE")
    warmup: int | None = setting(None, "steps over which the rate rises to lr", low=0, high=MANY)
    final_lr: float = setting(1.0, "rate at the last step, as a fraction of lr", low=0, high=1)
    weight_decay: float | None = setting(None, "decoupled decay of the matrices, times lr at each step", low=0, high=100)
    beta1: float = setting(0.5, "AdamW's memory of the gradient", low=0, high=1, below_high=True)
    beta2: float = setting(0.99, "AdamW's memory of its square", low=0, high=1, below_high=True)
    eps: float = setting(1e-8, "AdamW's epsilon", low=0, above_low=True, high=1)
    average: float = setting(
        0.15, "share of the steps so far over which the weights are averaged; 0: the last ones count", low=0, high=1
    )
    clip: float = setting(1.0, "largest norm of the gradient; 0: no limit", low=0, high=10**6)
    distill_weight: float = setting(
        0.45, "with --distill, how much of the loss is what the teacher expects, and not the text", low=0, high=1
    )
    seed: int = setting(0, "seed of everything random", low=0, high=2**63 - 1, group="Learning", metavar="N")
    threads: int = setting(
        0, "CPU threads; 0: one for each core that the process may use", low=0, high=4096, group="Machine", metavar="N"
    )
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda"), group="Machine")
    precision: str = setting("auto", "number format of the products", choices=("auto", "float32", "bfloat16"), group="Machine")
    kernel: str = setting("auto", "code that runs the recurrence", choices=("auto", "eager", "native", "triton"))
    eval_every: int | None = setting(None, "steps between validations", low=1, high=MANY)
    save_every: int | None = setting(None, "steps between checkpoints", low=1, high=MANY)
    keep: int = setting(0, "steps between models that are kept as step-N.safetensors; 0: none", low=0, high=MANY)
    patience: int | None = setting(
        None,
        "validations without a better score after which to stop; 0: never; auto: 3, from 5 % above the best, at twice its step",
        low=0,
        high=10**6,
    )

    def __post_init__(self) -> None:
        _Section.__post_init__(self)
        check_together({one.key: getattr(self, one.name) for one in SETTINGS["train"]}, {})

    @property
    def budget(self) -> tuple[str, float]:
        """The budget that holds: `("minutes" | "steps" | "epochs", amount)`."""
        for key in BUDGETS:
            name = key.partition(".")[2]
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        return "minutes", DEFAULT_MINUTES


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything about a run that its commands and files do not already say."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


SECTIONS: tuple[type[Any], ...] = (ModelConfig, DataConfig, TrainConfig)


def _declared(section: type[Any]) -> list[Setting]:
    """Return the settings that a section's fields declare."""
    found = []
    hints = typing.get_type_hints(section)
    for one in fields(section):
        arguments = typing.get_args(hints[one.name])
        kind = next(t for t in arguments if t is not types.NoneType) if arguments else hints[one.name]
        default: Any = one.default
        found.append(Setting(f"{section.section}.{one.name}", kind, default, optional=bool(arguments), **one.metadata))
    return found


SETTINGS: dict[str, list[Setting]] = {section.section: _declared(section) for section in SECTIONS}
KEYS: dict[str, Setting] = {one.key: one for group in SETTINGS.values() for one in group}


# Settings that models of earlier versions were saved with: what each is called now, or None where it is gone and decided nothing.
# A setting that is renamed or removed gets its row here, and every model that was ever saved still loads.
FORMER: dict[str, str | None] = {"train.sample_every": None}


def keys() -> dict[str, Setting]:
    """Return every setting by its key, in the order of declaration."""
    return dict(KEYS)


def key_table() -> str:
    """Return the settings as a Markdown table: key, values, default, meaning."""
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for one in KEYS.values():
        default = one.none_word if one.default is None else write(one.default)
        rows.append(f"| `{one.key}` | {one.allowed} | {default} | {one.help} |")
    return "\n".join(rows) + "\n"


# What people call a setting elsewhere, and what it is called here.
ALIASES = {
    "train.lr": "learning_rate learningrate rate max_lr base_lr step_size alpha",
    "train.batch": "batch_size batchsize bs minibatch streams",
    "train.segment": "recompute gradient_checkpointing checkpointing low_memory",
    "train.window": "seq_len seq_length sequence_length seqlen bptt context context_length block_size time_steps tbptt",
    "train.accumulate": "grad_accum gradient_accumulation accumulation accumulation_steps grad_accumulation_steps shards",
    "train.steps": "max_steps num_steps n_steps iters iterations max_iters total_steps",
    "train.epochs": "num_epochs n_epochs max_epochs epoch passes",
    "train.minutes": "time max_minutes max_time duration budget minute",
    "train.clip": "grad_clip gradient_clip clip_norm max_norm grad_norm clip_grad max_grad_norm",
    "train.weight_decay": "wd l2 decay",
    "train.warmup": "warmup_steps warmup_iters",
    "train.final_lr": "min_lr end_lr lr_min",
    "train.threads": "num_threads n_threads workers num_workers cores",
    "train.seed": "random_seed rng",
    "train.precision": "dtype amp float_type",
    "train.patience": "early_stopping early_stop",
    "train.eval_every": "eval_interval val_every validate_every eval_steps",
    "train.save_every": "save_interval checkpoint_every save_steps checkpoint_interval",
    "train.device": "gpu cuda accelerator",
    "train.beta1": "momentum adam_beta1 b1",
    "train.beta2": "adam_beta2 b2",
    "model.hidden": "hidden_size rnn_size width n_hidden num_hidden units hidden_dim size dim n_embd d_model",
    "model.layers": "num_layers n_layers n_layer depth layer",
    "model.document_separator": "eot end_of_text endoftext delimiter doc_separator separator document_delimiter",
    "model.members": "ensemble ensembles num_members n_members num_models n_models models replicas",
    "model.weight_dropout": "wdrop weight_drop dropconnect recurrent_dropout",
    "model.dropout": "drop drop_prob p_drop dropout_prob",
    "model.layer_norm": "layernorm norm ln",
    "model.residual": "skip residuals skip_connections",
    "model.bias": "biases use_bias",
    "data.tokenizer": "tokeniser tokenization vocab",
    "data.val_fraction": "val_split valid_fraction val_size validation validation_split val_frac val",
}


def _meant(key: str) -> str:
    """Guess the key that was meant by one that does not exist; empty if there is no good guess."""
    names = {name: one for one, others in ALIASES.items() for name in others.split()}
    names |= {one.name: one.key for one in KEYS.values()}
    given = key.strip().lstrip("-").replace("-", "_").lower()
    for guess in (given, given.replace("_", ".", 1)):
        if guess in KEYS:
            return guess
    last = given.rpartition(".")[2]
    return names.get(last) or names.get(closest(last, names)) or closest(given, [*KEYS, *SETTINGS], 0.7)


def known(key: object, source: str) -> Setting:
    """Return the setting of a key.

    Args:
        key: What was given as a key, of any type.
        source: Where it was given, for the message.

    Raises:
        ConfigError: There is no such setting.
    """
    if isinstance(key, str) and key in KEYS:
        return KEYS[key]
    raise unknown(key, source)


def unknown(key: object, source: str) -> ConfigError:
    """Return the error for a key that does not exist, with the one that was probably meant."""
    guess = _meant(key) if isinstance(key, str) and key not in SETTINGS else ""
    section = str(key).partition(".")[0]
    names = ", ".join(one.name for one in SETTINGS.get(section, []))
    if guess:
        hint = f"Did you mean {guess}?"
    elif names:
        hint = f"In {section}. there are {names}."
    else:
        hint = "Sections are " + ", ".join(f"{one.section}." for one in SECTIONS).rstrip(".") + "."
    return ConfigError(f"unknown key{at(source)}: expected a setting, found {describe(key)}. {hint}")


def check_together(values: Mapping[str, Value], sources: Mapping[str, str]) -> None:
    """Refuse values that are each allowed and cannot work together.

    Args:
        values: Values of all keys of `train.`, by key.
        sources: Where they came from, as far as known.

    Raises:
        ConfigError: Two budgets, or a kernel that does not run on the device.
    """
    given = [key for key in BUDGETS if values[key] is not None]
    if len(given) > 1:
        found = " and ".join(f"{key} = {write(values[key])}{at(sources.get(key, ''))}" for key in given)
        raise ConfigError(f"train: expected one budget of minutes, steps and epochs, found {found}. Keep one of them.")
    kernel, device = values["train.kernel"], values["train.device"]
    other = {"native": "cuda", "triton": "cpu"}  # the device on which a kernel does not run
    if kernel in other and device == other[kernel]:
        places = dict.fromkeys(sources[key] for key in ("train.kernel", "train.device") if key in sources)
        fits = {"cpu": "native", "cuda": "triton"}[device]
        message = (
            f"train.kernel{at(', '.join(places))}: expected auto, eager or {fits} with train.device {device}, found {kernel}"
        )
        raise ConfigError(f"{message}. Leave one of them at auto.")
