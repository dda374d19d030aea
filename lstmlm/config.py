"""What a run is: three groups of settings, each setting declared once, and the layers that they are resolved from.

Every command-line flag, `--set` key, environment variable, YAML key and row of the README's table comes from the
fields below. This room does not know tensors, terminals or flags' parsing.

    defaults  <  --config files in order  <  LSTMLM_<SECTION>_<KEY>  <  --set and flags
"""

import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from .errors import ConfigError, SystemProblem
from .settings import Located, Setting, Value, at, closest, describe, setting, shorten, write
from .settings_yaml import entries, read_file

Layer: TypeAlias = tuple[str, dict[str, Located]]
BUDGETS = ("train.minutes", "train.steps", "train.epochs")
DEFAULT_MINUTES = 3.0
MANY = 10**12


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
        for one in _SETTINGS[self.section]:
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))


@dataclass(frozen=True, slots=True)
class ModelConfig(_Section):
    """What the network is; nothing of this can change once it is trained."""

    section: ClassVar[str] = "model"
    hidden: int | None = setting(None, "width of the state of each layer, in units", low=1, high=65536)
    layers: int | None = setting(None, "number of LSTM layers", low=1, high=64)
    bias: bool = setting(True, "biases b_f, b_i, b_o, b_c (the article has none)")
    readout: str = setting(
        "linear",
        "from H_t to the scores: a matrix, or H_t itself (the article; the last layer is as wide as the vocabulary)",
        choices=("linear", "direct"),
    )
    dropout: float | None = setting(
        None, "share of the values between layers that is dropped in training", low=0, high=1, below_high=True
    )
    layer_norm: bool = setting(True, "layer norm on the output of each layer")
    residual: bool = setting(True, "add the input of a layer to its output, where both have the same width")
    forget_bias: float = setting(1.0, "start of the forget gate's bias b_f (unused without biases)", low=-20, high=20)
    orthogonal: bool = setting(True, "start the recurrent matrices W orthogonal")


@dataclass(frozen=True, slots=True)
class DataConfig(_Section):
    """How a text becomes ids, and which part of it is held back."""

    section: ClassVar[str] = "data"
    tokenizer: str = setting(
        "char", "what one id stands for: a character (code point) or a byte", choices=("char", "byte")
    )
    encoding: str = setting(
        "utf-8", "encoding of the text files", accept=_encodes, words="a text encoding, such as utf-8 or latin-1"
    )
    val_fraction: float = setting(0.1, "share of the text, at its end, held back for validation", low=0, high=0.5)


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
    )
    steps: int | None = setting(None, "budget in optimizer steps", low=1, high=MANY, none_word="null")
    epochs: float | None = setting(
        None, "budget in passes over the training text", low=0, above_low=True, high=10**6, none_word="null"
    )
    batch: int | None = setting(None, "B, streams of text read side by side", low=1, high=65536)
    window: int | None = setting(None, "T, time steps of a window, in characters", low=1, high=10**6)
    lr: float | None = setting(None, "largest learning rate", low=0, high=10)
    warmup: int | None = setting(None, "steps over which the rate rises to lr", low=0, high=MANY)
    final_lr: float = setting(0.0, "rate at the last step, as a fraction of lr", low=0, high=1)
    weight_decay: float | None = setting(
        None, "decoupled decay of the matrices, times lr at each step", low=0, high=100
    )
    beta1: float = setting(0.9, "AdamW's memory of the gradient", low=0, high=1, below_high=True)
    beta2: float = setting(0.99, "AdamW's memory of its square", low=0, high=1, below_high=True)
    eps: float = setting(1e-8, "AdamW's epsilon", low=0, above_low=True, high=1)
    clip: float = setting(1.0, "largest norm of the gradient; 0: no limit", low=0, high=10**6)
    seed: int = setting(0, "seed of everything random", low=0, high=2**63 - 1)
    threads: int = setting(0, "CPU threads; 0: one for each core", low=0, high=4096)
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda"))
    precision: str = setting("auto", "number format of the products", choices=("auto", "float32", "bfloat16"))
    kernel: str = setting("auto", "code that runs the recurrence", choices=("auto", "eager", "native"))
    eval_every: int | None = setting(None, "steps between validations", low=1, high=MANY)
    save_every: int | None = setting(None, "steps between checkpoints", low=1, high=MANY)
    sample_every: int | None = setting(None, "steps between sample texts", low=1, high=MANY)
    patience: int = setting(0, "validations without a better score after which to stop; 0: never", low=0, high=10**6)

    def __post_init__(self) -> None:
        _Section.__post_init__(self)
        _check_together({one.key: getattr(self, one.name) for one in _SETTINGS["train"]}, {})

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


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run's configuration, and where each value came from.

    Attributes:
        config: The configuration; a budget is always set in it.
        sources: For each key: `default`, `configs/minute.yaml:12`, `env LSTMLM_TRAIN_LR`, `--lr`.
    """

    config: RunConfig
    sources: dict[str, str]


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


_SETTINGS: dict[str, list[Setting]] = {section.section: _declared(section) for section in SECTIONS}
_KEYS: dict[str, Setting] = {one.key: one for group in _SETTINGS.values() for one in group}


def keys() -> dict[str, Setting]:
    """Return every setting by its key, in the order of declaration."""
    return dict(_KEYS)


def key_table() -> str:
    """Return the settings as a Markdown table: key, values, default, meaning."""
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for one in _KEYS.values():
        default = one.none_word if one.default is None else write(one.default)
        rows.append(f"| `{one.key}` | {one.allowed} | {default} | {one.help} |")
    return "\n".join(rows) + "\n"


# What people call a setting elsewhere, and what it is called here.
ALIASES = {
    "train.lr": "learning_rate learningrate rate max_lr base_lr step_size alpha",
    "train.batch": "batch_size batchsize bs minibatch streams",
    "train.window": "seq_len seq_length sequence_length seqlen bptt context context_length block_size time_steps tbptt",
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
    names |= {one.name: one.key for one in _KEYS.values()}
    given = key.strip().lstrip("-").replace("-", "_").lower()
    for guess in (given, given.replace("_", ".", 1)):
        if guess in _KEYS:
            return guess
    last = given.rpartition(".")[2]
    return names.get(last) or names.get(closest(last, names)) or closest(given, _KEYS, 0.8)


def _known(key: object, source: str) -> Setting:
    """Return the setting of a key, or refuse the key."""
    if isinstance(key, str) and key in _KEYS:
        return _KEYS[key]
    guess = _meant(key) if isinstance(key, str) else ""
    section = str(key).partition(".")[0]
    known = ", ".join(one.name for one in _KEYS.values() if one.section == section)
    if guess:
        hint = f"Did you mean {guess}?"
    elif known:
        hint = f"In {section}. there are {known}."
    else:
        hint = "Sections are " + ", ".join(f"{one.section}." for one in SECTIONS).rstrip(".") + "."
    raise ConfigError(f"unknown key{at(source)}: expected a setting, found {describe(key)}. {hint}")


def _check_together(values: Mapping[str, Value], sources: Mapping[str, str]) -> None:
    """Refuse values that are each allowed and cannot work together."""
    given = [key for key in BUDGETS if values[key] is not None]
    if len(given) > 1:
        found = " and ".join(f"{key} = {write(values[key])}{at(sources.get(key, ''))}" for key in given)
        raise ConfigError(f"train: expected one budget of minutes, steps and epochs, found {found}. Keep one of them.")
    if values["train.kernel"] == "native" and values["train.device"] == "cuda":
        places = "".join(at(sources.get(key, "")) for key in ("train.kernel", "train.device"))
        message = f"train.kernel{places}: expected auto or eager with train.device cuda, found native"
        raise ConfigError(f"{message}. Write train.device as cpu, or leave the kernel at auto.")


def resource_dir(name: str) -> Path:
    """Return the folder of files that travel with the program.

    Args:
        name: `configs` or `data`.

    Returns:
        `<package>/<name>` where installed from a wheel, `<checkout>/<name>` otherwise.

    Raises:
        SystemProblem: Neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise SystemProblem(f"{shorten(str(package / name), 200)}: expected a folder, found none. Install lstmlm again.")


def presets() -> list[str]:
    """Return the names of the configurations that come with the program."""
    return sorted(path.stem for path in resource_dir("configs").glob("*.yaml"))


def parse_yaml(text: str, source: str) -> dict[str, Located]:
    """Return the settings of a strict YAML text, each of its type and within its range.

    Sections (`train:` and below it `lr: 1e-3`) and dotted keys (`train.lr: 1e-3`) are the same. A value is read by
    its key's type: `3e-4` is a number, and `010`, `1_000`, `0x10`, `12:30`, `on`, `.inf` and `"3"` are refused.

    Args:
        text: The YAML text.
        source: The file's name, for messages and `Located.source`.

    Returns:
        Located values by key.

    Raises:
        ConfigError: Not strict YAML, an unknown key, or a value out of range; with the line.
    """
    found = {}
    for entry in entries(text, source):
        where = f"{source}:{entry.line}"
        if not entry.text and not entry.quoted and entry.key in {one.section for one in SECTIONS}:
            continue  # a section whose lines are all commented out
        value = _known(entry.key, where).parse(entry.text, where, entry.quoted)
        found[entry.key] = Located(value, entry.line, where)
    return found


def load_preset(name_or_path: str) -> Layer:
    """Return the layer of a configuration that comes with the program, or of a file.

    Args:
        name_or_path: A name from `presets`; with a path separator, or ending in .yaml or .yml, a file.

    Returns:
        Its name as shown in sources (`configs/minute.yaml`, or the path as given), and its settings.

    Raises:
        ConfigError: No such preset or file, or something wrong in it.
    """
    name = str(name_or_path)
    if "/" in name or "\\" in name or name.lower().endswith((".yaml", ".yml")):
        return name, parse_yaml(read_file(Path(name), name), name)
    known = presets()
    if name not in known:
        guess = closest(name, known)
        hint = f"Did you mean {guess}?" if guess else "A file is named with its folder or its ending, as in ./my.yaml."
        raise ConfigError(f"--config: expected one of {', '.join(known)}, or a file, found {describe(name)}. {hint}")
    shown = f"configs/{name}.yaml"
    return shown, parse_yaml(read_file(resource_dir("configs") / f"{name}.yaml", shown), shown)


def parse_assignments(assignments: Iterable[str]) -> Layer:
    """Return the layer of `--set` assignments such as `train.lr=3e-4`; of two for one key the later holds.

    Raises:
        ConfigError: No `=`, an unknown key, or a value out of range.
    """
    found = {}
    for assignment in assignments:
        key, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise ConfigError(f"--set: expected KEY=VALUE, found {describe(assignment)}. Write --set train.lr=3e-4.")
        found[key] = Located(_known(key, "--set").parse(text, "--set"), None, f"--set {key}")
    return "--set", found


def parse_environment(environ: Mapping[str, str]) -> Layer:
    """Return the layer of the variables `LSTMLM_<SECTION>_<KEY>`; an empty one sets nothing.

    Variables that begin with LSTMLM_ and no section are for others to read.

    Raises:
        ConfigError: An unknown key of a section, or a value out of range.
    """
    variables = {one.env: one for one in _KEYS.values()}
    sections = tuple(f"LSTMLM_{one.section.upper()}_" for one in SECTIONS)
    found = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(sections) or not text:
            continue
        source = f"env {name}"
        if name not in variables:
            guess = closest(name, variables)
            hint = f"Did you mean {guess}?" if guess else "Unset it."
            raise ConfigError(f"environment: expected the name of a setting, found {describe(name)}. {hint}")
        one = variables[name]
        found[one.key] = Located(one.parse(text.strip(), source), None, source)
    return "env", found


def parse_flags(values: Mapping[str, Value]) -> Layer:
    """Return the layer of flags, by key; None: the flag was not given.

    Raises:
        ConfigError: A value out of range, named by its flag.
    """
    found = {}
    for key, value in values.items():
        if value is not None:
            one = _known(key, "flags")
            found[key] = Located(one.check(value, one.flag), None, one.flag)
    return "flags", found


def resolve(layers: Iterable[tuple[str, Mapping[str, Located | Value]]]) -> Resolved:
    """Lay layers over the defaults, the later over the earlier.

    A budget (minutes, steps, epochs) replaces another that an earlier layer set; two in one layer are refused.
    None at the end means 3 minutes.

    Args:
        layers: For each its name, and its values by key, located or bare (their source is then the layer's name).

    Returns:
        The configuration, and for each key where its value came from.

    Raises:
        ConfigError: An unknown key, a wrong type, a value out of range, or values that cannot work together.
    """
    values: dict[str, Value] = {key: one.default for key, one in _KEYS.items()}
    sources = dict.fromkeys(values, "default")
    for name, layer in layers:
        here: dict[str, Value] = dict.fromkeys((*BUDGETS, "train.kernel", "train.device"))
        for key, entry in layer.items():
            located = entry if isinstance(entry, Located) else Located(entry, None, name)
            values[key] = _known(key, located.source).check(located.value, located.source)
            sources[key] = located.source
            if key in BUDGETS:
                here[key] = values[key]
        _check_together(here, sources)
        for chosen in (key for key in BUDGETS if here[key] is not None):
            for other in BUDGETS:
                if other != chosen and values[other] is not None:
                    values[other] = None
                    sources[other] += f", replaced by {sources[chosen]}"
    if all(values[key] is None for key in BUDGETS):
        values["train.minutes"], sources["train.minutes"] = DEFAULT_MINUTES, "default"
    _check_together(values, sources)
    return Resolved(_build(values), sources)


def _build(values: Mapping[str, Value]) -> RunConfig:
    """Return the configuration with the given values by key; the others are defaults."""
    groups = []
    for section in SECTIONS:
        given = {one.name: values[one.key] for one in _SETTINGS[section.section] if one.key in values}
        groups.append(section(**given))
    return RunConfig(*groups)


def flat(config: RunConfig) -> dict[str, Value]:
    """Return every value by its key: a layer for `resolve`, once it is given a name."""
    return {key: getattr(getattr(config, one.section), one.name) for key, one in _KEYS.items()}


def to_dict(config: RunConfig) -> dict[str, dict[str, Value]]:
    """Return the configuration as plain nested dicts, fit for JSON."""
    nested: dict[str, dict[str, Value]] = {section.section: {} for section in SECTIONS}
    for key, value in flat(config).items():
        section, _, name = key.partition(".")
        nested[section][name] = value
    return nested


def from_dict(nested: object, source: str = "") -> RunConfig:
    """Return the configuration that `to_dict` wrote, trusting nothing in it; missing keys are defaults.

    Args:
        nested: Anything, such as a part of a checkpoint's JSON.
        source: Where it came from, for messages.

    Raises:
        ConfigError: Not nested dicts, an unknown key, a wrong type or range, or values that cannot work together.
    """
    values: dict[str, Value] = {}
    sections = {section.section for section in SECTIONS}
    if not isinstance(nested, dict):
        raise ConfigError(f"configuration{at(source)}: expected a mapping, found {describe(nested)}.")
    for section, group in nested.items():
        if section not in sections:
            _known(section, source)
        if not isinstance(group, dict):
            raise ConfigError(f"{section}{at(source)}: expected a mapping, found {describe(group)}.")
        for name, value in group.items():
            key = f"{section}.{name}" if isinstance(name, str) else name
            values[key] = _known(key, source).check(value, source)
    return _build(values)


def to_yaml(config: RunConfig, sources: Mapping[str, str] | None = None) -> str:
    """Return the configuration as YAML with every key, which `parse_yaml` reads back to the same values.

    Args:
        config: The configuration.
        sources: As in `Resolved`; if given, each line ends with its source as a comment (`--print-config`).

    Returns:
        The text, ending in a newline.
    """
    lines: list[str] = []
    values = flat(config)
    for key, one in _KEYS.items():
        if f"{one.section}:" not in lines:
            lines.append(f"{one.section}:")
        line = f"  {one.name}: {one.none_word if values[key] is None else write(values[key])}"
        lines.append(f"{line:<30} # {shorten(sources[key], 160)}" if sources else line)
    return "\n".join(lines) + "\n"
