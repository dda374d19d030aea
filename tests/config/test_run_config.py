import ast
import codecs
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lstmlm.config import run_config, strict_yaml
from lstmlm.config.run_config import (
    DataConfig,
    Located,
    ModelConfig,
    RunConfig,
    Setting,
    TrainConfig,
    Value,
    flat,
    from_dict,
    key_table,
    keys,
    load_preset,
    parse_assignments,
    parse_environment,
    parse_yaml,
    presets,
    resolve,
    resource_dir,
    to_dict,
    to_yaml,
)
from lstmlm.config.schema import ALIASES, MAX_LAYERS
from lstmlm.errors import ConfigError

KEYS = keys()
BUDGETS = ("train.minutes", "train.steps", "train.epochs")

# What YAML 1.1, Python or a hurried person would write, and no number or boolean of ours.
ODD_WORDS = """
nan NaN .nan inf -inf .inf -.Inf 010 -010 00 0x10 0o17 0b1 1_000 12:30 1e e3 1e3e3 --1 +-1 1,5 1.2.3 . - + 5% 3m
٣ １ ½ 1e999999 on yes true ~ none Null [] {} [1] 2001-01-01 1j 1/2 &a *a << !!int
"""
ODD_NUMBERS = [
    *ODD_WORDS.split(),
    "\u202e1",
    "1\u200b",
    "x\x07y",
    "9" * 5000,
    "1 000",
    "{a: 1}",
    '"1"',
    "'1'",
    "|\n  1",
]
ODD_NUMBERS += [">\n  1", "!!int 1", "!!float 1", "&a 1"]
NO_BOOLEANS = "on off yes no y n True FALSE 1 0 null auto ~ \"true\" 'false' [true] {} truee 2 nan"
ODD_BOOLEANS = [*NO_BOOLEANS.split(), "", "!!bool true"]
ODD_TEXTS = [
    "''",
    '""',
    "",
    "null",
    "~",
    "[a]",
    "{}",
    "!!str x",
    "x" * 300,
    '"\\e[31m"',
    '"\\0"',
    "../char",
    "123",
    "🎲",
]


FREE_TEXTS = ["*.md,*.txt", "a: b # c", "text", "null", "auto", "é*", "#x", "- y", "true", "1", "a.b c"]
FREE_TEXTS += ["\n\n\n", "\f", "<|endoftext|>", "\x1e\U0001f600 \\n \"'\x85\u2028\x7f"]


def free(setting: Setting) -> bool:
    """Say whether nearly any text is a value of a setting."""
    return setting.type is str and setting.optional


def bad_yaml_values(setting: Setting) -> list[str]:
    """Return YAML values, written after `key: `, that a setting must refuse."""
    if setting.type is bool:
        return ODD_BOOLEANS
    if free(setting):
        return ["''", '""', "[a]", "!!str x", "x" * 300, '"\\e[31m"', '"\\0"']
    if setting.type is str:
        return ODD_TEXTS
    bad = list(ODD_NUMBERS)
    if setting.type is int:
        bad += ["1.0", "1.5", "1e1", "1e3", ".5"]
    else:
        bad += ["1e400", "-1e400", "1e-400"]
    if not setting.optional:
        bad += ["null", "auto", ""]
    if setting.low is not None:
        bad += [f"{setting.low - 1}"] + ([f"{setting.low}"] if setting.above_low else [])
    if setting.high is not None:
        bad += [f"{setting.high + 1}"] + ([f"{setting.high}"] if setting.below_high else [])
    return bad


HOSTILE = [(key, value) for key, setting in KEYS.items() for value in bad_yaml_values(setting)]


def good_values(setting: Setting) -> st.SearchStrategy[Value]:
    """Return the values that a setting must take."""
    some: st.SearchStrategy[Value]
    if setting.choices:
        some = st.sampled_from(setting.choices)
    elif setting.type is bool:
        some = st.booleans()
    elif free(setting):
        some = st.sampled_from([text for text in FREE_TEXTS if setting.accept is None or setting.accept(text)])
    elif setting.type is str:
        some = st.sampled_from(["utf-8", "latin-1", "cp1252", "utf-16", "koi8_r"])
    elif setting.type is int:
        assert setting.low is not None
        assert setting.high is not None
        some = st.integers(int(setting.low), int(setting.high))
    else:
        some = st.floats(setting.low, setting.high, exclude_min=setting.above_low, exclude_max=setting.below_high)
    return st.none() | some if setting.optional else some


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """Return a configuration anywhere in the ranges, with at most one budget."""
    values = {key: draw(good_values(setting)) for key, setting in KEYS.items()}
    kept = draw(st.sampled_from(BUDGETS))
    values |= {key: None for key in BUDGETS if key != kept}
    if values["train.kernel"] in ("native", "triton"):
        values["train.device"] = "auto"
    if int(values["model.members"] or 1) * int(values["model.layers"] or 1) > MAX_LAYERS:
        values["model.members"] = 1
    return resolve([("drawn", values)]).config


def refusal(text: str, source: str = "my.yaml") -> str:
    """Return the message with which a YAML text is refused."""
    with pytest.raises(ConfigError) as caught:
        resolve([(source, parse_yaml(text, source))])
    return str(caught.value)


def assert_helpful(message: str) -> None:
    """Check what every message promises: few lines, a moderate length, nothing that moves a terminal's cursor."""
    assert message.count("\n") < 6
    assert len(message) < 1000
    assert all(character.isprintable() for character in message)
    assert "Traceback" not in message


def test_config_hostile_cases_are_many() -> None:
    """The schema yields at least the promised 120 hostile values, and some for every key."""
    assert len(HOSTILE) >= 120
    assert {key for key, _ in HOSTILE} == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_config_refuses_every_bad_value_of_every_key(key: str) -> None:
    """A bad value exits 2 and names the key, file, line and, for a plain value, what is allowed; nested or dotted."""
    section, _, name = key.partition(".")
    for value in bad_yaml_values(KEYS[key]):
        for text, line in ((f"{key}: {value}\n", 1), (f"# first\n{section}:\n  {name}: {value}\n", 3)):
            with pytest.raises(ConfigError) as caught:
                parse_yaml(text, "my.yaml")
            message = str(caught.value)

            assert caught.value.exit_code == 2
            assert_helpful(message)
            # PyYAML refuses a control character before it reads the first line, and a block that ends too early as a whole.
            if "\x07" not in value and not ("\n" in value and line == 3):
                assert f"{key} (my.yaml:{line}" in message, value
                assert f"expected {KEYS[key].allowed}, found " in message, value


@pytest.mark.parametrize("key", KEYS)
def test_config_refuses_the_same_values_outside_yaml(key: str) -> None:
    """Environment and --set refuse what is no value, naming the variable or --set."""
    setting = KEYS[key]
    odd = [text for text in ("x" * 300, "\x1b[31m", "a\tb") if len(text) > 256 or (setting.accept and not setting.accept(text))]
    for value in odd if free(setting) else ("nan", "0x10", "1_000", "on", "{}", "🎲"):
        with pytest.raises(ConfigError, match=f"env {setting.env}") as caught:
            parse_environment({setting.env: value})
        assert_helpful(str(caught.value))
        with pytest.raises(ConfigError, match="--set") as caught:
            parse_assignments([f"{key}={value}"])
        assert_helpful(str(caught.value))


@pytest.mark.parametrize("key", KEYS)
def test_from_dict_refuses_wrong_types_for_every_key(key: str) -> None:
    """A checkpoint's configuration is typed strictly: no conversions but int to float."""
    setting = KEYS[key]
    wrong: list[object] = [[], {}, [1], {"a": 1}, math.nan, math.inf, -math.inf, 10**5000, b"x", object()]
    wrong += ["", "x" * 10**6, "\x1b[31m"]
    wrong += [] if setting.optional else [None]
    wrong += [] if setting.type is bool else [True]
    wrong += [0, 1] if setting.type in (bool, str) else ["1"]
    wrong += [1.0] if setting.type is int else []
    section, _, name = key.partition(".")
    for value in wrong:
        with pytest.raises(ConfigError, match=re.escape(key)) as caught:
            from_dict({section: {name: value}}, "best.safetensors")
        assert "best.safetensors" in str(caught.value)
        assert_helpful(str(caught.value))


SHAPES: list[object] = [None, [], "x", 1, {"model": None}, {"model": []}, {1: {}}, {"train.lr": {}}, {"zzz": {}}]
SHAPES += [{"model": {1: 2}}, {"model": {"hiden": 1}}, {"train": {"minutes": 1.0, "steps": 2}}]


@pytest.mark.parametrize("nested", SHAPES)
def test_from_dict_refuses_wrong_shapes(nested: object) -> None:
    """Anything but sections of known keys with one budget is refused."""
    with pytest.raises(ConfigError) as caught:
        from_dict(nested, "x")
    assert_helpful(str(caught.value))


SYNTAX = {
    "tab": "train:\n\tlr: 1\n",
    "alias": "train.lr: &a 1\ntrain.clip: *a\n",
    "merge": "model: {<<: {hidden: 1}}\n",
    "tag": "!!python/object/apply:os.system ['true']\n",
    "tag of a value": "train.lr: !!python/name:os.system x\n",
    "duplicate": "train.lr: 1\ntrain.lr: 1\n",
    "duplicate nested and dotted": "train:\n  lr: 1\ntrain.lr: 1\n",
    "duplicate section": "train:\n  lr: 1\ntrain:\n  clip: 1\n",
    "list root": "- train.lr: 1\n",
    "scalar root": "train.lr\n",
    "no blank after the colon": "train.lr:1\n",
    "two documents": "train.lr: 1\n---\ntrain.clip: 2\n",
    "directive": "%YAML 1.1\n---\ntrain.lr: 1\n",
    "tag directive": "%TAG ! tag:x,2000:\n---\ntrain.lr: 1\n",
    "huge directive": "%YAML " + "9" * 5000 + ".1\n---\na: 1\n",
    "escape out of range": 'train.lr: "\\UFFFFFFFF"\n',
    "surrogate escape": '"\\ud800": 1\n',
    "NUL": "train.lr: 1\0\n",
    "ESC": "train.lr: \x1b[31m\n",
    "escaped ESC": '"\\e]0;title\\a": 1\n',
    "lone surrogate": "train.lr: \ud800\n",
    "unclosed": "train: {lr: 1\n",
    "unclosed quote": 'train.lr: "1\n',
    "bad indent": "train:\n    lr: 1\n  clip: 1\n",
    "mapping for a value": "train.lr: {a: 1}\n",
    "empty mapping for a value": "train.lr: {}\n",
    "empty unknown section": "zzz: {}\n",
    "unknown empty key": "zzz:\n",
    "value for a section": "train: 3\n",
    "quoted nothing for a section": "train: ''\n",
    "section in a section": "train:\n  train.lr: 1\n",
    "complex key": "? {a: 1}\n: 1\n",
    "list key": "? [a]\n: 1\n",
    "null key": ": 1\n",
    "number key": "1: 1\n",
    "boolean key": "on: 1\n",
    "very long key": "k" * 1000 + ": 1\n",
    "two budgets": "train: {minutes: 1, steps: 1}\n",
    "kernel and device": "train: {kernel: native, device: cuda}\n",
}


@pytest.mark.parametrize("text", SYNTAX.values(), ids=SYNTAX)
def test_config_refuses_what_is_not_strict_yaml(text: str) -> None:
    """Everything of YAML that sections and plain values do not need is refused with one short message."""
    assert_helpful(refusal(text))


BOMBS = {
    "10 MB of keys": "train.lr: 1\n" * 850_000,
    "10 MB of comment": "#" * 10_000_000,
    "10 MB of blanks": " " * 10_000_000,
    "64 kB of newlines": "\n" * 65_000 + "x",
    "64 kB of words": "train.lr: " + "x " * 32_000,
    "64 kB in quotes": 'train.lr: "' + "x " * 32_000 + '"',
    "64 kB block": "train.lr: |\n" + " x\n" * 21_000,
    "open flow lists": "[" * 65_000,
    "open flow mappings": "{" * 65_000,
    "nested flow mappings": "{a: " * 16_000,
    "open block lists": "- " * 32_000,
    "open keys": "? " * 32_000,
    "deep sections": "".join("{}a:\n".format(" " * depth) for depth in range(350)),
    "aliases of aliases": "a: &a [x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghi")),
    "5,000 digits": "train.steps: " + "9" * 5000,
    "5,000 digits after the point": "train.lr: 0." + "0" * 5000 + "1",
    "5,000 digit exponent": "train.lr: 1e" + "9" * 5000,
    "many unknown keys": "".join(f"key{i}: 1\n" for i in range(5000)),
    "many directives": "%A b\n" * 13_000 + "---\na: 1\n",
    "long tag": "!" + "a" * 60_000 + " 1",
    "long anchor": "&" + "a" * 60_000 + " 1",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_config_refuses_bombs_at_once(text: str, tmp_path: Path) -> None:
    """A bomb costs a fraction of a second (the bound here is wide, for slow machines), as a text and as a file."""
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    begun = time.process_time()
    message = refusal(text)
    with pytest.raises(ConfigError) as caught:
        load_preset(str(path))
    seconds = time.process_time() - begun

    assert_helpful(message)
    assert_helpful(str(caught.value).replace(str(path), "bomb.yaml"))
    assert seconds < 3


def test_reader_counts_levels_for_a_caller_that_takes_any_key() -> None:
    """The reader alone stops at 20 levels, whatever its caller accepts."""
    text = "".join(" " * depth + "a:\n" for depth in range(19)) + " " * 19 + "a: 1\n"

    assert len(list(strict_yaml.entries(text, "x"))) == 20
    with pytest.raises(ConfigError, match="20 levels"):
        list(strict_yaml.entries(text.replace("a: 1", "a:\n" + " " * 20 + "a: 1"), "x"))


NUMBERS = {"3e-4": 3e-4, "1e-3": 1e-3, ".5": 0.5, "2.": 2.0, "2": 2.0, "+1": 1.0, "1E-2": 0.01, "1e-08": 1e-8}
NUMBERS |= {"0.0": 0.0, "0": 0.0, "-0": 0.0}


@pytest.mark.parametrize(("text", "value"), [*NUMBERS.items(), ("null", None), ("auto", None)])
def test_config_reads_numbers_as_people_write_them(text: str, value: float | None) -> None:
    """YAML 1.2 floats are floats, an int is taken for a float, null and auto leave the choice open."""
    found = parse_yaml(f"train:\n  lr: {text}  # comment\n", "x")

    assert {"train.lr": (value, 2, "x:2")} == found


NOTHING = ["", "\n", "# nothing\n", "---\n", "---\n...\n", "{}", "model:\n", "model: {}\n", "\ufeff", "\ufefftrain:\n"]


@pytest.mark.parametrize("text", [*NOTHING, "model:\n  # hidden: 3\ntrain:\n"])
def test_config_takes_files_that_set_nothing(text: str) -> None:
    """An empty file, or one whose lines are commented out, leaves the defaults."""
    assert parse_yaml(text, "x") == {}


def test_config_takes_flow_quotes_crlf_and_bom() -> None:
    """Flow style, quoted keys and texts, Windows line ends and a byte order mark are no mistakes."""
    text = '\ufeffmodel: {hidden: 7, bias: false}\r\n"data.encoding": "latin-1"\r\ntrain.device: \'cpu\'\r\n'
    found = {key: value for key, (value, _, _) in parse_yaml(text, "x").items()}

    assert found == {"model.hidden": 7, "model.bias": False, "data.encoding": "latin-1", "train.device": "cpu"}


MEANT = """
train.lrr: 1 => train.lr
lr: 1 => train.lr
Train.LR: 2 => train.lr
train_lr: 2 => train.lr
--lr: 1 => train.lr
learning-rate: 1 => train.lr
train.learning_rate: 1 => train.lr
model.hiden: 1 => model.hidden
hidden_size: 1 => model.hidden
train.droput: 0.1 => model.dropout
model.layernorm: true => model.layer_norm
val_split: 0.1 => data.val_fraction
bptt: 2 => train.window
max_steps: 2 => train.steps
model: {num_layers: 2} => model.layers
train: {batch_size: 2} => train.batch
train: {seq_len: 2} => train.window
training: {epochs: 2} => train.epochs
training: {adam: {}} => train
training: 3 => train
train: 3 =>
optimizer: {weight_decay: 2} => train.weight_decay
train.zzzz: 3 =>
zzzz: {} =>
train.device: gpu => cuda
train.device: coda => cuda
train.device: tpu-v4-pod =>
data.tokenizer: chars => char
train.precision: bf16 => bfloat16
train.precision: fp32 => float32
model.bias: on => true
model.bias: No => false
model.bias: TRUE => true
train.steps: 1_000 => 1000
train.steps: 010 => 10
train.steps: 0x10 => 16
train.steps: 1e3 => 1000
train.steps: 10.0 => 10
train.steps: 12:30 =>
train.lr: 0_1 => 1
train.lr: ~ => auto
train.minutes: none => null
train.batch: => auto
"""


@pytest.mark.parametrize("case", MEANT.strip().splitlines())
def test_config_offers_what_was_meant(case: str) -> None:
    """A near miss of a key, a choice or a notation is answered with what was meant, and the offer works."""
    text, offer = (part.strip() for part in case.split("=>"))
    message = refusal(text)
    offered = re.search(r"Did you mean (.+)\?$", message)

    assert offer == (offered[1] if offered else "")
    if offer and text.partition(":")[0] in KEYS:
        parse_yaml(f"{text.partition(':')[0]}: {offer}", "x")


def test_config_offers_a_number_without_its_quotes() -> None:
    """In quotes a text is a text: a quoted number is refused, with the number."""
    assert refusal('train.steps: "30"').endswith('found the quoted text "30". Without quotes: 30.')


def test_config_aliases_lead_to_settings() -> None:
    """Each other name leads to one setting that exists, and none hides a setting's own name."""
    names = [name for others in ALIASES.values() for name in others.split()]

    assert len(set(names)) == len(names)
    assert set(ALIASES) <= set(KEYS)
    assert not set(names) & {setting.name for setting in KEYS.values()}


def test_keys_cover_every_field_once() -> None:
    """Every field of the dataclasses is a setting with help and a valid default, and no two share a flag."""
    expected = [f"{section}.{name}" for section, group in to_dict(RunConfig()).items() for name in group]

    assert expected == list(KEYS)
    assert len({setting.flag for setting in KEYS.values()}) == len(KEYS)
    for setting in KEYS.values():
        assert setting.default == setting.check(setting.default)
        assert setting.help
        assert not setting.help.endswith(".")
        assert "|" not in setting.help + setting.allowed
        assert setting.type is not int or (setting.low is not None and setting.high is not None)


def test_key_table_has_a_row_for_every_key() -> None:
    """The README's table has the head, then one row of four cells for each key."""
    rows = key_table().splitlines()

    assert len(KEYS) + 2 == len(rows)
    assert [f"`{key}`" for key in KEYS] == [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]]
    assert {5} == {row.count("|") for row in rows}


@pytest.mark.parametrize("setting", KEYS.values(), ids=KEYS)
def test_config_takes_the_ends_of_each_range(setting: Setting) -> None:
    """What a message calls allowed is allowed: both ends, each choice, and the word for None."""
    texts = list(setting.choices)
    if setting.low is not None and not setting.above_low:
        texts.append(str(setting.low))
    if setting.high is not None and not setting.below_high:
        texts.append(str(setting.high))
    texts += ["true", "false"] if setting.type is bool else []
    texts += ["auto", "null"] if setting.optional else []
    for text in texts or [str(setting.default)]:
        value = parse_yaml(f"{setting.key}: {text}", "x")[setting.key].value

        assert value is None or isinstance(value, setting.type)


@hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(configs())
def test_config_round_trips(drawn: RunConfig) -> None:
    """YAML with and without sources, dicts, JSON and flat values all read back to an equal configuration."""
    sources = dict.fromkeys(KEYS, "my: file\n# \x1b.yaml:3")

    assert drawn == resolve([("x", parse_yaml(to_yaml(drawn), "x"))]).config
    assert drawn == resolve([("x", parse_yaml(to_yaml(drawn, sources), "x"))]).config
    assert drawn == from_dict(to_dict(drawn))
    assert drawn == from_dict(json.loads(json.dumps(to_dict(drawn))))
    assert drawn == resolve([("x", flat(drawn))]).config


PIECES = [
    *KEYS,
    *":[]{},*!>'\"\n|#1\t\r\0\\é\x85\u2028\ufeff\ud800",
    ": ",
    "- ",
    "? ",
    "&a ",
    "!!int ",
    "% ",
    "  ",
    "<<",
]
PIECES += ["train", "model", "---", "...", "x" * 1100, '"\\x', '"\\U', "3e-4", "auto"]


@pytest.mark.slow
@hypothesis_settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=60))
def test_config_reader_raises_nothing_but_config_errors(text: str) -> None:
    """Whatever the text, it is read or refused with a short message."""
    try:
        parse_yaml(text, "x")
    except ConfigError as problem:
        assert_helpful(str(problem))


@pytest.mark.slow
@hypothesis_settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(KEYS)), st.text(max_size=30))
def test_config_values_raise_nothing_but_config_errors(key: str, text: str) -> None:
    """Whatever stands in a variable or after --set, it is a value of the setting's type or refused."""
    try:
        value = parse_assignments([f"{key}={text}"])[1][key].value
    except ConfigError as problem:
        assert_helpful(str(problem))
    else:
        assert value is None or isinstance(value, KEYS[key].type)


@pytest.mark.parametrize("name", presets())
def test_presets_load(name: str) -> None:
    """Every file in configs/ loads by name and by path, says what it is for, and sets something."""
    source, layer = load_preset(name)
    path = resource_dir("configs") / f"{name}.yaml"
    resolved = resolve([(source, layer)])

    assert f"configs/{name}.yaml" == source
    assert resolved.config == resolve([load_preset(str(path))]).config
    assert layer
    assert path.read_text().startswith("# ")
    assert {source} == {resolved.sources[key].partition(":")[0] for key in layer}


def test_article_is_the_article() -> None:
    """configs/article.yaml is one layer without biases, direct readout, and none of the later inventions."""
    model = resolve([load_preset("article")]).config.model

    assert (model.layers, model.bias, model.readout) == (1, False, "direct")
    assert (model.dropout, model.layer_norm, model.residual) == (0.0, False, False)


def test_unknown_preset_lists_those_there_are() -> None:
    """A wrong name is answered with all names, and the nearest where one is near."""
    cases = {"minut": "Did you mean minute?", "Article": "Did you mean article?", "zzz": "./my.yaml", "": "./my.yaml"}
    for name, offer in cases.items():
        with pytest.raises(ConfigError) as caught:
            load_preset(name)
        message = str(caught.value)

        assert ", ".join(presets()) in message
        assert offer in message


def test_config_paths_that_are_no_configuration(tmp_path: Path) -> None:
    """A folder, a FIFO, a device, a missing, binary, UTF-16 or oddly named file is refused for what it is."""
    (tmp_path / "binary.yaml").write_bytes(b"train.lr: \xff\xfe\x80")
    (tmp_path / "wide.yaml").write_bytes(codecs.BOM_UTF16_LE + "train.lr: 1".encode("utf-16-le"))
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "good.yaml").write_text("train.lr: 1")
    os.mkfifo(tmp_path / "pipe.yaml")
    cases = {
        str(tmp_path): "found a folder",
        str(tmp_path / "folder.yaml"): "found a folder",
        str(tmp_path / "pipe.yaml"): "not a regular file",
        "/dev/zero": "not a regular file",
        str(tmp_path / "binary.yaml"): "offset 10",
        str(tmp_path / "wide.yaml"): "UTF-16",
        str(tmp_path / "god.yaml"): "Did you mean",
        "nowhere/minute.yaml": "Did you mean minute?",
        "minute.yml": "Did you mean minute?",
        "nul\0.yaml": "cannot be read",
        "x" * 5000 + ".yaml": "cannot be read",
        "\x1b[31m\n.yaml": "found nothing there",
        "\udcff.yaml": "found nothing there",
        str(tmp_path / "good.yaml" / "x"): "cannot be read",
    }
    for name, words in cases.items():
        with pytest.raises(ConfigError, match=words) as caught:
            load_preset(name)
        assert_helpful(str(caught.value))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_config_unreadable_file(tmp_path: Path) -> None:
    """A file that may not be read is refused with the system's reason."""
    path = tmp_path / "secret.yaml"
    path.write_text("train.lr: 1")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_preset(str(path))


def test_resolve_precedence_and_sources(tmp_path: Path) -> None:
    """Defaults, files in order, environment, then --set and flags: the later wins and its place is remembered."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train:\n  lr: 0.1\n  batch: 1\n  window: 1\n  clip: 1\n")
    second.write_text("train.batch: 2\ntrain.window: 2\ntrain.clip: 2\n")
    environment = {"LSTMLM_TRAIN_WINDOW": "3", "LSTMLM_TRAIN_CLIP": " 3 ", "LSTMLM_TRAIN_SEED": "", "LSTMLM_CACHE": "x"}
    files = [load_preset(str(first)), load_preset(str(second))]
    line = [parse_assignments(["train.clip = 4"]), ("flags", {"model.hidden": Located(5, None, "--hidden")})]
    resolved = resolve([*files, parse_environment(environment), *line, ("last", {"model.layers": 6})])
    train, model = resolved.config.train, resolved.config.model

    assert (train.lr, train.batch, train.window, train.clip, train.seed) == (0.1, 2, 3, 4.0, 0)
    assert (model.hidden, model.layers) == (5, 6)
    assert f"{first}:2" == resolved.sources["train.lr"]
    assert f"{second}:1" == resolved.sources["train.batch"]
    assert resolved.sources["train.window"] == "env LSTMLM_TRAIN_WINDOW"
    assert resolved.sources["train.clip"] == "--set train.clip"
    assert resolved.sources["model.hidden"] == "--hidden"
    assert resolved.sources["model.layers"] == "last"
    assert resolved.sources["train.seed"] == "default"
    assert list(KEYS) == list(resolved.sources)


def test_a_text_keeps_the_white_space_around_it() -> None:
    """What parts documents may begin and end with line ends, by --set and the environment too; all else is taken without."""
    by_set = parse_assignments(["model.document_separator=\n\n", " train.lr = 0.5 ", "data.tokenizer = byte"])
    by_name = parse_environment({"LSTMLM_MODEL_DOCUMENT_SEPARATOR": "\n--\n", "LSTMLM_TRAIN_LR": " 0.5\n"})

    assert [resolve([layer]).config.model.document_separator for layer in (by_set, by_name)] == ["\n\n", "\n--\n"]
    assert [resolve([layer]).config.train.lr for layer in (by_set, by_name)] == [0.5, 0.5]
    assert resolve([by_set]).config.data.tokenizer == "byte"


def test_resolve_shows_each_source() -> None:
    """to_yaml with sources has one line for each key, its source behind it on the same line."""
    resolved = resolve([("evil\n\x1b[2J", {"train.lr": 0.5})])
    lines = to_yaml(resolved.config, resolved.sources).splitlines()
    line = next(line for line in lines if " lr:" in line)

    assert line.partition("# ")[0].rstrip() == "  lr: 0.5"
    assert line.partition("# ")[2] == r"evil\n\x1b[2J"
    assert len(KEYS) == sum("#" in line for line in lines)


def test_auto_is_plain_everywhere() -> None:
    """A setting that is `auto` shows it without quotes, whether that is a word of its own or stands for nothing set."""
    lines = to_yaml(resolve([]).config).splitlines()
    assert {"  split: auto", "  layers: auto", "  device: auto"} <= set(lines)
    assert not [line for line in lines if '"auto"' in line]


def test_resolve_budget() -> None:
    """The latest layer's budget holds; two in one layer are refused; none means three minutes."""
    assert ("minutes", 3.0) == resolve([]).config.train.budget == RunConfig().train.budget
    assert resolve([]).config.train.minutes == 3.0

    resolved = resolve([("a", {"train.minutes": 1}), ("b", {"train.epochs": 2}), ("c", {"train.steps": 7})])

    assert resolved.config.train.budget == ("steps", 7)
    assert (resolved.config.train.minutes, resolved.config.train.epochs) == (None, None)
    assert resolved.sources["train.minutes"] == "a, replaced by b"
    assert resolved.sources["train.epochs"] == "b, replaced by c"

    assert resolve([("a", {"train.epochs": 1}), ("b", {"train.minutes": None})]).config.train.budget == ("epochs", 1.0)
    assert resolve([("a", {"train.epochs": 1}), ("b", {"train.epochs": None})]).config.train.budget == ("minutes", 3.0)

    both = {"train.minutes": Located(1, None, "--minutes"), "train.steps": Located(2, None, "--steps")}
    with pytest.raises(ConfigError, match=r"train.minutes = 1.0 \(--minutes\) and train.steps = 2 \(--steps\)"):
        resolve([("flags", both)])
    with pytest.raises(ConfigError, match="one budget"):
        TrainConfig(steps=1, epochs=1)


def test_resolve_checks_what_it_is_given() -> None:
    """Bare values of a layer are checked like any other, and named by their layer."""
    with pytest.raises(ConfigError, match=r"model.hidden \(layer\): expected a whole number from 1 to 65,536"):
        resolve([("layer", {"model.hidden": 0})])
    with pytest.raises(ConfigError, match=r"unknown key \(layer\).*Did you mean model.hidden\?"):
        resolve([("layer", {"hidden": 1})])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_without_a_range_are_finite(value: float) -> None:
    """A setting without limits still takes no NaN and no infinity, as a value or as digits too large to hold."""
    free = Setting("train.free", float, 0.0, "nothing")

    assert free.parse("-1e300") == -1e300
    with pytest.raises(ConfigError, match="expected a number, found"):
        free.check(value)
    with pytest.raises(ConfigError, match="expected a number, found"):
        free.parse("1e999")


def test_sections_check_themselves() -> None:
    """A section cannot be made with a wrong value, is frozen, and makes floats of ints."""
    with pytest.raises(ConfigError, match=r"model\.layers"):
        ModelConfig(layers=65)
    with pytest.raises(ConfigError, match="at most 320 layers in all members together, found 6 x 54"):
        ModelConfig(layers=54, members=6)
    with pytest.raises(ConfigError, match=r"data\.encoding"):
        DataConfig(encoding="hex")
    with pytest.raises(ConfigError, match=r"train\.kernel"):
        TrainConfig(kernel="native", device="cuda")
    with pytest.raises(FrozenInstanceError):
        RunConfig().train = TrainConfig()  # type: ignore[misc]  # that is the promise

    assert isinstance(TrainConfig(lr=1).lr, float)
    assert ModelConfig(layers=64, members=5).members * 64 == MAX_LAYERS


NO_ENCODINGS = ["hex", "rot13", "undefined", "utf-99", "../utf-8", "utf-8\0", "os", "base64", "x" * 65, " utf-8"]


@pytest.mark.parametrize("encoding", NO_ENCODINGS)
def test_encodings_that_are_none(encoding: str) -> None:
    """Only text encodings of this Python are encodings."""
    with pytest.raises(ConfigError, match=r"data\.encoding"):
        DataConfig(encoding=encoding)


NO_ASSIGNMENTS = ["train.lr", "", "=", "=1", "lr=1", "train.lr=", "train.lr==1", "train=1", "\x1b=1", "train.lr=1=2"]


@pytest.mark.parametrize("assignment", NO_ASSIGNMENTS)
def test_assignments_that_are_none(assignment: str) -> None:
    """--set refuses what is not KEY=VALUE with a known key."""
    with pytest.raises(ConfigError, match="--set") as caught:
        parse_assignments([assignment])
    assert_helpful(str(caught.value))


def test_environment_near_misses() -> None:
    """A variable of a section that is no setting is a mistake, answered with the one that was meant."""
    with pytest.raises(ConfigError, match=r"Did you mean LSTMLM_MODEL_HIDDEN\?"):
        parse_environment({"LSTMLM_MODEL_HIDEN": "3"})


def test_resource_dirs_exist() -> None:
    """Presets and the corpus are found beside the package or in it; nothing else is."""
    assert (resource_dir("configs") / "minute.yaml").is_file()
    assert resource_dir("data").is_dir()
    with pytest.raises(Exception, match="Install lstmlm again") as caught:
        resource_dir("nothing")
    assert getattr(caught.value, "exit_code", None) == 5


def test_config_imports_nothing_heavy() -> None:
    """Thousands of configurations can be read without torch, typer or rich."""
    code = "import sys, lstmlm.config.run_config; print(sorted({'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)))"
    root = Path(run_config.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)

    assert run.stdout == "[]\n"


def test_config_constructs_nothing_from_yaml() -> None:
    """PyYAML is used to compose nodes and no further: no load or construct is called anywhere in the reader."""
    tree = ast.parse(Path(strict_yaml.__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    assert {"get_single_node", "SafeLoader"} <= used
    assert not {name for name in used if "load" in name or "construct" in name or name == "get_single_data"}


def test_config_names_the_key_of_a_line_that_breaks() -> None:
    """A value that is not YAML is refused with its key and what belongs there, also below a section, and with its line."""
    assert refusal("train:\n  clip: 1\n  lr: *a\n").startswith("train.lr (my.yaml:3): expected a number from 0 to 10, or auto,")
    assert refusal('train:\n  clip: 1\n  lr: "1\n').startswith("train.lr (my.yaml:4): expected a number from 0 to 10, or auto,")
    assert refusal("train:\n  clip: 1\n  - 3\n").startswith("my.yaml:3: expected YAML,")
