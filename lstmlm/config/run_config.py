"""Put a run's configuration together from layers: YAML files, environment, `--set` and flags over defaults.

`resolve` is the entry point, called by `train`; `to_dict` and `from_dict` store a configuration in a checkpoint and read it
back. The names of `schema` can be had from here.

    defaults  <  --config files in order  <  LSTMLM_<SECTION>_<KEY>  <  --set and flags
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lstmlm.config.schema import (
    BUDGETS,
    DEFAULT_MINUTES,
    FORMER,
    KEYS,
    SECTIONS,
    SETTINGS,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    check_together,
    key_table,
    keys,
    known,
    unknown,
)
from lstmlm.config.setting import NONE_WORDS, Located, Setting, Value, at, closest, describe, shorten, write
from lstmlm.errors import ConfigError, SystemProblem, printable

__all__ = [
    "BUDGETS",
    "DEFAULT_MINUTES",
    "DataConfig",
    "Layer",
    "Located",
    "ModelConfig",
    "Resolved",
    "RunConfig",
    "Setting",
    "TrainConfig",
    "Value",
    "flat",
    "from_dict",
    "key_table",
    "keys",
    "load_preset",
    "parse_assignments",
    "parse_environment",
    "parse_yaml",
    "presets",
    "resolve",
    "resource_dir",
    "to_dict",
    "to_yaml",
]

Layer: TypeAlias = tuple[str, dict[str, Located]]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A run's configuration, and where each value came from.

    Attributes:
        config: The configuration; a budget is always set in it.
        sources: For each key: `default`, `configs/minute.yaml:12`, `env LSTMLM_TRAIN_LR`, `--lr`.
    """

    config: RunConfig
    sources: dict[str, str]


def resource_dir(name: str) -> Path:
    """Return the folder of files that travel with the program.

    Args:
        name: `configs` or `data`.

    Returns:
        `<package>/bundled/<name>` where installed from a wheel, `<checkout>/<name>` otherwise.

    Raises:
        SystemProblem: Neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    bundled = package / "bundled" / name
    for folder in (bundled, package.parent / name):
        if folder.is_dir():
            return folder
    raise SystemProblem(f"{shorten(str(bundled), 200)}: expected a folder, found none. Install lstmlm again.")


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
    from lstmlm.config.strict_yaml import entries  # PyYAML takes 5 ms, and most commands read no YAML

    found = {}
    strange: Located | None = None  # the first section that does not exist; a key in it may say more than its name
    for entry in entries(text, source, lambda key: KEYS[key].allowed if key in KEYS else "a setting"):
        where = f"{source}:{entry.line}"
        nothing = entry.mapping or not (entry.text or entry.quoted)  # all lines of a section may be commented out
        if nothing and entry.key in SETTINGS:
            continue
        if entry.mapping and entry.key not in KEYS:
            strange = strange or Located(entry.key, entry.line, where)
            continue
        if entry.key in SETTINGS:
            message = f"{entry.key}{at(where)}: expected a section of settings, found {describe(entry.text)}"
            raise ConfigError(f"{message}. Write them below it, each indented by two blanks.")
        if entry.mapping:
            raise known(entry.key, where).refuse("a mapping", where)
        value = known(entry.key, where).parse(entry.text, where, entry.quoted)
        found[entry.key] = Located(value, entry.line, where)
    if strange:
        raise unknown(strange.value, strange.source)
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
    from lstmlm.config.strict_yaml import read_file

    name = str(name_or_path)
    ours = presets()
    path = Path(name)
    if "/" in name or "\\" in name or name.lower().endswith((".yaml", ".yml")):
        return name, parse_yaml(read_file(path, name, _like(path, ours)), name)
    if name not in ours:
        guess = closest(name, ours)
        hint = f"Did you mean {guess}?" if guess else "A file is named with its folder or its ending, as in ./my.yaml."
        raise ConfigError(f"--config: expected one of {', '.join(ours)}, or a file, found {describe(name)}. {hint}")
    shown = f"configs/{name}.yaml"
    return shown, parse_yaml(read_file(resource_dir("configs") / f"{name}.yaml", shown), shown)


def _like(path: Path, ours: list[str]) -> str:
    """Guess what was meant by a file that may not exist: a preset, or a file beside it; empty if neither."""
    if path.stem in ours:
        return path.stem
    try:
        beside = [one.name for one in path.parent.iterdir() if one.suffix in (".yaml", ".yml") and one.name != path.name]
    except (OSError, ValueError):
        return ""
    guess = closest(path.name, beside[:1000])
    return str(path.parent / guess) if guess else closest(path.stem, ours)


def parse_assignments(assignments: Iterable[str]) -> Layer:
    """Return the layer of `--set` assignments such as `train.lr=3e-4`; of two for one key the later holds.

    Raises:
        ConfigError: No `=`, an unknown key, or a value out of range.
    """
    found = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigError(f"--set: expected KEY=VALUE, found {describe(assignment)}. Write --set train.lr=3e-4.")
        one = known(key, "--set")
        found[key] = Located(one.parse(_bare(one, text), "--set"), None, f"--set {key}")
    return "--set", found


def _bare(one: Setting, text: str) -> str:
    """Return a value without the white space around it, unless it is a text of any kind, which that may be a part of."""
    return text if one.type is str and not one.choices else text.strip()


def parse_environment(environ: Mapping[str, str]) -> Layer:
    """Return the layer of the variables `LSTMLM_<SECTION>_<KEY>`; an empty one sets nothing.

    Variables that begin with LSTMLM_ and no section are for others to read.

    Raises:
        ConfigError: An unknown key of a section, or a value out of range.
    """
    variables = {one.env: one for one in KEYS.values()}
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
        found[one.key] = Located(one.parse(_bare(one, text), source), None, source)
    return "env", found


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
    values: dict[str, Value] = {key: one.default for key, one in KEYS.items()}
    sources = dict.fromkeys(values, "default")
    for name, layer in layers:
        here: dict[str, Value] = dict.fromkeys((*BUDGETS, "train.kernel", "train.device"))
        for key, entry in layer.items():
            located = entry if isinstance(entry, Located) else Located(entry, None, name)
            values[key] = known(key, located.source).check(located.value, located.source)
            sources[key] = located.source
            if key in BUDGETS:
                here[key] = values[key]
        check_together(here, sources)
        for chosen in (key for key in BUDGETS if here[key] is not None):
            for other in BUDGETS:
                if other != chosen and values[other] is not None:
                    values[other] = None
                    sources[other] += f", replaced by {sources[chosen]}"
    if all(values[key] is None for key in BUDGETS):
        values["train.minutes"], sources["train.minutes"] = DEFAULT_MINUTES, "default"
    check_together(values, sources)
    return Resolved(_build(values), sources)


def _build(values: Mapping[str, Value]) -> RunConfig:
    """Return the configuration with the given values by key; the others are defaults."""
    groups = []
    for section in SECTIONS:
        given = {one.name: values[one.key] for one in SETTINGS[section.section] if one.key in values}
        groups.append(section(**given))
    return RunConfig(*groups)


def flat(config: RunConfig) -> dict[str, Value]:
    """Return every value by its key: a layer for `resolve`, once it is given a name."""
    return {key: getattr(getattr(config, one.section), one.name) for key, one in KEYS.items()}


def to_dict(config: RunConfig) -> dict[str, dict[str, Value]]:
    """Return the configuration as plain nested dicts, fit for JSON."""
    nested: dict[str, dict[str, Value]] = {section.section: {} for section in SECTIONS}
    for key, value in flat(config).items():
        section, _, name = key.partition(".")
        nested[section][name] = value
    return nested


def from_dict(nested: object, source: str = "", ignored: list[str] | None = None) -> RunConfig:
    """Return the configuration that `to_dict` wrote, here or in an earlier version, trusting nothing in it.

    Missing keys are defaults, and settings of `FORMER` take their names of today.

    Args:
        nested: Anything, such as a part of a checkpoint's JSON.
        source: Where it came from, for messages.
        ignored: Takes the keys of `train.` that do not exist, as a later version may have written them. None: they are refused.

    Raises:
        ConfigError: Not nested dicts, an unknown key, a wrong type or range, or values that cannot work together.
    """
    values: dict[str, Value] = {}
    if not isinstance(nested, dict):
        raise ConfigError(f"configuration{at(source)}: expected a mapping, found {describe(nested)}.")
    for section, group in nested.items():
        if section not in SETTINGS:
            raise unknown(section, source)
        if not isinstance(group, dict):
            raise ConfigError(f"{section}{at(source)}: expected a mapping, found {describe(group)}.")
        for name, value in group.items():
            key = FORMER.get(was := f"{section}.{name}", was)
            if key is None:
                continue
            if ignored is not None and section == "train" and key not in KEYS:
                ignored.append(key)
                continue
            values[key] = known(key, source).check(value, source)
    return _build(values)


def _as_yaml(one: Setting, value: Value) -> str:
    """Return a setting's value as YAML, a text in quotes where it could be taken for something else."""
    if value is None:
        return one.none_word
    plain = (
        not isinstance(value, str)
        or (value in one.choices and not one.optional)
        or (re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value) and value not in NONE_WORDS)
    )
    return write(value) if plain else '"' + printable(str(value).replace("\\", "\\\\").replace('"', '\\"')) + '"'


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
    for key, one in KEYS.items():
        if f"{one.section}:" not in lines:
            lines.append(f"{one.section}:")
        line = f"  {one.name}: {_as_yaml(one, values[key])}"
        lines.append(f"{line:<30} # {shorten(sources[key], 160)}" if sources else line)
    return "\n".join(lines) + "\n"
