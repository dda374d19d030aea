"""One training state <-> one file, whole or not at all.

The entry points are `write`, for the trainer, and `read` and `read_header`, for all others, mostly through `run_dir.load`. Only
`to_tensors` and `to_blobs` import torch.

The file is in the safetensors format: 8 bytes with the length of a JSON header, the header, the data. The header's
`__metadata__` holds four texts:

    format   "lstmlm-1"
    sha256   of the whole file, with these 64 digits written as zeros
    kind     "best" (the model) or "last" (all that training needs to go on)
    meta     JSON: what is known about the run; see `header.META`

so that one flipped bit anywhere, or any missing or added byte, is seen. Nothing in it is ever executed or unpickled. Numbers are
little-endian, as on every machine that torch is built for.

Tensors are read with the `safetensors` package; what it does not check is checked here: the digest, bounds before memory
is taken, finite values. The file is laid out by hand (`pack`), because `safetensors.serialize` writes the texts of
`__metadata__` in another order each time, so that equal states would make different files, and because it copies all
tensors once more before the first byte is written.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lstmlm import machine
from lstmlm.errors import CheckpointError, Diverged, SystemProblem, TextError, printable
from lstmlm.storage import atomic
from lstmlm.storage.header import DTYPES, FORMAT, MAX_HEADER, DamageError, Header, foreign, parse

if TYPE_CHECKING:
    import torch

# Of a float that is infinite or not a number all exponent bits are set. For each dtype: where its two highest bytes
# are, and the bits in them that are the exponent.
_EXPONENT = {
    "float64": (0x7F, 0xF0),
    "float32": (0x7F, 0x80),
    "bfloat16": (0x7F, 0x80),
    "float16": (0x7C, 0x00),
}
_CHUNK = 1 << 20
_ZEROS = "0" * 64
_RESTORE = "Use the other checkpoint of the run, a copy, or train again"


@dataclass(frozen=True, slots=True)
class Blob:
    """A tensor as bytes: contiguous, little-endian, the last axis running fastest."""

    dtype: str
    shape: tuple[int, ...]
    data: atomic.Bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A training state: its kind, what is known about it, and its tensors by name."""

    kind: str
    meta: dict[str, Any]
    tensors: dict[str, Blob]

    def part(self, prefix: str) -> dict[str, Blob]:
        """Return the tensors whose names begin with a prefix, by the rest of their names: `model.` gives the weights."""
        return {name.removeprefix(prefix): blob for name, blob in self.tensors.items() if name.startswith(prefix)}


def write(path: Path, checkpoint: Checkpoint) -> int:
    """Write a checkpoint so that a kill or a full disk at any instant leaves the previous one or this one.

    Args:
        path:       The file; its folder exists.
        checkpoint: The state. `meta` has the keys of `header.META`.

    Returns:
        The size of the file in bytes.

    Raises:
        Diverged: If a value is infinite or not a number; nothing is written.
        SystemProblem: If the system refuses; the previous file is untouched.
        ValueError: If the state is not one that `read` would accept.

    Memory: the header; tensors are written from where they are.
    """
    for name, blob in checkpoint.tensors.items():
        if not _finite(blob.dtype, memoryview(blob.data).cast("B")):
            raise Diverged(
                f"{printable(str(path))} is not written: tensor {printable(name)} holds values that are infinite or "
                "not numbers. Go on from the last checkpoint with a smaller train.lr."
            )
    return atomic.write_atomic(path, pack(checkpoint))


def pack(checkpoint: Checkpoint) -> list[atomic.Bytes]:
    """Return the pieces of the file that holds a checkpoint: length and header, then each tensor.

    Raises:
        TextError: If the vocabulary is too large for the header.
        ValueError: If the state is not one that `read` would accept.
    """
    try:
        meta = json.dumps(checkpoint.meta, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise Diverged(
            f"checkpoint: expected finite numbers in its description, found others ({error}). "
            "Go on from the last checkpoint with a smaller train.lr."
        ) from error
    # Half a surrogate pair (a file name that is not UTF-8) cannot be stored as itself; JSON has an escape for it.
    meta = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", meta)
    # The digest's place comes before any text that could hold as many zeros.
    texts = {"format": FORMAT, "sha256": _ZEROS, "kind": checkpoint.kind, "meta": meta}
    prefix, views = lay_out(texts, checkpoint.tensors)
    text = prefix[8:]
    if len(text) > MAX_HEADER and len(checkpoint.meta.get("counts", ())) > 100_000:
        raise TextError(
            f"checkpoint: expected a description of at most {MAX_HEADER} bytes, found {len(text)}, with a vocabulary of "
            f"{len(checkpoint.meta['counts'])} characters in it. Train on bytes: --tokenizer byte."
        )
    try:
        parse(text, sum(map(len, views)))
    except DamageError as damage:
        raise ValueError(f"checkpoint: expected {damage.args[0]}, found {damage.args[1]}") from None
    digest = hashlib.sha256(prefix)
    for view in views:
        digest.update(view)
    return [prefix.replace(_ZEROS.encode(), digest.hexdigest().encode(), 1), *views]


def digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 in the file that holds a checkpoint."""
    prefix, *views = pack(checkpoint)
    return parse(bytes(prefix[8:]), sum(map(len, views)))[3]


def lay_out(texts: dict[str, str], tensors: dict[str, Blob]) -> tuple[bytes, list[memoryview]]:
    """Return a safetensors file of some texts and tensors: the length of its header and the header, and what follows."""
    header: dict[str, Any] = {"__metadata__": texts}
    # Wide elements first, so that every tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-DTYPES[tensors[name].dtype][1], name))
    views, start = [], 0
    for name in names:
        blob = tensors[name]
        view = memoryview(blob.data).cast("B")
        views.append(view)
        header[name] = {
            "dtype": DTYPES[blob.dtype][0],
            "shape": list(blob.shape),
            "data_offsets": [start, start + len(view)],
        }
        start += len(view)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, views


def read(path: Path, check: Callable[[Header], object] | None = None) -> Checkpoint:
    """Read a checkpoint and verify all of it.

    Args:
        path:  The file.
        check: Called with the header before memory is taken for the data; raises CheckpointError to refuse the file, and the
            message then names it.

    Returns:
        The checkpoint; each of its blobs has memory of its own, which may be written.

    Raises:
        CheckpointError: If it is missing, not a regular file, damaged, or not a checkpoint; says what is wrong.
        SystemProblem: If it is larger than the memory of this machine.

    Memory: twice the file, of which one half is given back before it returns, and the header as objects.
    """
    from safetensors import SafetensorError, deserialize

    try:
        with _Source(path) as source:
            header = source.header()
            if check:
                _ask(check, header, path)
            data = source.whole()
    except DamageError as damage:
        _refuse(path, *damage.args)
    place = data.find(header.sha256.encode())
    digest = hashlib.sha256(data[:place] + _ZEROS.encode())
    digest.update(memoryview(data)[place + len(_ZEROS) :])
    if digest.hexdigest() != header.sha256:
        _refuse(path, f"the SHA-256 {header.sha256[:16]}...", f"{digest.hexdigest()[:16]}...: the file is damaged")
    try:
        found: list[tuple[str, dict[str, Any]]] = deserialize(data)  # type: ignore[no-untyped-call]  # its stub lacks types
    except SafetensorError as error:
        _refuse(path, "tensors side by side, without a hole or an overlap", printable(str(error)[:200]))
    as_told = {name: (DTYPES[entry.dtype][0], entry.shape) for name, entry in header.entries.items()}
    if {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in found} != as_told:
        _refuse(path, "the tensors that its header had", "others: the file was changed while it was read")
    tensors = {}
    for name, tensor in found:
        entry, piece = header.entries[name], memoryview(tensor["data"])
        if not _finite(entry.dtype, piece):
            _refuse(path, f"finite values in tensor {name}", "infinity or NaN")
        if entry.dtype == "bool" and len(bytes(piece).translate(None, b"\0\1")):
            _refuse(path, f"0 or 1 in tensor {name} of type bool", "other values")
        tensors[name] = Blob(entry.dtype, entry.shape, tensor["data"])
    return Checkpoint(header.kind, header.meta, tensors)


def read_header(path: Path, check: Callable[[Header], object] | None = None) -> Header:
    """Read what a checkpoint says about itself, but neither its tensors nor its digest: at once, however large the file is.

    Args:
        path:  As in `read`.
        check: As in `read`.

    Raises:
        CheckpointError: As `read`, as far as the header and the size of the file tell.
    """
    try:
        with _Source(path) as source:
            header = source.header()
    except DamageError as damage:
        _refuse(path, *damage.args)
    if check:
        _ask(check, header, path)
    return header


def _ask(check: Callable[[Header], object], header: Header, path: Path) -> None:
    """Let the caller check a header; what it refuses, the message names the file for."""
    try:
        check(header)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {printable(str(path))}: {str(error).removeprefix('checkpoint: ')}") from None


def to_blobs(tensors: "dict[str, torch.Tensor]") -> dict[str, Blob]:
    """Copy tensors of any device and layout to bytes, element for element.

    Raises:
        ValueError: If a dtype is not among `DTYPES`.
    """
    import torch

    blobs = {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise ValueError(f"tensor {name}: expected one of {', '.join(DTYPES)}, found {dtype}")
        data = bytearray(tensor.numel() * tensor.element_size())
        if data:  # frombuffer takes no empty buffer
            torch.frombuffer(data, dtype=tensor.dtype).view(tensor.shape).copy_(tensor.detach())
        blobs[name] = Blob(dtype, tuple(tensor.shape), data)
    return blobs


def to_tensors(blobs: dict[str, Blob]) -> "dict[str, torch.Tensor]":
    """Return contiguous tensors on the CPU: the blobs' own memory, where it may be written, and else a copy."""
    import torch

    tensors = {}
    for name, blob in blobs.items():
        dtype = getattr(torch, blob.dtype)
        if len(blob.data):
            # torch warns of memory that is read-only, although nothing here writes to it.
            data = bytearray(blob.data) if memoryview(blob.data).readonly else blob.data
            tensors[name] = torch.frombuffer(data, dtype=dtype).view(blob.shape)
        else:  # frombuffer takes no empty buffer
            tensors[name] = torch.empty(blob.shape, dtype=dtype)
    return tensors


class _Source:
    """An open checkpoint file: its header, and then all of it."""

    def __init__(self, path: Path) -> None:
        name = printable(str(path))
        self._path = path
        try:
            fd, self._size = atomic.open_regular(path)
        except FileNotFoundError:
            raise CheckpointError(f"checkpoint {name}: not found. Give a run folder or a .safetensors file.") from None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise atomic.problem(error, f"cannot read {path}") from error
            raise CheckpointError(
                f"checkpoint {name}: cannot be read ({error.strerror}). Check the path and its permissions."
            ) from error
        except ValueError as error:  # also a path with a NUL in it
            raise CheckpointError(
                f"checkpoint {name}: expected a regular file, found {printable(str(error))}. "
                "Give a run folder or a .safetensors file."
            ) from error
        self._file = os.fdopen(fd, "rb", buffering=0)

    def __enter__(self) -> "_Source":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def header(self) -> Header:
        """Return what the header says."""
        start = self._read(min(8, self._size))
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > MAX_HEADER or length > self._size - 8:
            start += self._read(min(512, self._size) - len(start))
            raise DamageError(*foreign(start, length, self._size))
        raw = self._read(length)
        if not raw.startswith(b"{"):
            raise DamageError(*foreign(start + raw[:504], length, self._size))
        kind, meta, entries, sha256 = parse(raw, self._size - 8 - length)
        if sha256 == _ZEROS or raw.count(sha256.encode()) != 1:
            raise DamageError("the digits of its SHA-256 exactly once in the header", "them more or less often")
        return Header(kind, meta, entries, self._size, sha256)

    def whole(self) -> bytes:
        """Return the whole file, from its first byte."""
        if (has := machine.memory()) is not None and self._size > has:
            raise SystemProblem(
                f"cannot read {printable(str(self._path))}: {self._size} bytes are more than the {has} bytes of memory here. "
                "Use a machine with more."
            )
        self._file.seek(0)
        return self._read(self._size)

    def _read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        try:
            while size:  # one call reads 2 GiB at most
                piece = self._file.read(size)
                if not piece:
                    raise DamageError(f"{self._size} bytes", "fewer: the file became shorter while it was read")
                pieces.append(piece)
                size -= len(piece)
            return b"".join(pieces)  # no copy of a single one
        except MemoryError:
            raise SystemProblem(
                f"cannot read a checkpoint: out of memory ({size} bytes needed). Close other programs, or use a "
                "machine with more."
            ) from None
        except OSError as error:
            raise DamageError("a readable file", f"a read error ({error.strerror})") from error


def _refuse(path: Path, expected: str, found: str, step: str = _RESTORE) -> NoReturn:
    raise CheckpointError(f"checkpoint {printable(str(path))}: expected {expected}, found {found}. {step}.")


def _finite(dtype: str, data: memoryview) -> bool:
    """Whether no element has all exponent bits set, seen from its two highest bytes."""
    if dtype not in _EXPONENT:
        return True
    width = DTYPES[dtype][1]
    high, low = (_marks(mask) for mask in _EXPONENT[dtype])
    for chunk in _chunks(data):
        first = chunk[width - 1 :: width].translate(high)
        if b"\1" in first:
            second = chunk[width - 2 :: width].translate(low)
            # As one large number each: a bit that is set in both is an element with both bytes marked.
            if int.from_bytes(first, "little") & int.from_bytes(second, "little"):
                return False
    return True


def _marks(mask: int) -> bytes:
    """Return the table that turns a byte into 1 if all bits of `mask` are set in it, else 0."""
    return bytes(byte & mask == mask for byte in range(256))


def _chunks(data: memoryview) -> Iterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield bytes(data[start : start + _CHUNK])
