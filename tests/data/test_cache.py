import io
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lstmlm.data import cache, prepare, sources
from lstmlm.errors import SystemProblem, TextError
from lstmlm.storage import atomic
from tests.corpora import EVERY, PACK, Reader, text_of


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Reader:
    """Read a corpus with a cache folder of its own."""
    return Reader(tmp_path)


class TestLarge:
    """Texts beyond the limit of memory, which is lowered for these tests."""

    text = "".join(random.Random(7).choices("abcdefé 😀\r\n", k=30_000))

    @pytest.fixture(autouse=True)
    def _low_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cache, "MEMORY_LIMIT", 5000)
        monkeypatch.setattr(cache, "SEGMENT", 7001)
        monkeypatch.setattr(sources, "CHUNK", 1013)
        monkeypatch.setattr(prepare, "CHUNK", 1013)

    @pytest.fixture(name="passes")
    def _passes(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Count the files opened for reading."""
        opened: list[str] = []
        original = sources.Source.read

        def counted(source: sources.Source, *args: int) -> Iterator[bytes]:
            opened.append(source.name)
            return original(source, *args)

        monkeypatch.setattr(sources.Source, "read", counted)
        return opened

    def old(self, read: Reader, data: bytes | str | None = None, name: str = "text.txt") -> str:
        """Write a file that was last changed long ago (its attributes cannot be, so the clock is put forward)."""
        return read.file(self.text if data is None else data, name)

    @pytest.fixture(autouse=True)
    def _later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = time.time_ns
        monkeypatch.setattr("time.time_ns", lambda: now() + 10_000_000_000)

    @pytest.mark.parametrize("tokenizer", ["char", "byte"])
    @pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2"])
    def test_a_cached_text_is_the_text(self, read: Reader, tokenizer: str, suffix: str, passes: list[str]) -> None:
        """A large text comes back exactly, the second time without being read."""
        path = self.old(read, PACK[suffix](self.text.encode()), f"text{suffix}")
        first = read(path, tokenizer=tokenizer)
        opened = len(passes)
        second = read(path, tokenizer=tokenizer)

        assert text_of(first) == text_of(second) == self.text
        assert (first.fingerprint, first.counts, first.notes) == (second.fingerprint, second.counts, second.notes)
        assert opened == (2 if tokenizer == "char" and not suffix else 1)
        assert len(passes) == opened

    def test_memory_and_file_give_the_same(self, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the ids are kept changes nothing of the corpus."""
        path = self.old(read)
        large = read(path)
        monkeypatch.setattr(cache, "MEMORY_LIMIT", 1 << 30)
        small = read(path, val_fraction=0.1)

        assert (large.fingerprint, large.counts) == (small.fingerprint, small.counts)
        assert torch.equal(large.train.view(), small.train.view())

    @pytest.mark.parametrize("text", [EVERY[:400] * 50, EVERY[:63488], EVERY[:70_000]], ids=["2", "2 full", "4"])
    def test_wide_ids_are_cached(self, read: Reader, text: str) -> None:
        """Ids of 2 and 4 bytes come back from the file as they are."""
        path = self.old(read, text)

        assert text_of(read(path)) == text_of(read(path)) == text

    def test_a_known_vocabulary_needs_no_pass(self, read: Reader, passes: list[str]) -> None:
        """A run that goes on, and knows its vocabulary, finds what it read when it began; another vocabulary does not."""
        path = self.old(read)
        began = read(path)
        passes.clear()
        symbols = str(began.tokenizer.to_dict()["symbols"])
        again = read(path, symbols=symbols)

        assert passes == []
        assert (again.fingerprint, again.counts, text_of(again)) == (began.fingerprint, began.counts, self.text)
        read(path, symbols=symbols + "\U0010ffff")
        assert passes != []

    def test_an_edited_file_is_read_again(self, read: Reader) -> None:
        """A change of the text is seen, and the ids of the old text are removed."""
        path = self.old(read)
        read(path)
        self.old(read, self.text[::-1])

        assert text_of(read(path)) == self.text[::-1]
        assert len(list(read.cache.glob("*.ids"))) == 1

    def test_a_change_in_the_same_instant_is_seen(self, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        """Times are not trusted for files changed within two seconds of being read."""
        monkeypatch.undo()
        monkeypatch.setattr(cache, "MEMORY_LIMIT", 5000)
        path = self.old(read)
        read(path)
        calls: list[str] = []
        read(path, progress=lambda doing, *_: calls.append(doing))

        assert set(calls) == {"reading"}

    def test_a_touched_file_is_compared_and_not_encoded_again(self, read: Reader) -> None:
        """A file with new times and old content costs one pass, and none from then on."""
        path = self.old(read)
        read(path)
        os.utime(path)
        calls: list[str] = []
        read(path, progress=lambda doing, *_: calls.append(doing))
        first = set(calls)
        calls.clear()
        read(path, progress=lambda doing, *_: calls.append(doing))

        assert first == {"reading"}
        assert calls == []

    def test_a_moved_file_is_known_by_its_content(self, read: Reader) -> None:
        """The same text under another name needs no second encoding."""
        read(self.old(read))
        calls: list[str] = []
        got = read(self.old(read, name="other.txt"), progress=lambda doing, *_: calls.append(doing))

        assert set(calls) == {"reading"}
        assert text_of(got) == self.text

    @pytest.mark.parametrize(
        "options",
        [{"tokenizer": "byte"}, {"val_fraction": 0.3}, {"symbols": "".join(sorted(set(text) | {"z"}))}],
        ids=lambda options: next(iter(options)),
    )
    def test_other_settings_have_other_ids(self, read: Reader, options: dict[str, object]) -> None:
        """What was cached for one setting is not served for another."""
        path = self.old(read)
        first = read(path)
        second = read(path, **options)

        assert text_of(second) == self.text
        assert (len(second.tokenizer), len(second.train)) != (len(first.tokenizer), len(first.train))

    @pytest.mark.parametrize("at", [3, 20, 1500, 4096, 9000, 20_011, -1, -200])
    @pytest.mark.parametrize("damage", ["flip", "cut", "grow", "zero"])
    def test_a_damaged_cache_is_noticed_and_made_again(self, read: Reader, at: int, damage: str) -> None:
        """Whatever happened to the file of ids, the text is right."""
        path = self.old(read)
        read(path)
        (file,) = read.cache.glob("*.ids")
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[at] ^= 1
        elif damage == "cut":
            del data[at:]
        elif damage == "grow":
            data[at:at] = b"x"
        else:
            data[at:] = bytes(len(data[at:]))
        file.write_bytes(data)

        assert text_of(read(path)) == self.text
        assert file.read_bytes() != data

    @pytest.mark.slow
    def test_damage_anywhere_in_the_ids_is_noticed(self, read: Reader, passes: list[str]) -> None:
        """One bit changed at any of a hundred places of the body, and the text is read again instead of trained on."""
        path = self.old(read)
        read(path)
        (file,) = read.cache.glob("*.ids")
        whole = file.read_bytes()
        size = len(self.text)
        for at in range(cache.PAGE + 17, cache.PAGE + size, size // 100):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            passes.clear()

            assert text_of(read(path)) == self.text
            assert passes

    def test_what_is_no_file_is_not_waited_for(self, read: Reader) -> None:
        """A FIFO with the name of a file of ids is no file of ids."""
        path = self.old(read)
        read(path)
        (file,) = read.cache.glob("*.ids")
        file.unlink()
        os.mkfifo(file)

        assert text_of(read(path)) == self.text

    def test_a_spool_is_left_nowhere(self, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        """A large standard input is read once, and leaves nothing but its ids, which it finds again."""
        for expected in ({"reading", "encoding"}, {"reading"}):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(self.text.encode())))
            calls: set[str] = set()
            got = read("-", progress=lambda doing, *_, calls=calls: calls.add(doing))

            assert text_of(got) == self.text
            assert calls == expected
            assert len(list(read.cache.iterdir())) == 1

    @pytest.mark.parametrize("when", ["mkdir", "write", "fsync", "replace"])
    def test_a_full_disk_says_what_to_do(self, read: Reader, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A cache that cannot be written is a problem of the system, and leaves nothing behind."""

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        path = self.old(read)
        monkeypatch.setattr("pathlib.Path.mkdir" if when == "mkdir" else f"os.{when}", full)
        with pytest.raises(SystemProblem, match=r"cache folder .*No space left.*Free some space"):
            read(path)

        assert not read.cache.exists() or list(read.cache.iterdir()) == []

    def test_a_file_in_place_of_the_folder_says_what_to_do(self, read: Reader) -> None:
        """A cache folder that is none is a problem of the system."""
        read.file("x", "cache")
        with pytest.raises(SystemProblem, match="cache folder"):
            read(self.old(read))

    def test_a_refused_text_leaves_nothing(self, read: Reader) -> None:
        """An error in the middle of encoding removes what was written so far."""
        with pytest.raises(TextError):
            read(self.old(read, self.text + "€"), symbols="".join(set(self.text)))

        assert list(read.cache.iterdir()) == []

    def test_leftovers_of_the_dead_are_swept(self, read: Reader) -> None:
        """Half a file of a process that was killed is removed by the next one, that of a living one is not."""
        dead = read.file("x", "cache/.ids.0123456789abcdef.tmp")
        alive = atomic.Draft(Path(dead).parent, "ids")
        read(self.old(read))
        alive.commit(read.cache / "other.ids")

        assert not Path(dead).exists()
        assert len(list(read.cache.iterdir())) == 2

    def test_a_read_only_cache_still_serves(self, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the new times of a file cannot be noted the old ids are served all the same."""
        path = self.old(read)
        read(path)
        os.utime(path)

        def refuse(*_: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("os.fsync", refuse)

        assert text_of(read(path)) == self.text


def test_pieces_of_a_large_mapped_text_are_given_back(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading on after mapped pages went back to the system gives the same ids."""
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 1000)
    monkeypatch.setattr("lstmlm.data.ids.RESIDENT_LIMIT", 2000)
    text = "".join(random.Random(3).choices("abc", k=20_000))
    got = read(read.file(text), val_fraction=0.0)
    parts = [got.tokenizer.decode(got.train.tensor(at, at + 700).tolist()) for at in range(0, 20_000, 700)]

    assert "".join(parts) == text
    assert got.train[19_999] == got.tokenizer.encode(text[-1])[0]


class TestUnused:
    """Files that nobody uses any more."""

    def write(self, folder: Path, name: str, days: float = 0.0, size: int = 1000) -> Path:
        """Write a file of ids that was last used so many days ago."""
        with cache.Writer(folder) as writer:
            writer.append(bytes(size))
            writer.finish(1, {"name": f"{name}.txt"}, name, "stamp", name)
        path = folder / f"{name}.ids"
        then = time.time() - days * 86400
        os.utime(path, (then, then))
        return path

    @pytest.fixture(autouse=True)
    def _low_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cache, "MEMORY_LIMIT", 0)

    def names(self, folder: Path) -> list[str]:
        """Return the names of the files that are there, sorted."""
        return sorted(path.stem for path in folder.glob("*.ids"))

    def test_a_month(self, tmp_path: Path) -> None:
        """A file that was not used for 30 days goes when another one is written; one that was, or is no file of ids, stays."""
        self.write(tmp_path, "a", days=31)
        self.write(tmp_path, "b", days=29)
        (tmp_path / "c.ids").write_bytes(b"mine")
        os.utime(tmp_path / "c.ids", (0, 0))
        self.write(tmp_path, "d")

        assert self.names(tmp_path) == ["b", "c", "d"]

    def test_use_counts(self, tmp_path: Path) -> None:
        """Reading a file is using it."""
        assert cache.load(self.write(tmp_path, "a", days=31)) is not None
        self.write(tmp_path, "b")

        assert self.names(tmp_path) == ["a", "b"]

    def test_a_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond a size the longest unused ones go, but the newest one stays, however large it is."""
        each = self.write(tmp_path, "a", days=2).stat().st_size
        monkeypatch.setattr(cache, "MOST_BYTES", 2.5 * each)
        for name, days in (("b", 3), ("c", 1), ("d", 0)):
            self.write(tmp_path, name, days=days)
        left = self.names(tmp_path)
        monkeypatch.setattr(cache, "MOST_BYTES", 0)
        self.write(tmp_path, "e", size=5000)

        assert left == ["c", "d"]
        assert self.names(tmp_path) == ["e"]

    def test_other_versions_and_damage_count(self, tmp_path: Path) -> None:
        """What no version can use any more is listed, goes after a month, and is cleared like any other file."""
        for name, at in (("older", 11), ("damaged", 40)):
            path = self.write(tmp_path, name)
            data = bytearray(path.read_bytes())
            data[at] ^= 1
            path.write_bytes(data)
            assert cache.load(path) is None
        (tmp_path / "mine.ids").write_bytes(b"mine")
        shown = {one.path.stem: one.text for one in cache.kept(tmp_path)}
        os.utime(tmp_path / "older.ids", (0, 0))
        self.write(tmp_path, "new")

        assert shown == dict.fromkeys(("older", "damaged"), "damaged, or of another version")
        assert self.names(tmp_path) == ["damaged", "mine", "new"]
        cache.clear(tmp_path)
        assert self.names(tmp_path) == ["mine"]

    def test_list_and_clear(self, tmp_path: Path) -> None:
        """Files are listed with what they are of, the last used first, and cleared with their bytes counted."""
        sizes = [self.write(tmp_path, name, days=days).stat().st_size for name, days in (("a", 2), ("b", 1))]

        assert [(one.text, one.size) for one in cache.kept(tmp_path)] == [("b.txt", sizes[1]), ("a.txt", sizes[0])]
        assert cache.clear(tmp_path) == sum(sizes)
        assert self.names(tmp_path) == []
        assert cache.kept(tmp_path / "none") == []
