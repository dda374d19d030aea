"""Get text to train on: well-known corpora from the network, or real English and Python without one.

    python scripts/data/get_data.py tinyshakespeare --out shakespeare.txt    # 1,115,394 bytes
    python scripts/data/get_data.py text8           --out text8.txt          # 100,000,000 bytes
    python scripts/data/get_data.py enwik8          --out enwik8.txt         # 100,000,000 bytes
    python scripts/data/get_data.py english         --out english.txt        # the running Python's own documentation
    python scripts/data/get_data.py python          --out python.txt         # the running Python's own source

A download goes on where an earlier one was cut (HTTP Range, in `FILE.part`), is checked by SHA-256, and takes its name
only when it is whole and right. Exit codes: 0 done, 2 usage, 5 no network, no such file or a disk that refuses.
It needs nothing but Python.
"""

import argparse
import ast
import contextlib
import hashlib
import http.client
import os
import sys
import sysconfig
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PIECE = 1 << 16  # bytes read at a time
TIMEOUT = 30  # seconds without a byte


class DataError(Exception):
    """What the user is told, in one message; exit code 5."""


@dataclass(frozen=True)
class Download:
    """Where a corpus lies, the SHA-256 of what is fetched, and the member to take out if that is a zip archive."""

    url: str
    sha256: str
    member: str | None = None


DOWNLOADS = {
    "tinyshakespeare": Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "text8": Download(
        "http://mattmahoney.net/dc/text8.zip",
        "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
        member="text8",
    ),
    "enwik8": Download(
        "http://mattmahoney.net/dc/enwik8.zip",
        "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        member="enwik8",
    ),
}


def sha256(path: Path) -> str:
    """Return the hex digest of a file, reading it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep(file: BinaryIO, piece: bytes) -> None:
    """Write one piece through to the file; a disk that refuses is not to be taken for a network that does."""
    try:
        file.write(piece)
        file.flush()
    except OSError as error:
        raise DataError(f"Writing {file.name}: expected space on the disk, found: {error.strerror}.") from None


def fetch(url: str, part: Path) -> None:
    """Fetch a file into `part`, going on after the bytes that are there already.

    Raises:
        DataError: If the server cannot be reached, refuses, or breaks off; what has come stays in `part`.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            # 206 is the rest; a server that does not know Range sends 200 and everything.
            went_on = have > 0 and answer.status == 206
            place = answer.headers.get("Content-Range", "")
            if went_on and not place.startswith(f"bytes {have}-"):
                raise DataError(f"Download of {url}: expected bytes from {have}, found {place!r}. Delete {part}.")
            expected = answer.length
            received = 0
            with part.open("ab" if went_on else "wb") as file:
                while piece := answer.read(PIECE):
                    keep(file, piece)
                    received += len(piece)
                os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:  # nothing after what we have: the digest will say whether it is whole
            return
        raise DataError(f"Download of {url}: expected the file, found HTTP {error.code}. Try again later.") from None
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.filename:  # the disk's, not the network's
            raise
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"Download of {url}: expected a network, found: {reason}.\n"
            "Run the same command again to go on where it stopped, or use `english` or `python`, which need no network."
        ) from None
    if expected is not None and received != expected:
        raise DataError(
            f"Download of {url}: expected {expected} bytes, found {received} before the connection ended.\n"
            "Run the same command again to go on where it stopped."
        )


def download(source: Download, out: Path) -> None:
    """Fetch, check and, if need be, unpack a corpus; `out` appears whole or not at all.

    Raises:
        DataError: If it cannot be fetched, or is not what it should be; a wrong file is deleted.
    """
    part = out.with_name(out.name + ".part")
    fetch(source.url, part)
    found = sha256(part)
    if found != source.sha256:
        part.unlink()
        raise DataError(
            f"Download of {source.url}: expected SHA-256 {source.sha256}, found {found}.\n"
            "It was deleted. Run the same command again; if it stays so, the file at that address has changed."
        )
    if source.member is None:
        os.replace(part, out)
        return
    text = out.with_name(out.name + ".unpacked")
    try:
        with zipfile.ZipFile(part) as archive, archive.open(source.member) as packed, text.open("wb") as file:
            while piece := packed.read(PIECE):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(text, out)
    finally:
        text.unlink(missing_ok=True)
    part.unlink()


def sources() -> Iterator[str]:
    """Yield the text of each module of the standard library, in sorted order of paths."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "encodings"}
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if left_out.isdisjoint(path.relative_to(root).parts):
            with contextlib.suppress(UnicodeDecodeError):
                yield path.read_text(encoding="utf-8")


def english() -> Iterator[str]:
    """Yield real English: the language reference that Python carries, then the docstrings of its library."""
    with contextlib.suppress(ImportError):  # some systems package it apart; the docstrings are always there
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield topics[name].strip() + "\n\n"
    for source in sources():
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = ast.get_docstring(node) or ""
                if len(words) >= 80:  # characters; shorter ones are labels more than sentences
                    yield words + "\n\n"


def python() -> Iterator[str]:
    """Yield Python source: the modules of the standard library."""
    for source in sources():
        yield source.rstrip() + "\n\n\n"


LOCAL = {"english": english, "python": python}


def write(pieces: Iterator[str], out: Path) -> int:
    """Write a text beside its name, then give it the name; return its characters."""
    part = out.with_name(out.name + ".part")
    count = 0
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            for piece in pieces:
                file.write(piece)
                count += len(piece)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return count


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Get a text to train on.")
    parser.add_argument("name", choices=[*DOWNLOADS, *LOCAL], help="which text; english and python need no network")
    parser.add_argument("--out", type=Path, help="the file to write (default: NAME.txt)")
    parser.add_argument("--url", help="another address of the same file; its SHA-256 has to be the same")
    options = parser.parse_args(arguments)
    if options.url and options.name in LOCAL:
        parser.error(f"--url: expected a text that is fetched, found {options.name}.")
    out = options.out or Path(f"{options.name}.txt")
    if out.exists():
        parser.error(f"--out {out}: expected no such file, found one. Delete it or give another name.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if options.name in LOCAL:
            write(LOCAL[options.name](), out)
        else:
            source = DOWNLOADS[options.name]
            download(Download(options.url or source.url, source.sha256, source.member), out)
        print(f"{out}: {out.stat().st_size:,} bytes, SHA-256 {sha256(out)}")
    except (DataError, OSError, zipfile.BadZipFile) as error:
        print(f"get_data: {error}", file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
