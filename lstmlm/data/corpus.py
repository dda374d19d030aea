"""A text of any size -> ids -> a training part and a validation part.

`open_corpus` is the entry point, for the commands. A first pass finds the characters, a second one writes their ids (bytes
need no first pass). Both hold a few MiB, however long the text is. Ids of more than `cache.MEMORY_LIMIT` go to a file in the
cache folder, which is found again as long as the text stays the same. torch is imported only while it counts.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstmlm.config.run_config import resource_dir
from lstmlm.data import cache
from lstmlm.data.decoding import Tally, decode, find_encoding
from lstmlm.data.ids import Ids, Store
from lstmlm.data.packing import Packer, SymbolSet
from lstmlm.data.sources import CHUNK, PACKED, Source, changed, find_sources
from lstmlm.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, describe, from_dict
from lstmlm.errors import SystemProblem, TextError, UsageError

ProgressCallback = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all (0: unknown)


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as a run sees it.

    Attributes:
        name: Short name, fit for a folder: the stem of the first source.
        tokenizer: Maps the text to ids and back.
        train: Ids of the training part.
        val: Ids of the validation part; empty if the text is too short or none was wanted.
        fingerprint: SHA-256, in hex, of the decoded text of both parts and of where the one ends.
        counts: Occurrences of each id in the training part. len V
        chars: Characters in both parts (bytes, for the byte tokenizer).
        bytes: Bytes of both parts in UTF-8.
        val_bytes: Bytes of the validation part in UTF-8.
        notes: What a reader should know about the text, in words.
    """

    name: str
    tokenizer: Tokenizer
    train: Ids
    val: Ids
    fingerprint: str
    counts: list[int]
    chars: int
    bytes: int
    val_bytes: int
    notes: list[str]


def open_corpus(
    sources: Sequence[str],
    *,
    tokenizer: str = "char",
    encoding: str = "utf-8",
    val: str | None = None,
    val_fraction: float = 0.1,
    cache_dir: Path,
    symbols: str | None = None,
    progress: ProgressCallback | None = None,
    bundled: Path | None = None,
) -> Corpus:
    """Read, encode and split a text; a large one comes from the cache if it has been read before.

    The vocabulary is all characters of `sources`, both parts. The last floor(chars * val_fraction) characters are the
    validation part, but at least 2 are left for training. With `val` all of `sources` is for training; characters of
    `val` that are not in the vocabulary are left out, and counted in the notes.

    Args:
        sources: Files, folders, `-` or names of bundled corpora, joined in this order with nothing in between.
        tokenizer: `char` or `byte`.
        encoding: What the files are written in; the byte tokenizer does not ask.
        val: A source for the validation part.
        val_fraction: Otherwise, the part of the text that is held out. 0 to 0.5
        cache_dir: Folder for ids that are too many for memory; made when it is needed.
        symbols: The vocabulary of a model that goes on; every character must be in it.
        progress: Is called with every piece.
        bundled: Folder of the corpora that come along; None: that of the program.

    Raises:
        TextError: If a source cannot be read or decoded, changes meanwhile, or has fewer than 2 characters.
        ConfigError: If there is no such encoding.
        SystemProblem: If the cache folder cannot be written to.
    """
    encoding = "bytes" if tokenizer == "byte" else find_encoding(encoding)
    names = [list(sources)] + ([[val]] if val is not None else [])
    with contextlib.suppress(SystemProblem):  # no such folder; other people's files can be read without it
        bundled = bundled or resource_dir("data")
    texts = [find_sources(group, bundled) for group in names]
    if sum(source.path is None for text in texts for source in text) > 1:
        raise UsageError("corpus -: expected standard input once, found it twice. It can be read only once.")
    plan = _Plan(texts, tokenizer, encoding, 0.0 if val is not None else val_fraction, symbols, cache_dir, progress)
    return _corpus(name_of(sources[0]), plan.remembered() or plan.read())


class _Plan:
    """What is to be read and how, and what that would be called in the cache."""

    def __init__(
        self,
        texts: list[list[Source]],
        tokenizer: str,
        encoding: str,
        val_fraction: float,
        symbols: str | None,
        folder: Path,
        progress: ProgressCallback | None,
    ) -> None:
        self.texts, self.encoding, self.val_fraction, self.folder = texts, encoding, val_fraction, folder
        self.symbols, self.byte, self.progress = symbols, tokenizer == "byte", progress
        self.settings = [cache.MAGIC.decode(), sys.byteorder, tokenizer, encoding, symbols, val_fraction]
        self.place, self.stamp = self._marks(self.settings)
        self.started = time.time_ns()

    def _marks(self, settings: Sequence[object]) -> tuple[str, str]:
        """Return what the files are called and what state they are in, as digests, each with the settings."""
        place = _digest([[os.path.abspath(source.path or "-") for source in text] for text in self.texts], settings)
        return place, _digest(place, [[source.identity for source in text] for text in self.texts])

    def remembered(self) -> Store | None:
        """Find the ids in the cache by the state of the files alone, which takes no pass over them."""
        sources = [source for text in self.texts for source in text]
        # Only a large or a compressed text can have left a file.
        large = sum(source.size for source in sources) * 4 > cache.MEMORY_LIMIT
        if any(source.identity is None for source in sources) or not (large or any(not s.plain for s in sources)):
            return None
        newest = max(source.changed for source in sources)
        found = cache.find(self.folder, self.stamp, newest)
        if found is None and self.symbols is not None:
            # A run that goes on knows its vocabulary; when it began, the same text gave the same one.
            began = cache.find(self.folder, self._marks([*self.settings[:4], None, self.val_fraction])[1], newest)
            if began is not None and began.facts["tokenizer"].get("symbols") == self.symbols:
                return began
        return found

    def read(self) -> Store:
        """Make the passes."""
        with contextlib.ExitStack() as stack:
            # Bytes and known vocabularies need one pass; two need what can be read only once to be kept.
            once = self.byte or self.symbols is not None
            feeds = [
                stack.enter_context(_Feed(text, self.folder, self.progress, keep=i == 0 and not once))
                for i, text in enumerate(self.texts)
            ]
            if self.byte:
                return self._encode(feeds, ByteTokenizer(), None)
            if self.symbols is not None:
                return self._encode(feeds, CharTokenizer(self.symbols), None)
            found, tally = SymbolSet(), Tally()
            for text in decode(feeds[0].pieces("reading"), self.encoding, tally):
                found.add(text)
            _refuse_short(self.texts[0], tally.chars, 0, 2)
            if len(feeds) == 1:
                key = self._key([tally])
                store = cache.load(self.folder / f"{key}.ids")
                if store is not None:
                    cache.restamp(self.folder / f"{key}.ids", self.stamp, self.place, self.started)
                    return store
            return self._encode(feeds, CharTokenizer(found.symbols()), tally)

    def _encode(self, feeds: "list[_Feed]", tokenizer: Tokenizer, before: Tally | None) -> Store:
        """Write the ids of all texts, one after another, and what is known of them."""
        tallies = [Tally() for _ in feeds]
        packers = [Packer(tokenizer, skip=i > 0) for i in range(len(feeds))]
        with cache.Writer(self.folder) as writer:
            for i, (feed, packer, tally) in enumerate(zip(feeds, packers, tallies, strict=True)):
                for piece in self._packed(feed, packer, tally):
                    writer.append(piece)
                    packer.count(piece)
                _refuse_short(self.texts[i], tally.chars, packer.skipped, 1 if i else 2)
            if before is not None and before.digest.hexdigest() != tallies[0].digest.hexdigest():
                raise changed(self.texts[0][0].name)
            facts = self._facts(writer.ids(packers[0].width), tokenizer, packers, tallies)
            return writer.finish(packers[0].width, facts, self._key(tallies), self.stamp, self.place)

    def _packed(self, feed: "_Feed", packer: Packer, tally: Tally) -> "Iterator[bytes | bytearray]":
        pieces = feed.pieces("encoding")
        if not self.byte:
            yield from map(packer.pack, decode(pieces, self.encoding, tally))
            return
        for _, raw in pieces:
            tally.add(len(raw), raw)
            yield raw

    def _facts(self, ids: Ids, tokenizer: Tokenizer, packers: list[Packer], tallies: list[Tally]) -> dict[str, Any]:
        train, counts = tallies[0].chars, [packer.counts.tolist() for packer in packers]
        if len(packers) == 1:
            held_out = Packer(tokenizer)
            train -= min(int(train * self.val_fraction), train - 2)
            for start in range(train, len(ids), CHUNK):
                held_out.count(ids.stored(start, start + CHUNK))
            counts = [(packers[0].counts - held_out.counts).tolist(), held_out.counts.tolist()]
        notes: list[str] = []
        if isinstance(tokenizer, CharTokenizer):
            for tally, packer in zip(tallies, packers, strict=True):
                few = [(i, c) for c in "\0\r\n" for i in tokenizer.encode(c, "skip")]
                notes += tally.notes({c: int(packer.counts[i]) for i, c in few})
        if packers[-1].skipped:
            found = ", ".join(map(describe, packers[-1].strange))
            notes.append(f"{packers[-1].skipped} validation characters left out that training does not have: {found}")
        if self.val_fraction and train == len(ids):
            notes.append(f"no validation part: {train} characters are too few for one")
        lengths = tokenizer.byte_lengths()
        return {
            "tokenizer": tokenizer.to_dict(),
            "train": train,
            "chars": len(ids),
            "counts": counts[0],
            "bytes": [sum(n * length for n, length in zip(part, lengths, strict=True)) for part in counts],
            "fingerprint": fingerprint_of([tally.digest.hexdigest() for tally in tallies], train),
            "notes": notes,
        }

    def _key(self, tallies: list[Tally]) -> str:
        return _digest([tally.digest.hexdigest() for tally in tallies], self.settings)


class _Feed:
    """The raw pieces of a text, as often as they are asked for."""

    def __init__(self, sources: list[Source], folder: Path, progress: ProgressCallback | None, *, keep: bool) -> None:
        self._sources, self._folder, self._progress = sources, folder, progress
        plain = all(source.plain for source in sources)
        self._total = sum(source.size for source in sources) if plain else 0
        # A small text is read once and kept in memory; so is, in the cache folder, what cannot be read again.
        self._kept: list[tuple[Source, int]] | None = [] if keep and self._total <= cache.MEMORY_LIMIT else None
        self._spool = tempfile.SpooledTemporaryFile(cache.MEMORY_LIMIT, dir=str(folder))  # noqa: SIM115  # `close` ends it
        self._passes = 0

    def __enter__(self) -> "_Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def pieces(self, doing: str) -> Iterator[tuple[Source, bytes]]:
        """Give each piece with the source it is from, and report the progress of what is being done with it."""
        done, self._passes = 0, self._passes + 1
        for source, raw in self._kept_pieces() if self._passes > 1 and self._kept is not None else self._read():
            done += len(raw)
            if self._progress is not None:
                self._progress(doing, done, self._total)
            yield source, raw

    def _read(self) -> Iterator[tuple[Source, bytes]]:
        for source in self._sources:
            for raw in source.read():
                if self._kept is not None:
                    with cache.writing_to(self._folder):
                        if self._spool.tell() + len(raw) > cache.MEMORY_LIMIT:
                            self._folder.mkdir(parents=True, exist_ok=True)
                        self._spool.write(raw)
                    self._kept.append((source, len(raw)))
                yield source, raw

    def _kept_pieces(self) -> Iterator[tuple[Source, bytes]]:
        assert self._kept is not None
        self._spool.seek(0)
        for source, size in self._kept:
            yield source, self._spool.read(size)


def _corpus(name: str, store: Store) -> Corpus:
    facts = store.facts
    return Corpus(
        name=name,
        tokenizer=from_dict(facts["tokenizer"]),
        train=store.ids(0, facts["train"]),
        val=store.ids(facts["train"], facts["chars"]),
        fingerprint=facts["fingerprint"],
        counts=facts["counts"],
        chars=facts["chars"],
        bytes=sum(facts["bytes"]),
        val_bytes=facts["bytes"][1],
        notes=facts["notes"],
    )


def _refuse_short(sources: list[Source], chars: int, skipped: int, least: int) -> None:
    if chars - skipped >= least:
        return
    name = sources[0].name if len(sources) == 1 else f"{sources[0].name} and {len(sources) - 1} more"
    found = "none: it is empty" if not chars else "none that training has" if skipped else str(chars)
    raise TextError(f"corpus {name}: expected at least {least} character{'s' * (least > 1)}, found {found}. Use a longer text.")


def fingerprint_of(digests: list[str], train: int) -> str:
    """Return the fingerprint of a corpus: of the digests of its decoded texts, and the length of its training part."""
    return _digest(digests, train)


def name_of(source: str) -> str:
    """Return the name of a corpus, and of the run on it, fit for a folder: that of its first source without known endings."""
    path = Path(source)
    stem = "stdin" if source == "-" else (path.name if path.name.strip(".") else path.resolve().name)
    for _ in range(2):  # stories.txt.gz
        stem = Path(stem).stem if Path(stem).suffix.lower() in (*PACKED, ".txt", ".text", ".md") else stem
    fit = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem).lstrip(".-")
    return fit[:80] or "corpus"


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
