"""A checkpoint comes back as it was, or is refused by name: damaged, hostile, or cut off anywhere."""

import json
import math
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

import lstmlm
from lstmlm.errors import CheckpointError, Diverged, SystemProblem, TextError
from lstmlm.storage import atomic, checkpoint
from lstmlm.storage.checkpoint import Blob, Checkpoint
from lstmlm.storage.header import DTYPES, MAX_HEADER, Header
from tests.storage.files import META, refusal

ROOT = Path(lstmlm.__file__).parents[1]
ZEROS = "0" * 64


def floats(*values: float) -> Blob:
    """Return a float32 vector."""
    return Blob("float32", (len(values),), struct.pack(f"<{len(values)}f", *values))


SMALL = Checkpoint(
    "last",
    META,
    {
        "model.W": Blob("float32", (3, 5), struct.pack("<15f", *(i / 7 for i in range(15)))),
        "model.b": Blob("bfloat16", (7,), b"\x80\x3f" * 7),
        "optimizer.count": Blob("int64", (), struct.pack("<q", -(1 << 62))),
        "state.half": Blob("float16", (2, 1, 3), b"\x00\x3c" * 6),
        "state.wide": Blob("float64", (2,), struct.pack("<2d", math.pi, -1e308)),
        "state.int": Blob("int32", (3,), struct.pack("<3i", 1, -2, 3)),
        "state.empty": Blob("float32", (0, 6), b""),
        "random": Blob("uint8", (2500,), bytes(range(250)) * 10),
        "flags": Blob("bool", (3,), b"\1\0\1"),
    },
)


@pytest.mark.slow
def test_every_flipped_bit_is_seen(path: Path) -> None:
    """One bit of every byte, and every bit of every seventh byte: flipped, the file is refused."""
    checkpoint.write(path, SMALL)
    content = path.read_bytes()
    flips = [(at, bit) for at in range(len(content)) for bit in (range(8) if at % 7 == 0 else [at % 8])]
    with path.open("r+b", buffering=0) as file:
        for at, bit in flips:
            file.seek(at)
            file.write(bytes([content[at] ^ 1 << bit]))
            with pytest.raises(CheckpointError):
                checkpoint.read(path)
            file.seek(at)
            file.write(content[at : at + 1])

    assert path.read_bytes() == content
    assert 3000 < len(content) < 6000
    checkpoint.read(path)


def test_every_truncation_is_seen(path: Path) -> None:
    """A file that is cut off after any byte is refused, and told to be cut off where that can be known."""
    size = checkpoint.write(path, SMALL)
    for length in reversed(range(size)):
        os.truncate(path, length)
        with pytest.raises(CheckpointError, match=r"cut off|empty"):
            checkpoint.read(path)


def test_added_bytes_are_seen(path: Path) -> None:
    """Bytes after the end, or spaces in the header, are no part of the checkpoint."""
    checkpoint.write(path, SMALL)
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    refusal(path)
    length = int.from_bytes(content[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :])

    assert "SHA-256" in refusal(path)


def test_what_is_written_is_read(path: Path) -> None:
    """Kind, description, names, types, shapes and bytes come back as they were; the size is told."""
    size = checkpoint.write(path, SMALL)
    back = checkpoint.read(path)

    assert back == SMALL
    assert size == path.stat().st_size
    assert {blob.dtype for blob in back.tensors.values()} == set(DTYPES)


def test_equal_states_make_equal_files(path: Path) -> None:
    """The bytes depend on the state alone, not on the order in which its tensors were put together."""
    checkpoint.write(path, SMALL)
    first = path.read_bytes()
    checkpoint.write(path, Checkpoint(SMALL.kind, META, dict(reversed(SMALL.tensors.items()))))

    assert path.read_bytes() == first


def test_safetensors_reads_what_is_written(path: Path) -> None:
    """The package of the format's authors reads the same tensors, so the files are not ours alone."""
    checkpoint.write(path, SMALL)
    theirs = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]  # its stub lacks types

    assert {name: bytes(theirs[name]["data"]) for name in theirs} == {n: b.data for n, b in SMALL.tensors.items()}
    assert {name: tuple(theirs[name]["shape"]) for name in theirs} == {n: b.shape for n, b in SMALL.tensors.items()}


def test_tensors_begin_where_their_elements_may(path: Path) -> None:
    """Every tensor begins at a multiple of its element's size, so that others may map the file."""
    checkpoint.write(path, SMALL)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    said = json.loads(content[8:start])
    width = dict(DTYPES.values())

    assert all((start + said[name]["data_offsets"][0]) % width[said[name]["dtype"]] == 0 for name in SMALL.tensors)


def test_the_header_is_read_without_the_data(path: Path) -> None:
    """It alone says kind, description, shapes and size, also of a file whose data is damaged."""
    size = checkpoint.write(path, SMALL)
    with path.open("r+b") as file:
        file.seek(size - 1)
        file.write(b"\xff")
    head = checkpoint.read_header(path)

    assert (head.kind, head.meta, head.size) == ("last", META, size)
    assert {name: entry.shape for name, entry in head.entries.items()} == {n: b.shape for n, b in SMALL.tensors.items()}
    refusal(path)


def test_a_check_refuses_before_the_data_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that knows which tensors it wants can refuse others before memory is taken for them."""
    checkpoint.write(path, SMALL)
    monkeypatch.setattr(checkpoint._Source, "whole", lambda *_: pytest.fail("the data was read"))

    def check(head: Header) -> None:
        raise CheckpointError(f"{len(head.entries)} tensors")

    for read in (checkpoint.read, checkpoint.read_header):
        with pytest.raises(CheckpointError, match=rf"checkpoint {path}: 9 tensors"):
            read(path, check)


def test_a_file_that_changes_while_it_is_read_is_refused(path: Path) -> None:
    """What the header said when memory was taken is what is read, or the file is refused."""
    one, other = (b"".join(checkpoint.pack(Checkpoint("last", META, {name: floats(1.0, 2.0)}))) for name in "wv")
    lies = one.replace(one[one.index(b'"sha256":"') + 10 :][:64], other[other.index(b'"sha256":"') + 10 :][:64])
    for before, found in ((one, "the file is damaged"), (lies, "changed while it was read")):
        path.write_bytes(before)
        with pytest.raises(CheckpointError, match=found):
            checkpoint.read(path, lambda _: path.write_bytes(other))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("at", [0, 1, 524_287, 600_000])
def test_what_is_not_finite_is_never_written(path: Path, dtype: str, at: int) -> None:
    """NaN or infinity in any tensor, anywhere in it, is exit 6, and the previous file stays; so for a score."""
    checkpoint.write(path, SMALL)
    before = path.read_bytes()
    bits = {"float64": 0x7FF, "float32": 0xFF, "bfloat16": 0xFF, "float16": 0x1F}[dtype]
    width = DTYPES[dtype][1]
    exponent = bits << (width * 8 - 1 - bits.bit_length())
    data = bytearray(600_001 * width)
    largest = exponent - 1  # all numbers up to here are finite
    data[at * width : (at + 1) * width] = largest.to_bytes(width, "little")
    fine = Checkpoint("best", META, {"w": Blob(dtype, (600_001,), data)})

    assert list(checkpoint.pack(fine))
    for value in (exponent, exponent + 1, exponent | 1 << (width * 8 - 1)):
        data[at * width : (at + 1) * width] = value.to_bytes(width, "little")
        with pytest.raises(Diverged, match="tensor w holds"):
            checkpoint.write(path, fine)
    for score in (math.nan, math.inf):
        with pytest.raises(Diverged):
            checkpoint.write(path, Checkpoint("best", META | {"scores": {"a": score}}, {}))

    assert path.read_bytes() == before


def test_what_cannot_be_read_is_not_written(path: Path) -> None:
    """A state that `read` would refuse is the caller's mistake: a ValueError, and no file."""
    blob = floats(1.0)
    for state in (
        Checkpoint("other", META, {}),
        Checkpoint("best", META | {"step": -1}, {}),
        Checkpoint("best", {}, {}),
        Checkpoint("best", META, {"": blob}),
        Checkpoint("best", META, {"__metadata__": blob}),
        Checkpoint("best", META, {"w": Blob("float32", (2,), blob.data)}),
        Checkpoint("best", META | {"corpus": {"name": "x" * MAX_HEADER}}, {}),
    ):
        with pytest.raises(ValueError, match="expected"):
            checkpoint.write(path, state)

    assert not path.exists()


def test_a_vocabulary_without_room_is_refused_with_a_way_out(path: Path) -> None:
    """All of Unicode, each character often: exit 3, which names --tokenizer byte, and no file."""
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i <= 0xDFFF)
    crowded = META | {"tokenizer": {"kind": "char", "symbols": every}, "counts": [10_000] * len(every)}
    with pytest.raises(TextError, match=r"1112064 characters.*--tokenizer byte") as refused:
        checkpoint.write(path, Checkpoint("best", crowded, {}))

    assert refused.value.exit_code == 3
    assert not path.exists()


@pytest.mark.skipif(os.name == "nt", reason="there are no FIFOs and devices on this system")
def test_what_is_no_regular_file_is_refused_without_waiting(path: Path) -> None:
    """FIFO, folder, device, socket, links in a circle or to nowhere, odd names: exit 4 at once, saying what it is."""
    os.mkfifo(path)
    folder = path.parent
    (folder / "circle").symlink_to("circle")
    (folder / "nowhere").symlink_to("gone")
    for odd, expected in {
        path: "a FIFO",
        folder: "a folder",
        Path("/dev/zero"): "a device",
        Path("/dev/null"): "a device",
        folder / "circle": "cannot be read",
        folder / "nowhere": "not found",
        folder / "gone\x1b[31m": "not found",
        folder / ("n" * 300): "cannot be read",
        path / "below": "cannot be read",
    }.items():
        assert expected in refusal(odd)
    refusal(Path("a\0b"))


def test_a_path_to_it_may_be_a_link(path: Path) -> None:
    """A link to a checkpoint is as good as the file."""
    checkpoint.write(path, SMALL)
    link = path.parent / "link.safetensors"
    link.symlink_to(path)

    assert checkpoint.read(link) == SMALL


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(path: Path) -> None:
    """A file that may not be read is exit 4 and says so."""
    checkpoint.write(path, SMALL)
    path.chmod(0)

    assert "ermission" in refusal(path)


def test_too_many_open_files_is_a_problem_of_the_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is not called damaged for what the machine lacks."""
    checkpoint.write(path, SMALL)

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(atomic, "open_regular", refuse)
    with pytest.raises(SystemProblem, match="too many open files"):
        checkpoint.read(path)


def test_a_reader_never_sees_half_a_file(path: Path) -> None:
    """A thousand reads and more while another thread saves twenty times: each gives the one state or the other, whole."""
    states = [Checkpoint("last", META | {"step": step}, {"w": floats(*[float(step)] * 500)}) for step in range(2)]
    checkpoint.write(path, states[0])
    stop, writes, reads = threading.Event(), 0, 0

    def save() -> None:
        nonlocal writes
        while not stop.is_set():
            checkpoint.write(path, states[writes % 2])
            writes += 1

    thread = threading.Thread(target=save)
    thread.start()
    try:
        while reads < 1000 or writes < 20:
            assert checkpoint.read(path) in states
            reads += 1
    finally:
        stop.set()
        thread.join()


def test_tensors_come_back_bit_for_bit(path: Path) -> None:
    """Every dtype, shape and layout becomes the same tensor again: contiguous, on the CPU, and memory of no other."""
    import torch

    torch.manual_seed(1)
    tensors = {
        "transposed": torch.randn(3, 5).t(),
        "slice": torch.randn(6, 7)[::2, 1:6:2],
        "expanded": torch.randn(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 7),
        "bfloat16": torch.randn(5).bfloat16(),
        "float16": torch.randn(5).half(),
        "int64": torch.tensor([-(1 << 63), (1 << 63) - 1]),
        "int32": torch.arange(3, dtype=torch.int32),
        "random": torch.get_rng_state(),
        "bool": torch.tensor([True, False, True]),
        "minus zero": torch.tensor([-0.0, 1e-45]),
    }
    checkpoint.write(path, Checkpoint("best", META, checkpoint.to_blobs(tensors)))
    state = checkpoint.read(path)
    back = checkpoint.to_tensors(state.tensors)

    assert set(back) == set(tensors)
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert back[name].is_contiguous()
        assert not back[name].requires_grad
        assert checkpoint.to_blobs({"x": back[name]}) == checkpoint.to_blobs({"x": value})
    back["random"].zero_()

    assert not any(state.tensors["random"].data)  # a tensor is the blob's own memory, not a copy of it
    assert all(back[name].equal(value) for name, value in tensors.items() if name != "random")


def test_a_blob_may_be_read_only() -> None:
    """Bytes become tensors as well as memory that can be written, without a warning."""
    back = checkpoint.to_tensors({"w": floats(1.0, 2.5)})

    assert back["w"].tolist() == [1.0, 2.5]


def test_a_dtype_that_has_no_place_is_refused() -> None:
    """A complex tensor is the caller's mistake and is named."""
    import torch

    with pytest.raises(ValueError, match=r"tensor z: .* found complex64"):
        checkpoint.to_blobs({"z": torch.zeros(1, dtype=torch.complex64)})


def test_the_room_needs_no_torch() -> None:
    """Reading and writing import neither torch nor numpy nor the packages of the command line."""
    program = (
        "import sys; from lstmlm.storage import checkpoint, atomic as disk, header, run_dir as runs; "
        "print({'torch', 'numpy', 'typer', 'rich', 'yaml', 'fcntl', 'pickle'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "set()"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(config=st.dictionaries(st.text(), JSON, max_size=3), words=st.lists(st.text(st.characters()), max_size=3))
def test_any_description_comes_back(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], words: list[str]) -> None:
    """Whatever JSON a configuration holds, and whatever characters a command line, they come back equal."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    meta = META | {"config": config, "command": words}
    path.write_bytes(b"".join(checkpoint.pack(Checkpoint("best", meta, {}))))

    assert checkpoint.read(path).meta == meta


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=600))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Random bytes are no checkpoint and nothing but refused."""
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(content)
    refusal(path)
