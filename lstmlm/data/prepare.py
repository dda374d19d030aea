"""A text -> ids in memory or in the cache: the passes over its files, and what they find.

`Preparation` is the entry point, for `corpus.open_corpus`. A first pass finds the characters, and counts the units of which some
are drawn for validation; a second one writes the ids (bytes need no first pass where the end is held out). Where rare characters
are to share a symbol, a pass between the two counts them. All hold a few MiB, however long the text is. Ids of more than
`cache.MEMORY_LIMIT` go to a file in the cache folder, which is found again as long as the text stays the same. torch is imported
only while it counts.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstmlm.data import cache, splits
from lstmlm.data.decoding import Reading, Tally, documents, join
from lstmlm.data.ids import Store
from lstmlm.data.packing import Counter, Packer, SymbolSet
from lstmlm.data.sources import CHUNK, LeftOut, Source, changed
from lstmlm.data.tokenizer import ByteTokenizer, CharTokenizer, OnUnknown, Tokenizer, describe
from lstmlm.errors import TextError, in_shell, printable
from lstmlm.units import counted

NAMED = 5  # characters or files that a note names
_Drawn = Callable[[], Iterator[int]]  # gives the units that are held out, as often as they are asked for
ProgressCallback = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all (0: unknown)


@dataclass(kw_only=True)
class Preparation:
    """What is to be read and how, and what that would be called in the cache; see `corpus.open_corpus`."""

    texts: list[list[Source]]
    tokenizer: str
    how: Reading
    val_fraction: float
    split: str
    seed: int
    min_count: int
    symbols: str | None
    on_unknown: str
    advice: str
    folder: Path
    progress: ProgressCallback | None

    def __post_init__(self) -> None:
        if self.symbols is None:  # every character of the text is known, or rare
            self.on_unknown = "error"
        if not self.val_fraction:
            self.split = "tail"
        if self.split == "auto" and not (self.how.field or any(source.archive for source in self.texts[0])):
            self.split = "files" if len(self.texts[0]) >= splits.MANY_FILES else "tail"
        self.byte = self.tokenizer == "byte"
        self.left_out = LeftOut()
        self.units, self.drawn = 0, 0  # lines, paragraphs or files, and how many of them are held out
        self.place, self.stamp = self._marks(self._settings())
        self.started = time.time_ns()

    def _settings(self) -> dict[str, object]:
        """Return what the ids depend on beside the text."""
        archives = [source for source in self.texts[0] if source.archive]
        drawn = self.split != "tail"
        return {
            "format": cache.MAGIC.decode(),
            "byteorder": sys.byteorder,
            "tokenizer": self.tokenizer,
            "encoding": self.how.encoding,
            "field": self.how.field,
            "normalize": self.how.normalize,
            "min_count": self.min_count,
            "symbols": self.symbols,
            "on_unknown": self.on_unknown,
            "val_fraction": self.val_fraction,
            "split": self.split,
            "seed": self.seed if drawn else None,
            "selections": [[one.selection.include, one.selection.exclude, sorted(one.without)] for one in archives],
        }

    def _marks(self, settings: dict[str, object]) -> tuple[str, str]:
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
            began = cache.find(self.folder, self._marks({**self._settings(), "symbols": None, "on_unknown": "error"})[1], newest)
            if began is not None and began.facts["tokenizer"].get("symbols") == self.symbols:
                return began
        return found

    def read(self) -> Store:
        """Make the passes."""
        with contextlib.ExitStack() as stack:
            # Bytes and known vocabularies need one pass; two need what can be read only once to be kept.
            given = self._tokenizer_of(self.symbols) if self.symbols and self.on_unknown != "grow" else None
            known: Tokenizer | None = ByteTokenizer() if self.byte else given
            once = known is not None and self.split == "tail"
            feeds = [
                stack.enter_context(_Feed(text, self.folder, self.progress, keep=i == 0 and not once))
                for i, text in enumerate(self.texts)
            ]
            if once and known is not None:
                return self._encode(feeds, known, None, None)
            found, tally, drawn = self._survey(feeds[0])
            found.add(self.symbols or "")
            _refuse_short(self.texts[0], tally.chars, 0, 2)
            if len(feeds) == 1:
                key = self._key([tally])
                store = cache.load(self.folder / f"{key}.ids")
                if store is not None:
                    cache.restamp(self.folder / f"{key}.ids", self.stamp, self.place, self.started)
                    return store
            if known is None and self.min_count > 1:
                known = self._tokenizer_of(self._common(feeds[0], tally.chars, drawn) + (self.symbols or ""))
            return self._encode(feeds, known or CharTokenizer(found.symbols()), tally, drawn)

    def _tokenizer_of(self, symbols: str) -> CharTokenizer:
        return CharTokenizer(symbols, rare=self.min_count > 1)

    def _common(self, feed: "_Feed", chars: int, drawn: "_Drawn | None") -> str:
        """Make a pass that counts the characters of the training part, and return those that are not rare."""
        found, left = Counter(), chars if drawn else self._train_size(chars)
        for held, text in self._parts(feed, "counting", Tally(), drawn):
            if not held:
                found.add(text[:left])
                left -= len(text[:left])
        return found.common(self.min_count)

    def _train_size(self, size: int) -> int:
        """Return how much of a text is the training part, where its end is held out."""
        return size - max(0, min(int(size * self.val_fraction), size - 2))

    def _survey(self, feed: "_Feed") -> "tuple[SymbolSet, Tally, _Drawn | None]":
        """Make the first pass: find the characters, and draw the units that are held out; None where the tail is."""
        found, tally, lengths, count = SymbolSet(), Tally(), array("q"), 0
        # Many records are too many for a number each; and one is not cut, so it is a line and a paragraph too.
        whole = self.split in ("auto", "files") or bool(self.how.field)
        texts = self._texts(feed, "reading", tally)
        for number, text in texts if whole or self.split in ("auto", "tail") else splits.units(texts, self.split):
            if isinstance(text, str) and not self.byte:
                found.add(text)
            count = number + 1
            if whole and not self.how.field:
                lengths.extend([0] * (count - len(lengths)))
                lengths[number] += len(text)
        if self.split == "auto":
            self.split = "files" if count >= splits.MANY_FILES else "tail"
        if self.split == "tail":
            return found, tally, None
        self.units = count
        if lengths:
            return found, tally, lambda: self._counted(splits.draw_files(lengths, self.val_fraction, self.seed))
        return found, tally, lambda: self._counted(splits.draw(count, self.val_fraction, self.seed))

    def _counted(self, drawn: Iterator[int]) -> Iterator[int]:
        self.drawn = 0
        for unit in drawn:
            self.drawn += 1
            yield unit

    def _texts(self, feed: "_Feed", doing: str, tally: Tally) -> Iterator[tuple[int, Any]]:
        """Give the text, or the bytes where they are read as they are, each piece with the number of its document."""
        pieces = feed.pieces(doing)
        return join(pieces, tally) if self.how.encoding == "bytes" else documents(pieces, self.how, tally)

    def _parts(self, feed: "_Feed", doing: str, tally: Tally, drawn: "_Drawn | None") -> Iterator[tuple[bool, Any]]:
        """Give the text in pieces, and say of each whether it is drawn for validation."""
        texts = self._texts(feed, doing, tally)
        if drawn is None:
            return ((False, text) for _, text in texts)
        return splits.parted(
            texts if self.split == "files" or self.how.field else splits.units(texts, self.split), drawn(), CHUNK
        )

    def _encode(self, feeds: "list[_Feed]", tokenizer: Tokenizer, before: Tally | None, drawn: "_Drawn | None") -> Store:
        """Write the ids of the training part and after them those of the validation part, and what is known of them."""
        tallies = [Tally() for _ in feeds]
        rule: OnUnknown = "skip" if self.on_unknown == "skip" else "replace" if self.on_unknown == "replace" else "error"
        named = [text[0].name + (f" and {len(text) - 1} more" if len(text) > 1 else "") for text in self.texts]
        of_val: OnUnknown = "skip" if tokenizer.rare is None else "error"
        packers = [Packer(tokenizer, of_val if i else rule, name, self.advice) for i, name in enumerate(named)]
        switches = hashlib.sha256()  # where the text goes from one part into the other
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(cache.Writer(self.folder))
            held = stack.enter_context(tempfile.SpooledTemporaryFile(cache.MEMORY_LIMIT, dir=str(self.folder)))
            held_out = Packer(tokenizer)
            for i, (feed, packer, tally) in enumerate(zip(feeds, packers, tallies, strict=True)):
                place = 0
                for is_held, text in self._parts(feed, "encoding", tally, None if i else drawn):
                    stored = packer.pack(text)
                    if is_held:
                        held_out.count(stored)
                        switches.update(b"%d+%d," % (place, len(text)))
                        with cache.writing_to(self.folder):
                            if held.tell() + len(stored) > cache.MEMORY_LIMIT:
                                self.folder.mkdir(parents=True, exist_ok=True)
                            held.write(stored)
                    else:
                        writer.append(stored)
                    place += len(text)
                    packer.count(stored)
                _refuse_short(self.texts[i], tally.chars, packer.skipped, 1 if i else 2)
                self.left_out = feed.left_out
            if before is not None and before.digest.hexdigest() != tallies[0].digest.hexdigest():
                raise changed(self.texts[0][0].name)
            held.seek(0)
            for stored in iter(lambda: held.read(CHUNK), b""):
                writer.append(stored)
            ids, train = writer.ids(packers[0].width), int(packers[0].counts.sum())
            if drawn is None:
                train = self._train_size(train)
                for start in range(train, len(ids) if len(packers) == 1 else train, CHUNK):
                    held_out.count(ids.stored(start, start + CHUNK))
            else:
                train -= int(held_out.counts.sum())
            val = packers[1].counts if len(packers) > 1 else held_out.counts
            counts = [(packers[0].counts - held_out.counts).tolist(), val.tolist()]
            facts = self._facts(tokenizer, tallies, packers, train, counts, switches.hexdigest())
            del ids
            return writer.finish(packers[0].width, facts, self._key(tallies), self.stamp, self.place)

    def _facts(
        self,
        tokenizer: Tokenizer,
        tallies: list[Tally],
        packers: list[Packer],
        train: int,
        counts: list[list[int]],
        switches: str,
    ) -> dict[str, Any]:
        notes = self.left_out.notes()
        if self.how.encoding != "bytes":
            notes += [note for tally in tallies for note in tally.notes()]
        if self.how.field and not any(tally.records for tally in tallies):
            raise TextError(
                f"text {self.texts[0][0].name}: expected records with a field {printable(repr(self.how.field))}, found no file "
                f"that ends in .jsonl, .csv or .tsv. {self._no_records()}"
            )
        if packers[0].skipped:
            what = "left out" if self.on_unknown == "skip" else "replaced by like ones, or left out,"
            found = named([describe(char) for char in packers[0].strange])
            notes.append(f"{counted(packers[0].skipped, 'character')} {what} that the model does not know: {found}")
        if isinstance(tokenizer, CharTokenizer) and self.symbols is not None and len(tokenizer) > len(self.symbols):
            new = [describe(char) for char in tokenizer.symbols if char not in self.symbols]
            notes.append(f"new to the model, and learnt: {counted(len(new), 'character')}, {named(new)}")
        if tokenizer.rare is not None:
            learnt, held = (part[tokenizer.rare] for part in counts)
            notes.append(
                f"rare characters, read as one symbol, U+FFFD: {learnt:,} of {sum(counts[0]):,} in the training part, "
                f"{held:,} of {sum(counts[1]):,} in the validation part; in scores each costs 20.09 bits more"
            )
        val_unknown = packers[1].skipped if len(packers) > 1 else 0
        if val_unknown:
            found = named([describe(char) for char in packers[1].strange])
            notes.append(
                f"{counted(val_unknown, 'validation character')} that training does not have, 20.09 bits each in its score: "
                + found
            )
        only = [symbol for symbol, (learnt, held) in enumerate(zip(*counts, strict=True)) if held and not learnt]
        if only and not self.byte:
            found = named([describe(tokenizer.symbol(symbol)) for symbol in only])
            times = sum(counts[1][symbol] for symbol in only)
            notes.append(f"only in the validation part, and so never learnt: {found}, {counted(times, 'time')}")
        size = sum(map(sum, counts))
        if self.val_fraction and train == size:
            few = "" if self.split == "tail" else f", and {self.drawn} of {counted(self.units, self.split[:-1])}"
            notes.append(f"no validation part: {train} characters{few} are too few for one")
        elif self.split != "tail":
            what = "records" if self.how.field else self.split
            notes.append(f"held out for validation: {self.drawn:,} of {self.units:,} {what}, drawn by the seed")
        drawn = [] if self.split == "tail" else [self.split, self.seed, switches]
        return {
            "name": self.texts[0][0].name,
            "tokenizer": tokenizer.to_dict(),
            "train": train,
            "chars": size,
            "split": self.split,
            "counts": counts[0],
            "val_unknown": val_unknown,
            "fingerprint": fingerprint_of([tally.digest.hexdigest() for tally in tallies], train, *drawn),
            "notes": notes,
        }

    def _no_records(self) -> str:
        """Say what to do where a field was asked for of files without records."""
        file = next((one.name for text in self.texts for one in text if one.name.lower().endswith(".json")), None)
        if file is None:
            return "Leave out `--field`."
        lines = in_shell(f"{file}l")
        return f"Of a list in a JSON file `jq -c '.[]' {in_shell(file)} > {lines}` makes lines."

    def _key(self, tallies: list[Tally]) -> str:
        return _digest([tally.digest.hexdigest() for tally in tallies], self._settings())


class _Feed:
    """The raw pieces of a text, as often as they are asked for."""

    def __init__(self, sources: list[Source], folder: Path, progress: ProgressCallback | None, *, keep: bool) -> None:
        self._sources, self._folder, self._progress = sources, folder, progress
        self.left_out = LeftOut()  # of archives
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
        self.left_out = LeftOut()
        for whole in self._sources:
            for source, raw in whole.pieces(self.left_out):
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


def _refuse_short(sources: list[Source], chars: int, skipped: int, least: int) -> None:
    if chars - skipped >= least:
        return
    name = sources[0].name if len(sources) == 1 else f"{sources[0].name} and {len(sources) - 1} more"
    found = "none: it is empty" if not chars else "none that training has" if skipped else str(chars)
    raise TextError(f"text {name}: expected at least {counted(least, 'character')}, found {found}. Use a longer text.")


def named(names: list[str]) -> str:
    """Return the first few of some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def fingerprint_of(digests: list[str], train: int, *drawn: object) -> str:
    """Return the fingerprint of a corpus: of digests of its texts, the length of its training part, and what is drawn."""
    return _digest(digests, train, *drawn)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
