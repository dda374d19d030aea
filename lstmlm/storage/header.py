"""What the header of a checkpoint file may say, and what is wrong with it when it says something else.

Everything is checked against the size of the file and against fixed bounds before memory is taken for it. `parse` is the entry
point, for `checkpoint`.
"""

import codecs
import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from lstmlm.errors import printable

FORMAT = "lstmlm-1"
KINDS = ("best", "last")
MAX_HEADER = 8 << 20
MAX_PARTS = 500_000  # lists, objects and quotes; as JSON without a bound takes 30 times its size in memory
MAX_TENSORS = 10_000
MAX_DEPTH = 20
MAX_AXES = 8
MAX_ELEMENTS = 1 << 40  # of a tensor, an axis of zero counted as one: torch multiplies the others all the same
MAX_NAME = 256

# name of the dtype -> (its code in the file, bytes of an element)
DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
_NAMES = {code: name for name, (code, _) in DTYPES.items()}

# What `meta` holds, and the type of each value. `training` may be missing: only `last` has it.
META: dict[str, type] = {
    "config": dict,
    "tokenizer": dict,
    "counts": list,
    "step": int,
    "scores": dict,
    "corpus": dict,
    "versions": dict,
    "command": list,
    "parameters": int,
    "training": dict,
}
_OPTIONAL = {"training"}
_LEGACY = "Train again, or ask for a safetensors file made by lstmlm"
_NEVER = "lstmlm never unpickles"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What the header says of one tensor: dtype and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself before its data is read; the digest is not yet checked.

    `size` is that of the whole file in bytes, as it was when opened.
    """

    kind: str
    meta: dict[str, Any]
    entries: dict[str, TensorEntry]
    size: int
    sha256: str


class DamageError(Exception):
    """What is wrong with a file: what was expected, what was found and perhaps the next step, all safe to print."""


def parse(raw: bytes, available: int) -> tuple[str, dict[str, Any], dict[str, TensorEntry], str]:
    """Check a header against the number of data bytes; return kind, meta, entries and digest."""
    if len(raw) > MAX_HEADER:
        raise DamageError(f"a header of at most {MAX_HEADER} bytes (a vocabulary that fits it)", f"{len(raw)}")
    try:
        header = parse_json(raw.decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one, and quotes only the position
        raise DamageError("a header in strict JSON", _brief(error)) from None
    if not isinstance(header, dict):
        raise DamageError("a JSON object as header", type(header).__name__)
    texts = header.pop("__metadata__", None)
    if not isinstance(texts, dict) or "format" not in texts:
        raise DamageError(
            "a checkpoint of lstmlm",
            "a safetensors file of another program",
            "Give a run folder, or a file that lstmlm train wrote",
        )
    if texts["format"] != FORMAT:
        raise DamageError(f"format {FORMAT}", _brief(texts["format"]), "Use the version of lstmlm that wrote it")
    if set(texts) != {"format", "kind", "meta", "sha256"} or not all(isinstance(text, str) for text in texts.values()):
        raise DamageError("the texts format, kind, meta and sha256 in the header", _brief(sorted(texts)))
    if texts["kind"] not in KINDS:
        raise DamageError(f"kind {' or '.join(KINDS)}", _brief(texts["kind"]))
    if not re.fullmatch("[0-9a-f]{64}", texts["sha256"]):
        raise DamageError("a SHA-256 of 64 lower-case hexadecimal digits", _brief(texts["sha256"]))
    return texts["kind"], _meta(texts["meta"]), _entries(header, available), texts["sha256"]


def foreign(start: bytes, length: int, size: int) -> tuple[str, ...]:
    """Say what a file is that does not begin as a safetensors file of its size does.

    Args:
        start:  Its first 512 bytes.
        length: Its first 8 bytes as a number: the header's length, if it were a safetensors file.
        size:   Its size in bytes.

    Returns:
        The arguments for a `DamageError`.
    """
    expected = "a safetensors file"
    if not size:
        return expected, "an empty file"
    if 0 < length <= MAX_HEADER and (size == 8 or start.startswith(b"{", 8)):
        return f"a header of {length} bytes", f"a file of {size} bytes: it is cut off"
    if re.match(rb"\x80[\1-\5]|\(?c[\w.]+\n[\w.]+\n", start):
        return expected, f"a pickle (torch.save) file: {_NEVER}", _LEGACY
    if start.startswith(b"PK"):
        return expected, f"a zip archive, such as a pickle (torch.save) file: {_NEVER}", _LEGACY
    if start.startswith(b"ustar", 257):
        return expected, f"a tar archive, such as an old pickle (torch.save) file: {_NEVER}", _LEGACY
    if start.startswith(b"version https://git-lfs"):
        return expected, "a Git LFS pointer, not the file itself", "Fetch it with git lfs pull"
    if size < 8:
        return expected, f"{size} bytes: it is cut off"
    if start.startswith(b"{", 8):
        return f"a header of at most {MAX_HEADER} bytes", f"{length}"
    if _is_text(start):
        return expected, "a text", "A model of it is made by: lstmlm train FILE"
    return expected, "other data, or a damaged start"


def _is_text(start: bytes) -> bool:
    """Say whether the first bytes of a file are plain text, but for a character that is cut in two."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)


def parse_json(text: str) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN or infinity, integers of at most 20 characters, bounded depth.

    Raises:
        ValueError: If the text is not such JSON; its message is safe to print.
    """
    if sum(map(text.count, '"[{')) > MAX_PARTS:
        raise ValueError(f"more than {MAX_PARTS} lists, objects and quotes")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"nesting deeper than {MAX_DEPTH}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return value
    raise ValueError(f"nesting deeper than {MAX_DEPTH}")


def _meta(text: str) -> dict[str, Any]:
    """Check the description of a run as far as every reader relies on it."""
    try:
        meta = parse_json(text)
    except ValueError as error:
        raise DamageError("a description in strict JSON", _brief(error)) from None
    if not isinstance(meta, dict):
        raise DamageError("a JSON object as description", type(meta).__name__)
    for key, kind in META.items():
        if key not in meta and key not in _OPTIONAL:
            raise DamageError(f"the key {key} in its description", "none")
        if key in meta and type(meta[key]) is not kind:
            raise DamageError(f"{key} of type {kind.__name__} in its description", type(meta[key]).__name__)
    for key in ("step", "parameters"):
        if meta[key] < 0:
            raise DamageError(f"{key} of at least 0", _brief(meta[key]))
    if not all(type(count) is int and count >= 0 for count in meta["counts"]):
        raise DamageError("counts that are whole numbers of at least 0", "others")
    if not all(type(word) is str for word in meta["command"]):
        raise DamageError("a command of texts", "others")
    if extra := set(meta) - set(META):
        raise DamageError(f"the keys {', '.join(META)} in its description", _brief(min(extra)))
    return meta


def _entries(header: dict[str, Any], available: int) -> dict[str, TensorEntry]:
    """Check what the header says of the tensors, each within its bounds and all of them as long as the data.

    That they lie side by side, without a hole or an overlap, is for the safetensors package to check, which reads them.
    """
    if len(header) > MAX_TENSORS:
        raise DamageError(f"at most {MAX_TENSORS} tensors", str(len(header)))
    entries, end = {}, 0
    for name, value in header.items():
        if not (0 < len(name) <= MAX_NAME and name.isascii() and name.isprintable()):
            raise DamageError(f"tensor names of 1 to {MAX_NAME} printable ASCII characters", _brief(name))
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise DamageError(f"dtype, shape and data_offsets of tensor {name}", _brief(value))
        code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(code, str) or code not in _NAMES:
            raise DamageError(f"dtype {', '.join(_NAMES)} of tensor {name}", _brief(code))
        if not _whole(shape) or len(shape) > MAX_AXES or math.prod(length or 1 for length in shape) > MAX_ELEMENTS:
            bounds = f"at most {MAX_AXES} whole numbers and {MAX_ELEMENTS} elements"
            raise DamageError(f"a shape of {bounds} for tensor {name}", _brief(shape))
        if not _whole(offsets) or len(offsets) != 2:
            raise DamageError(f"data_offsets of two whole numbers for tensor {name}", _brief(offsets))
        size = math.prod(shape) * DTYPES[_NAMES[code]][1]  # Python's integers do not overflow, and all are bounded
        if offsets[1] - offsets[0] != size:
            raise DamageError(f"{size} bytes for tensor {name} of shape {_brief(shape)}", f"{offsets[1] - offsets[0]}")
        entries[name] = TensorEntry(_NAMES[code], tuple(shape))
        end = max(end, offsets[1])
    if end != available:
        found = "cut off" if end > available else "followed by something else"
        raise DamageError(f"{end} bytes of data", f"{available}: it is {found}")
    return entries


def _whole(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _brief(value: object) -> str:
    """Return something from a file, safe to print and short."""
    text = printable(str(value)[:80])
    return text if len(text) <= 80 else text[:77] + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key that occurs twice")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number too large for a float")
    return value


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"an integer of {len(text)} characters")
    return int(text)
