"""Getting text: from a server that can be cut off, lies, or is not there, and from the running Python."""

import hashlib
import importlib.util
import io
import itertools
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = bytes(range(97, 123)) * 9001  # several pieces, not a whole number of them


def load() -> Any:
    """Import the script, which lies outside the package."""
    spec = importlib.util.spec_from_file_location("get_data", ROOT / "scripts" / "data" / "get_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


get_data: Any = load()


class Server(ThreadingHTTPServer):
    """A file server for one file.

    Attributes:
        content: The file.
        cut: Bytes after which it breaks a first answer off.
        ranges: Whether it knows Range.
        asked: The Range header of each request.
    """

    content = TEXT
    cut: int | None = None
    ranges = True
    asked: list[str | None]

    @property
    def url(self) -> str:
        """Return the address of the file."""
        return f"http://127.0.0.1:{self.server_port}/file"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Send the file, or the rest of it, or the beginning of what was asked for."""
        server = self.server
        assert isinstance(server, Server)
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if first >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if wanted and server.ranges else 200)
        if wanted and server.ranges:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - first))
        self.end_headers()
        self.wfile.write(server.content[first : server.cut])
        server.cut = None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests read stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server for the length of a test."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server(("127.0.0.1", 0), Handler)
    running.asked = []
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def expect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a function that says which bytes `tinyshakespeare` should be, and which member of a zip."""

    def set_to(content: bytes, member: str | None = None) -> None:
        source = get_data.Download("http://127.0.0.1:1/nowhere", hashlib.sha256(content).hexdigest(), member)
        monkeypatch.setitem(get_data.DOWNLOADS, "tinyshakespeare", source)

    return set_to


def fetch(out: Path, url: str) -> int:
    """Run the command line for one download; return its exit code."""
    code: int = get_data.main(["tinyshakespeare", "--out", str(out), "--url", url])
    return code


def files(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_whole_file(server: Server, expect: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file is fetched whole, named on stdout with its digest, and nothing else is left."""
    expect(TEXT)

    assert fetch(tmp_path / "a" / "text.txt", server.url) == 0
    assert (tmp_path / "a" / "text.txt").read_bytes() == TEXT
    assert files(tmp_path / "a") == ["text.txt"]
    assert hashlib.sha256(TEXT).hexdigest() in capsys.readouterr().out


def test_goes_on_where_it_was_cut(server: Server, expect: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A download that breaks off leaves its bytes, says so, and the next one asks for the rest only."""
    expect(TEXT)
    server.cut = 150_000

    assert fetch(tmp_path / "text.txt", server.url) == 5
    assert "Run the same command again" in capsys.readouterr().err
    assert files(tmp_path) == ["text.txt.part"]
    have = (tmp_path / "text.txt.part").stat().st_size
    assert 0 < have <= 150_000
    assert fetch(tmp_path / "text.txt", server.url) == 0
    assert server.asked == [None, f"bytes={have}-"]
    assert (tmp_path / "text.txt").read_bytes() == TEXT
    assert files(tmp_path) == ["text.txt"]


def test_server_without_range(server: Server, expect: Any, tmp_path: Path) -> None:
    """A server that knows no Range sends everything, and everything replaces what was there."""
    expect(TEXT)
    server.ranges = False
    (tmp_path / "text.txt.part").write_bytes(TEXT[:1000])

    assert fetch(tmp_path / "text.txt", server.url) == 0
    assert (tmp_path / "text.txt").read_bytes() == TEXT


def test_whole_part_is_taken(server: Server, expect: Any, tmp_path: Path) -> None:
    """A download killed after its last byte is finished without fetching anything again."""
    expect(TEXT)
    (tmp_path / "text.txt.part").write_bytes(TEXT)

    assert fetch(tmp_path / "text.txt", server.url) == 0
    assert files(tmp_path) == ["text.txt"]


def test_wrong_digest_leaves_nothing(server: Server, expect: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with one wrong byte is refused, with both digests, and leaves nothing behind."""
    expect(TEXT)
    server.content = b"A" + TEXT[1:]

    assert fetch(tmp_path / "text.txt", server.url) == 5
    said = capsys.readouterr().err
    assert hashlib.sha256(TEXT).hexdigest() in said
    assert hashlib.sha256(server.content).hexdigest() in said
    assert files(tmp_path) == []


def test_archive_is_unpacked(server: Server, expect: Any, tmp_path: Path) -> None:
    """Of a zip archive, checked as a whole, only the text in it stays."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", TEXT)
    server.content = memory.getvalue()
    expect(server.content, "inner")

    assert fetch(tmp_path / "text.txt", server.url) == 0
    assert (tmp_path / "text.txt").read_bytes() == TEXT
    assert files(tmp_path) == ["text.txt"]


def test_no_network(expect: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server there is one message, which names what works without one, and exit code 5."""
    expect(TEXT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: a connection is refused
        code = fetch(tmp_path / "text.txt", f"http://127.0.0.1:{free.getsockname()[1]}/file")
    said = capsys.readouterr()

    assert code == 5
    assert said.out == ""
    assert said.err.count("get_data:") == 1
    assert "Traceback" not in said.err
    assert "`english`" in said.err
    assert len(said.err.splitlines()) <= 6
    assert files(tmp_path) == []


def test_missing_file(server: Server, expect: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that has no such file is reported by its status, and leaves nothing."""
    expect(TEXT)
    server.content = b""  # the handler answers 416 to every place in it

    assert fetch(tmp_path / "text.txt", server.url) == 5
    assert "HTTP 416" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_existing_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of that name is never overwritten: exit 2."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        get_data.main(["english", "--out", str(tmp_path / "mine.txt")])

    assert stop.value.code == 2
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert "--out" in capsys.readouterr().err


def test_disk_that_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be made is one message and exit code 5, not a traceback."""
    (tmp_path / "file").write_text("")

    assert get_data.main(["python", "--out", str(tmp_path / "file" / "out.txt")]) == 5
    assert capsys.readouterr().err.startswith("get_data: ")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least", "word"), [("english", 300_000, " the "), ("python", 500_000, "def ")])
def test_text_without_network(name: str, least: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running Python's own documentation and source are real text, need no network, and come out the same twice."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    some = list(itertools.islice(get_data.sources(), 60))  # modules: the whole library takes seconds to parse
    monkeypatch.setattr(get_data, "sources", lambda: iter(some))
    monkeypatch.setattr(socket, "socket", refuse)
    out = [tmp_path / "one.txt", tmp_path / "two.txt"]
    assert [get_data.main([name, "--out", str(path)]) for path in out] == [0, 0]
    text = out[0].read_bytes()

    assert text == out[1].read_bytes()
    assert len(text.decode("utf-8")) >= least
    assert text.decode("utf-8").count(word) > 1000
    assert files(tmp_path) == ["one.txt", "two.txt"]


def test_known_corpora_name_their_digest() -> None:
    """Each download has an address and a SHA-256 of 64 hexadecimal digits."""
    assert set(get_data.DOWNLOADS) == {"tinyshakespeare", "text8", "enwik8"}
    for source in get_data.DOWNLOADS.values():
        assert source.url.startswith("http")
        assert len(bytes.fromhex(source.sha256)) == 32
