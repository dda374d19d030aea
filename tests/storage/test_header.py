"""Over two hundred files that lie, each refused: pickles, bombs, impossible shapes, escapes in every string."""

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmlm
from lstmlm.errors import LstmlmError
from lstmlm.storage import checkpoint
from lstmlm.storage.header import MAX_HEADER, parse_json
from tests.storage.files import META, refusal

ROOT = Path(lstmlm.__file__).parents[1]
ZEROS = "0" * 64


def forge(header: Any, data: bytes = b"", *, sign: bool = True) -> bytes:
    """Return a file with any header; where it has a place for the digest, with the right one in it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    if sign and content.count(ZEROS.encode()) == 1:
        content = content.replace(ZEROS.encode(), hashlib.sha256(content).hexdigest().encode())
    return content


def header(tensors: Any = None, said: Any = None, **texts: Any) -> dict[str, Any]:
    """Return a header that is right but for what is given; a text of None is left out."""
    all_texts = {"format": "lstmlm-1", "sha256": ZEROS, "kind": "best", "meta": json.dumps(META | (said or {}))} | texts
    return {"__metadata__": {key: text for key, text in all_texts.items() if text is not None}} | (tensors or {})


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    """Return what a header says of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


def without(key: str) -> str:
    """Return a description that lacks a key."""
    return json.dumps({name: value for name, value in META.items() if name != key})


class Canary:
    """What a pickle can be made to call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        """Ask whoever unpickles this to call the function."""
        return self.call


def zipped(**files: bytes) -> bytes:
    """Return a zip archive, as torch.save makes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    """Return a tar archive, as torch.save made them long ago."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("pickle")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


DEEP = "[" * 100_000 + "]" * 100_000
ESC = "\x1b]52;c;ZXZpbA==\x07\x1b]8;;http://x\x07\x1b[31m\u202egnp\n\x9b"
EIGHT = bytes(8)
TOUCH = "open('canary', 'w').close()"
PICKLE = pickle.dumps(Canary(exec, TOUCH))
TWO = {"a": tensor(), "b": tensor(offsets=(8, 16))}

SHAPES: list[Any] = [
    *([1 << 63], [1 << 64], [1 << 40, 1 << 40], [1 << 32, 1 << 32], [1 << 62, 8], [(1 << 63) - 1, 0]),
    *([-2], [-1, -2], [0], [3], [], [2] + [1] * 8, [2] + [1] * 100_000),
    *([2.0], [True, 2], ["2"], [[2]], [None], [ESC], None, 2, "2", {}),
]
OFFSETS: list[Any] = [
    *([8, 0], [-8, 0], [1, 9], [0, 9], [8, 16], [0, 1 << 63], [(1 << 63) - 8, 1 << 63], [-(1 << 63), 8 - (1 << 63)]),
    *([0, 8.0], [True, 8], [[0], [8]], [0, 4, 8], [0], [], None, 8, "08", {}),
]

ENTRIES: list[Any] = [None, [], 1, "x", {}, ESC]
CODES: list[Any] = ["F8_E4M3", "C64", "f32", "", 1, None, [], {}, ESC]

HOSTILE: dict[str, bytes] = {
    # Code: whatever the name of the file says, nothing here may run.
    **{f"pickle protocol {p}": pickle.dumps(Canary(os.system, "touch canary"), p) for p in range(6)},
    **{f"pickle exec protocol {p}": pickle.dumps(Canary(exec, TOUCH), p) for p in range(6)},
    "pickle getattr": pickle.dumps(Canary(eval, f"exec({TOUCH!r})")),
    "pickle popen": pickle.dumps(Canary(subprocess.Popen, ["touch", "canary"])),
    "pickle import": b"cos\nsystem\n(S'touch canary'\ntR.",
    "pickle setitem on no dict": b"\x80\x02K\x01K\x02K\x03s.",
    "torch zip": zipped(**{"data.pkl": PICKLE, "version": b"3"}),
    "torchscript zip": zipped(**{"constants.pkl": PICKLE, "code/__torch__.py": b"import os"}),
    "zip in a zip": zipped(**{"data.pkl": zipped(**{"data.pkl": PICKLE})}),
    "zip bomb": zipped(**{"data/0": bytes(30_000_000)}),
    "tar": tarred(PICKLE),
    "pickle packed": gzip.compress(PICKLE),
    "pickle behind a checkpoint": forge(header()) + PICKLE,
    "pickle before a checkpoint": PICKLE + forge(header()),
    "pickle as header": forge(PICKLE, sign=False),
    "pickle as description": forge(header(meta="cos\nsystem\n(S'touch canary'\ntR.")),
    # Other files.
    "empty": b"",
    "one byte": b"{",
    "seven bytes": bytes(7),
    "zeros": bytes(8),
    "many zeros": bytes(100_000),
    "elf": b"\x7fELF\2\1\1" + bytes(1000),
    "html": b"<!DOCTYPE html><title>404</title>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "json": b'{"model": "lstm"}' * 10,
    "escapes": ESC.encode() * 50,
    "other program": forge({"w": tensor()}, EIGHT),
    "other program with texts": forge({"__metadata__": {"format": "pt"}, "w": tensor()}, EIGHT),
    # Headers.
    "header of 2**63": (1 << 63).to_bytes(8, "little") + b"{}",
    "header of 2**64 - 1": b"\xff" * 8 + b"{}",
    "header of 100 MB": (100 << 20).to_bytes(8, "little") + b"{" + bytes(1000),
    "header too large": forge(b"{" + b" " * MAX_HEADER + b"}"),
    "header no object": forge(b"[1, 2]"),
    "header empty": forge(b"{}"),
    "header open": forge(b"{"),
    "header not utf-8": forge(b'{"\xff\xfe": 1}'),
    "header utf-16": forge('{"a": 1}'.encode("utf-16")),
    "header with BOM": forge(b"\xef\xbb\xbf{}"),
    "header followed by more": forge(json.dumps(header()).encode() + b"{}"),
    "header deep": forge(b'{"a": ' + DEEP.encode() + b"}"),
    "header of a million tensors": forge(b"{" + b",".join(b'"%d":1' % i for i in range(900_000)) + b"}"),
    "header of 10001 tensors": forge(header({f"t{i}": tensor(shape=[0], offsets=[0, 0]) for i in range(10_001)})),
    "header of lists": forge(b'{"a": [' + b"[]," * 2_600_000 + b"[]]}"),
    "header of objects": forge(b'{"a": [' + b"{}," * 2_600_000 + b"{}]}"),
    "header of texts": forge(b'{"a": [' + b'"ab",' * 1_600_000 + b"1]}"),
    "header of numbers": forge(b'{"a": [' + b"1.5," * 2_000_000 + b"1]}"),
    "header of keys": forge(b'{"a": {' + b",".join(b'"%x":1' % i for i in range(700_000)) + b"}}"),
    "key twice": forge(b'{"__metadata__": {}, "__metadata__": {}}'),
    "tensor twice": forge(b'{"a": {}, ' + json.dumps(header({"a": tensor()})).encode()[1:], EIGHT),
    "dtype twice": forge(json.dumps(header({"a": tensor()})).encode().replace(b'"dtype"', b'"shape":[2],"dtype"'), EIGHT),
    "text twice": forge(json.dumps(header()).encode().replace(b'"kind"', b'"kind": "last", "kind"')),
    # The four texts.
    **{f"no {key}": forge(header(**{key: None})) for key in ("format", "kind", "meta", "sha256")},
    **{f"{key} a number": forge(header(**{key: 1}), sign=False) for key in ("format", "kind", "meta", "sha256")},
    **{f"{key} a list": forge(header(**{key: [ESC]}), sign=False) for key in ("format", "kind", "meta", "sha256")},
    **{f"{key} with escapes": forge(header(**{key: ESC}), sign=False) for key in ("format", "kind", "meta", "sha256")},
    "a fifth text": forge(header(more="x")),
    "a fifth text with escapes": forge(header(**{ESC: ESC})),
    "newer format": forge(header(format="lstmlm-2")),
    "digest missing": forge(header(), sign=False),
    "digest wrong": forge(header(sha256="5" * 64)),
    "digest in capitals": forge(header(sha256="A" * 64)),
    "digest short": forge(header(sha256="a" * 63)),
    "digest twice": forge(header(sha256="a" * 64, said={"scores": {"a" * 64: 1}})),
    "metadata null": forge({"__metadata__": None}),
    "metadata a tensor": forge({"__metadata__": tensor()}, EIGHT),
    # The description.
    "description empty": forge(header(meta=" ")),
    "description a list": forge(header(meta="[]")),
    "description deep": forge(header(meta=DEEP)),
    "description of 30 levels": forge(header(said={"config": json.loads("[" * 30 + "]" * 30)})),
    "description with NaN": forge(header(said={"scores": {"a": math.nan}})),
    "description with infinity": forge(header(said={"scores": {"a": -math.inf}})),
    "description with 1e999": forge(header(meta=json.dumps(META).replace("1.5", "1e999"))),
    "description with 5000 digits": forge(header(meta=json.dumps(META).replace("1.5", "1" * 5000))),
    "description with 30 digits": forge(header(meta=json.dumps(META).replace("1.5", "1" * 30))),
    "description with a key twice": forge(header(meta=json.dumps(META).replace('"step"', '"step": 1, "step"'))),
    "description with another key": forge(header(said={"more": 1})),
    "description with escapes as key": forge(header(said={ESC: ESC})),
    "description with escapes as value": forge(header(said={"config": ESC})),
    **{f"description without {key}": forge(header(meta=without(key))) for key in META if key != "training"},
    **{f"{key} null": forge(header(said={key: None})) for key in META},
    **{f"{key} a text": forge(header(said={key: ESC})) for key in META},
    "step negative": forge(header(said={"step": -1})),
    "step a float": forge(header(said={"step": 1.0})),
    "step true": forge(header(said={"step": True})),
    "parameters negative": forge(header(said={"parameters": -1})),
    "counts negative": forge(header(said={"counts": [1, -1]})),
    "counts of floats": forge(header(said={"counts": [1.0]})),
    "counts of lists": forge(header(said={"counts": [[]]})),
    "counts of true": forge(header(said={"counts": [True]})),
    "command of numbers": forge(header(said={"command": [1]})),
    "vocabulary of 10**7": forge(header(said={"tokenizer": {"kind": "char", "symbols": "x" * 10**7}})),
    "counts of 10**7": forge(header(said={"counts": [1] * 10**7})),
    # Tensors: names, types, shapes, places, values.
    **{
        f"name {name[:9]!r}": forge(header({name: tensor()}), EIGHT)
        for name in (ESC, "", "n" * 257, "a\0b", "é", "a\nb", "\x7f", "a\u202eb", "\u2028", "\x1b[2J")
    },
    "name a lone surrogate": forge(json.dumps(header({"\ud800": tensor()})).encode(), EIGHT),
    **{f"entry {value!r}": forge(header({"a": value})) for value in ENTRIES},
    **{f"entry without {key}": forge(header({"a": {k: v for k, v in tensor().items() if k != key}}), EIGHT) for key in tensor()},
    "entry with more": forge(header({"a": tensor(more=1)}), EIGHT),
    **{f"dtype {dtype!r}": forge(header({"a": tensor(dtype)}), EIGHT) for dtype in CODES},
    **{f"shape {str(shape)[:30]}": forge(header({"a": tensor(shape=shape)}), EIGHT) for shape in SHAPES},
    "shape that overflows without its 0": forge(header({"a": tensor(shape=[1 << 40, 0, 1 << 40, 1 << 40], offsets=[0, 0])})),
    "shape with 2**50 and 0": forge(header({"a": tensor(shape=[1 << 50, 0], offsets=[0, 0])})),
    **{f"offsets {offsets}": forge(header({"a": tensor(offsets=offsets)}), EIGHT) for offsets in OFFSETS},
    "two overlap": forge(header(TWO | {"b": tensor(offsets=(4, 12))}), bytes(12)),
    "two in one place": forge(header(TWO | {"b": tensor()}), EIGHT),
    "a hole": forge(header(TWO | {"b": tensor(offsets=(16, 24))}), bytes(24)),
    "a hole at the start": forge(header({"a": tensor(offsets=(8, 16))}), bytes(16)),
    "data missing": forge(header(TWO), bytes(15)),
    "data left over": forge(header(TWO), bytes(17)),
    "data without tensors": forge(header(), EIGHT),
    **{
        f"{code} {bits.hex()}": forge(header({"a": tensor(code, [16 // len(bits)], [0, 16])}), bytes(16 - len(bits)) + bits)
        for code, bits in (
            ("F32", struct.pack("<f", math.nan)),
            ("F32", struct.pack("<f", math.inf)),
            ("F32", struct.pack("<f", -math.inf)),
            ("F32", b"\x01\x00\x80\xff"),
            ("F64", struct.pack("<d", math.nan)),
            ("F64", struct.pack("<d", -math.inf)),
            ("BF16", b"\x80\x7f"),
            ("BF16", b"\xc1\xff"),
            ("F16", b"\x00\x7c"),
            ("F16", b"\x01\xfe"),
        )
    },
    "a bool of 2": forge(header({"a": tensor("BOOL", [8])}), b"\0\1\0\1\2\0\0\0"),
}


def test_a_forged_file_without_a_fault_is_read(path: Path) -> None:
    """The forgeries below are refused for their faults: without one they are checkpoints."""
    path.write_bytes(forge(header(TWO), bytes(16)))

    assert sorted(checkpoint.read(path).tensors) == ["a", "b"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each is exit 4, at once, in a few printable lines that name the file, and runs nothing."""
    monkeypatch.chdir(path.parent)
    path.write_bytes(HOSTILE[name])
    start = time.perf_counter()
    text = refusal(path)

    assert time.perf_counter() - start < 5
    assert str(path) in text
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith(("pickle", "torch", "tar", "zip"))])
def test_a_pickle_is_called_by_its_name(path: Path, name: str) -> None:
    """Whoever gives a file of torch.save is told that it is one, and that lstmlm never unpickles."""
    path.write_bytes(HOSTILE[name])
    text = refusal(path)

    plain = name not in ("pickle packed", "pickle behind a checkpoint", "pickle as header", "pickle as description")
    if plain and name not in (
        "pickle protocol 0",
        "pickle protocol 1",
        "pickle exec protocol 0",
        "pickle exec protocol 1",
    ):
        assert "pickle (torch.save) file: lstmlm never unpickles" in text


@pytest.mark.slow
def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    """Reading all of them, a sparse one of 300 GB among them, takes less than 256 MB more than importing the module."""
    for number, content in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.safetensors").write_bytes(content)
    huge = header({"a": tensor(shape=[300 << 30], dtype="U8", offsets=[0, 300 << 30])})
    with (tmp_path / "sparse.safetensors").open("wb") as file:
        file.write(forge(huge))
        file.truncate(file.tell() + (300 << 30))
    program = """
        import resource, sys
        from pathlib import Path
        from lstmlm.storage import checkpoint; from lstmlm import errors
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused = 0
        for path in Path(sys.argv[1]).iterdir():
            try:
                checkpoint.read(path)
            except errors.LstmlmError:
                refused += 1
        assert "torch" not in sys.modules
        print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    refused, kilobytes = map(int, result.stdout.split())

    assert refused == len(HOSTILE) + 1
    assert kilobytes < 256_000


def _mutated(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Return a file with bytes replaced, removed and put in, and the digest made right again where that can be."""
    for where, length, new in edits:
        at = int(where * len(content))
        content = content[:at] + new + content[at + length :]
    return content


SPLICES = [b"", b"0", b"-", b"[", b"}", b'"', b"9" * 30, b"\\u001b", b"\xff", b"null", b"1e9", b","]


@settings(deadline=None, max_examples=300)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 9), st.sampled_from(SPLICES) | st.binary(max_size=9)),
        min_size=1,
        max_size=4,
    )
)
def test_any_damage_to_a_signed_header_is_ours_to_tell(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[float, int, bytes]]
) -> None:
    """A header changed anywhere, its digest made right again: it is refused, or read, and nothing else happens."""
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    text = json.dumps(header(TWO)).encode()
    path.write_bytes(forge(_mutated(text, edits), bytes(16)))
    try:
        checkpoint.read(path)
    except LstmlmError:
        refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1,]",
        "{'a': 1}",
        "NaN",
        "-Infinity",
        "1e400",
        "9" * 21,
        '{"a": 1, "a": 1}',
        "[" * 22 + "]" * 22,
        "1 2",
    ],
)
def test_json_is_strict(text: str) -> None:
    """What is not JSON, says something twice, or is too large or deep is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_strict_json_takes_what_is_right() -> None:
    """Twenty levels, twenty characters of an integer, floats and every escape are taken as they are."""
    assert parse_json("[" * 20 + "]" * 20)
    assert parse_json('{"a": [-9223372036854775808, 1e308, "\\u001b\\ud83d\\ude00", null, true]}') == {
        "a": [-(1 << 63), 1e308, "\x1b\U0001f600", None, True]
    }
