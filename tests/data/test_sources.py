import gzip
import io
import os
import random
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from lstmlm.data import cache, sources
from lstmlm.errors import SystemProblem, TextError, UsageError
from tests.corpora import PACK, Reader, text_of


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Reader:
    """Read a corpus with a cache folder of its own."""
    return Reader(tmp_path)


def test_files_are_joined_in_the_order_given(read: Reader) -> None:
    """Several files are one text, with a line end between them where one is missing, also in bytes; it is said once."""
    one, two, three = read.file("one", "1"), read.file("two\r\n2", "2"), read.file("three\n", "3")

    assert text_of(read(two, one)) == "two\r\n2\r\none"
    assert text_of(read(one, two, three, one, tokenizer="byte")) == "one\ntwo\r\n2\r\nthree\none"
    assert [note for note in read(one, two, three, one).notes if "2 line ends put between files" in note]
    assert text_of(read(three, one)) == "three\none"
    with pytest.raises(TextError, match="half at byte 1"):
        read(read.file(b"a\xe2\x82", "half"), read.file(b"\xac", "rest"))


def test_a_folder_is_its_files_by_relative_path(read: Reader) -> None:
    """A folder gives its files by sorted relative path, compressed ones unpacked, hidden and special ones left out."""
    read.file("3", "f/b/x.txt")
    read.file("2", "f/b.txt")
    read.file("1", "f/a.txt")
    read.file("4", "f/c")
    read.file(gzip.compress(b"5"), "f/d.gz")
    read.file("!", "f/.hidden")
    read.file("!", "f/.git/config")
    os.mkfifo(read.folder / "f/pipe")
    (read.folder / "f/loop").symlink_to(read.folder / "f")

    assert text_of(read(str(read.folder / "f"))) == "1\n2\n3\n4\n5"
    assert read(str(read.folder / "f")).name == "f"


@pytest.mark.parametrize("hidden", [False, True])
def test_a_folder_without_files_is_refused(read: Reader, hidden: bool) -> None:
    """An empty folder, or one of hidden files only, is no corpus."""
    (read.folder / "empty").mkdir()
    if hidden:
        read.file("x", "empty/.x")
    with pytest.raises(TextError, match="found none in it"):
        read(str(read.folder / "empty"))


def test_a_folder_with_something_unreachable_is_refused(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in a folder that the system does not let anybody follow (/proc/1/cwd) is named, without a traceback."""
    read.file("text", "folder/text.txt")

    def refuse(self: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(TextError, match=r"folder/text.txt: .*Permission denied"):
        read(str(read.folder / "folder"))


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".GZ"])
@pytest.mark.parametrize("damage", [None, "truncated", "flipped", "plain"])
def test_compressed_files_are_read_as_streams(read: Reader, suffix: str, damage: str | None) -> None:
    """A compressed file is its text; a damaged one is refused by name."""
    text = "".join(random.Random(1).choices("abcdé \n", k=20_000))
    data = PACK[suffix.lower()](text.encode())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data = data[:500] + bytes([data[500] ^ 255]) + data[501:]
    elif damage == "plain":
        data = text.encode()
    path = read.file(data, f"text.txt{suffix}")
    if damage:
        with pytest.raises(TextError, match=rf"text\.txt{suffix}.*"):
            read(path)
        return

    assert text_of(read(path)) == text
    assert read(path).name == "text"


def test_members_of_a_compressed_file_are_joined(read: Reader) -> None:
    """A gzip file of several members is all of them."""
    assert text_of(read(read.file(gzip.compress(b"one") + gzip.compress(b"two"), "t.gz"))) == "onetwo"


@pytest.mark.parametrize(("suffix", "magic"), [(".gz", 2), (".xz", 6), (".bz2", 3)])
def test_what_follows_a_compressed_stream_is_text_or_is_refused(read: Reader, suffix: str, magic: int) -> None:
    """Two streams are both of them, whatever padding follows; where a bit of the second is damaged, the file is refused."""
    one, two = (PACK[suffix](text.encode() * 300) for text in ("first ", "second"))
    assert text_of(read(read.file(one + two + bytes(512), f"t{suffix}"))) == "first " * 300 + "second" * 300

    for bit in range(8 * magic):  # of the magic number: what Python's readers of xz and bz2 take for the end
        data = bytearray(one + two)
        data[len(one) + bit // 8] ^= 1 << bit % 8
        with pytest.raises(TextError, match=rf"t\{suffix}: expected a whole"):
            read(read.file(bytes(data), f"t{suffix}"))
    for rest in (b"garbage", two[:5], two[:-5], b"\0\0\0\1"):
        with pytest.raises(TextError, match=rf"t\{suffix}: expected a whole"):
            read(read.file(one + rest, f"t{suffix}"))


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_a_pipe_is_read_once(read: Reader, tokenizer: str) -> None:
    """A FIFO that gives its text in dribbles is read like a file."""
    path = read.folder / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with open(path, "wb", buffering=0) as pipe:
            for byte in "naïve 😀\n".encode() * 20:
                pipe.write(bytes([byte]))

    writer = threading.Thread(target=write)
    writer.start()
    got = read(str(path), tokenizer=tokenizer)
    writer.join()

    assert text_of(got) == "naïve 😀\n" * 20


def test_standard_input_is_a_source(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dash is standard input, whose corpus is called stdin."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("naïve".encode() * 50)))
    got = read("-")

    assert text_of(got) == "naïve" * 50
    assert got.name == "stdin"


def test_standard_input_cannot_be_read_twice(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for standard input as corpus and validation is a mistake of usage."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    with pytest.raises(UsageError, match="twice"):
        read("-", "-")
    with pytest.raises(UsageError, match="twice"):
        read("-", val="-")


def test_closed_standard_input_is_refused(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without standard input says so."""
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(TextError, match="closed"):
        read("-")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/full"])
@pytest.mark.parametrize("as_input", [False, True])
def test_devices_are_refused(read: Reader, path: str, as_input: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device, which may never end, is refused at once, by name and as standard input."""
    with open(path) as device:
        monkeypatch.setattr("sys.stdin", device)
        with pytest.raises(TextError, match="device"):
            read("-" if as_input else path)


def test_files_that_the_system_makes_up_are_read(read: Reader) -> None:
    """A file below /proc says that it has no bytes, and is read all the same."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")

    assert text_of(read("/proc/self/status")).startswith("Name:")


@pytest.mark.parametrize("as_link", [False, True])
@pytest.mark.parametrize(("path", "found"), [("/proc/kmsg", "unavailable|not permitted|denied"), ("/proc/self/pagemap", "MiB")])
def test_what_has_no_end_is_refused(read: Reader, path: str, found: str, as_link: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file below /proc that waits for more, or goes on for ever, is refused, by name or through a link in a folder."""
    if not Path(path).exists():
        pytest.skip(f"no {path}")
    monkeypatch.setattr(sources, "MADE_UP", 1 << 20)
    if as_link:
        (read.folder / "texts").mkdir()
        (read.folder / "texts" / "link").symlink_to(path)
    with pytest.raises(TextError, match=found):
        read(str(read.folder / "texts") if as_link else path, tokenizer="byte")


@pytest.mark.parametrize("name", ["-dash.txt", "new\nline.txt", "sp ace.txt", "ünï.txt", "\x1b[31m.txt"])
def test_odd_names_are_read_and_shown_safely(read: Reader, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have any name; it gives a tame name to the corpus, and none of its controls reach a message."""
    monkeypatch.chdir(read.folder)
    read.file("abc", name)
    got = read(name)
    read.file(b"\xff\xff", name)
    with pytest.raises(TextError) as caught:
        read(name)

    assert text_of(got) == "abc"
    assert got.name.replace("_", "").replace("-", "").replace(".", "").isalnum()
    assert got.name[0] not in ".-"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "nothing\0here", "x" * 5000, "/no/such/folder/text", "text.txt/inside"])
def test_names_that_lead_nowhere_are_refused(read: Reader, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be a file is an error of ours."""
    monkeypatch.chdir(read.folder)
    read.file("abc")
    with pytest.raises(TextError) as caught:
        read(name)

    assert len(str(caught.value)) < 6000


def test_a_mistyped_name_gets_help(read: Reader, tmp_path: Path) -> None:
    """A missing file names its likely neighbours, and what comes along."""
    read.file("abc", "shakespeare.txt")
    bundled = read.folder / "bundled"
    read.file("abc", "bundled/stories.txt")
    with pytest.raises(TextError, match=r"Did you mean '.*shakespeare\.txt'\?"):
        read(str(read.folder / "shakespear.txt"))
    with pytest.raises(TextError, match="found an address"):
        read("https://example.com/text.txt")
    with pytest.raises(TextError, match=r"Did you mean 'stories'\? .*come along: stories"):
        read("storys", bundled=bundled)
    with pytest.raises(TextError) as unlike:
        read(str(read.folder / "ann.txt"))
    assert "Did you mean" not in str(unlike.value)  # the ending alone is like


def test_a_bundled_name_is_a_source_but_files_win(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a bundled corpus is enough, unless a file is called the same."""
    read.file("bundled", "bundled/stories.txt")
    monkeypatch.chdir(read.folder)

    assert text_of(read("stories", bundled=read.folder / "bundled")) == "bundled"
    read.file("own file", "stories")
    assert text_of(read("stories", bundled=read.folder / "bundled")) == "own file"


def test_nothing_to_read_is_a_mistake_of_usage(read: Reader) -> None:
    """No source at all is refused."""
    with pytest.raises(UsageError):
        read()


def test_a_file_that_cannot_be_read_says_why(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal of the system is passed on in words: permission is the user's matter, a broken disk the machine's."""
    path = read.file("abc")
    for reason, kind in (
        (PermissionError(13, "Permission denied"), TextError),
        (OSError(5, "I/O error"), SystemProblem),
    ):

        def fail(*_: object, reason: OSError = reason, **__: object) -> None:
            raise reason

        monkeypatch.setattr("lstmlm.data.sources.open", fail, raising=False)
        with pytest.raises(kind, match=r"Permission denied|I/O error"):
            read(path)


@pytest.mark.parametrize(
    ("change", "when"),
    [("grown", "reading"), ("grown", "encoding"), ("cut", "reading"), ("cut", "encoding"), ("replaced", "reading")],
)
def test_a_file_that_changes_while_it_is_read_is_noticed(
    read: Reader, change: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text is never a mixture of two states of a file, within a pass or between two."""
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 1000)
    path = Path(read.file("abcd" * 1000))
    changed: list[bool] = []

    def progress(doing: str, done: int, total: int) -> None:
        if doing == when and not changed:
            changed.append(True)
            if change == "grown":
                path.write_bytes(path.read_bytes() + b"more")
            elif change == "cut":
                os.truncate(path, 10)
            else:
                Path(read.file("dcba" * 1000, "new")).replace(path)

    with pytest.raises(TextError, match="changed while it was read"):
        read(str(path), progress=progress)


def test_a_file_replaced_after_it_was_opened_is_whole(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in a file's place during its last pass is not mixed in, and is read the next time."""
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 1000)
    path = read.file("abcd" * 1000)

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "encoding":
            Path(read.file("dcba" * 1000, "new")).replace(path)

    assert text_of(read(path, progress=progress)) == "abcd" * 1000
    assert text_of(read(path)) == "dcba" * 1000


def test_a_changed_content_under_an_unchanged_face_is_noticed(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where size and times say nothing the second pass sees that its text is not the first one's."""
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 1000)
    monkeypatch.setattr(sources.Source, "_unchanged", lambda *_: None)
    path = read.file("abcd" * 1000)

    def progress(doing: str, done: int, total: int) -> None:
        if doing == "reading" and done == total:
            Path(path).write_text("abdc" * 1000)

    with pytest.raises(TextError, match="changed while it was read"):
        read(path, progress=progress)


def _tar(read: Reader, name: str, members: dict[str, bytes], mode: str = "w") -> str:
    path = read.folder / name
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # the mode is one of its own
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind, member in ((tarfile.SYMTYPE, "link"), (tarfile.CHRTYPE, "device"), (tarfile.DIRTYPE, "folder")):
            info = tarfile.TarInfo(member)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return str(path)


MEMBERS = {
    "b/two.md": "zwei €\n".encode(),
    "a.txt": b"one",
    "b/.hidden": b"!",
    ".git/config": b"!",
    "logo.png": b"\x89PNG\0\0",
    "c.txt": b"three\n",
}


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.tgz", "t.tar.xz", "t.tar.bz2", "t.TAR.GZ", "t.zip"])
@pytest.mark.parametrize("chunk", [5, 1 << 18])
def test_members_of_an_archive_are_files(read: Reader, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive is its files, a .zip by name, without links, hidden ones and what is no text, which is said in one line."""
    monkeypatch.setattr(sources, "CHUNK", chunk)
    monkeypatch.setattr("lstmlm.data.recognition.HEAD", 4)
    if name.endswith(".zip"):
        path = str(read.folder / name)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in MEMBERS.items():
                archive.writestr(member, data)
            link = zipfile.ZipInfo("link")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
        expected = "one\nzwei €\nthree\n"
    else:
        packed = {".gz": ":gz", ".tgz": ":gz", ".xz": ":xz", ".bz2": ":bz2"}.get(Path(name).suffix.lower(), "")
        path, expected = _tar(read, name, MEMBERS, f"w{packed}"), "zwei €\none\nthree\n"
    got = read(path)

    assert text_of(got) == expected
    assert got.name == "t"
    assert [note for note in got.notes if note.startswith("left out: 1 file without text (")]
    assert [note for note in got.notes if "2 hidden" in note]
    assert text_of(read(path, include=["*.md"])) == "zwei €\n"
    assert text_of(read(path, exclude=["b", "c.*"])) == "one"


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.tar.xz", "t.zip"])
def test_a_damaged_or_cut_archive_is_refused(read: Reader, name: str) -> None:
    """An archive that is cut anywhere, or has a flipped bit that its checksums cover, is refused, never read in part."""
    files = {f"{i}.txt": random.Random(i).randbytes(700).hex().encode() for i in range(4)}
    if name == "t.zip":
        with zipfile.ZipFile(read.folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in files.items():
                archive.writestr(member, data)
        path = str(read.folder / name)
    else:
        path = _tar(read, name, files, {"t.tar": "w", "t.tar.gz": "w:gz"}.get(name, "w:xz"))
    whole = Path(path).read_bytes()
    last = len(whole.rstrip(b"\0"))
    for cut in (1, 300, last // 2, last // 512 * 512 if name == "t.tar" else last - 9):
        Path(path).write_bytes(whole[:cut])
        with pytest.raises(TextError, match=rf"{name}: expected a whole"):
            read(path)
    Path(path).write_bytes(whole[:-1300] + b"x" + whole[-1299:] if name != "t.tar" else whole[:2050] + b"x" + whole[2051:])
    with pytest.raises(TextError, match=rf"{name}"):
        read(path)


def test_a_hostile_archive_takes_no_memory(read: Reader) -> None:
    """A header that announces a name of many bytes is refused before they are read; a member that leads out of it is a name."""
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    path = read.file(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "bomb.tar")
    with pytest.raises(TextError, match="a header of 1099511627776 bytes"):
        read(path)

    assert text_of(read(_tar(read, "up.tar", {"../../etc/x": b"inside"}))) == "inside"
    assert not (read.folder.parent / "etc").exists()


def test_an_encrypted_zip_is_refused(read: Reader) -> None:
    """A member that has a password is named as the reason."""
    with zipfile.ZipFile(read.folder / "t.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    data = bytearray((read.folder / "t.zip").read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + place] |= 1
    with pytest.raises(TextError, match="password"):
        read(read.file(bytes(data), "t.zip"))


def test_what_is_no_text_is_left_out_of_a_folder(read: Reader) -> None:
    """Pictures, hidden files and folders of version control are passed over, and counted in one line; in bytes all counts."""
    read.file("1", "f/a.md")
    read.file(b"\x89PNG\r\n\x1a\n\0\0", "f/logo.png")
    read.file('<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="x"><path d="M0 0"/></svg>', "f/logo.svg")
    read.file(b"%PDF-1.4 text", "f/paper.pdf")
    read.file("!", "f/CVS/Entries")
    read.file("!", "f/.hidden")
    folder = str(read.folder / "f")
    read.file("23", "f/b.md")
    got = read(folder)

    assert text_of(got) == "1\n23"
    assert [n for n in got.notes if "3 files without text" in n and "logo.png" in n and "2 hidden" in n]
    assert b"PNG" in bytes(read(folder, tokenizer="byte").train.tensor(0, 99).tolist())
    assert text_of(read(str(read.folder / "f/logo.svg"))).startswith("<?xml")
    assert text_of(read(folder, include=["*.svg"])).startswith("<?xml")
    with pytest.raises(TextError, match="expected text, found a PDF"):
        read(str(read.folder / "f/paper.pdf"))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.md"], [], "am\nbm\n"),
        (["*.md", "*.txt"], ["drafts"], "am\nat\nbm\n"),
        (["b/*"], [], "bm\ndt\n"),
        (["./b/*.md"], [], "bm\n"),
        ([], ["b/"], "am\nat\n"),
        ([], ["*.md", "b/drafts/*"], "at\n"),
    ],
)
def test_patterns_choose_files(read: Reader, include: list[str], exclude: list[str], expected: str) -> None:
    """Files of a folder are chosen by name, or with a slash by path; a folder is left out with all that is in it."""
    for name in ("a.md", "a.txt", "b/b.md", "b/drafts/d.txt"):
        read.file(f"{Path(name).stem}{name[-2] if name[-2] == 'm' else 't'}\n", f"f/{name}")

    assert text_of(read(str(read.folder / "f"), include=include, exclude=exclude)) == expected
    with pytest.raises(TextError, match="that match nothing"):
        read(str(read.folder / "f"), include=["nothing"])


def test_all_bad_files_are_named_at_once_or_skipped(read: Reader) -> None:
    """Every file that cannot be decoded is named in the first refusal; skipped, they are named with the first reason."""
    read.file("good\n" * 5, "f/a.txt")
    read.file("naïve été\n".encode("latin-1") * 9, "f/b.txt")
    read.file(b"\xff\xff", "f/c.txt")
    read.file(gzip.compress(b"x" * 999)[:-9], "f/d.gz")
    archive = _tar(read, "t.tar", {"x.txt": b"in\n", "y.txt": b"\xfe\xff\xff"})
    folder = str(read.folder / "f")
    with pytest.raises(TextError, match=r"b\.txt at byte 2(.|\n)*4 files cannot be read: .*b\.txt, .*c\.txt, .*d\.gz, .*:y"):
        read(folder, archive)
    got = read(folder, archive, "nowhere", skip_bad=True)

    assert text_of(got) == "good\n" * 5 + "in\n"
    assert [n for n in got.notes if n.startswith("5 left out that cannot be read: nowhere, ")]
    with pytest.raises(TextError, match=r"c\.txt"):
        read(str(read.folder / "f/c.txt"), skip_bad=True)
