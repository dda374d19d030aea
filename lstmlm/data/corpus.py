"""A text of any size -> ids -> a training part and a validation part.

`open_corpus` is the entry point, `open_configured` that of the commands and `api`. `prepare` reads the text.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lstmlm.config.run_config import RunConfig, resource_dir
from lstmlm.data.decoding import Reading, encoding_of, readable
from lstmlm.data.ids import Ids, Store
from lstmlm.data.prepare import Preparation, ProgressCallback, named
from lstmlm.data.sources import PACKED, TAR, LeftOut, Selection, find_sources, refuse_twice
from lstmlm.data.tokenizer import Tokenizer, from_dict, separator_ids
from lstmlm.errors import SystemProblem, TextError, UsageError, printable

ENDINGS = (
    *(*PACKED, *TAR, ".zip", ".txt", ".text", ".md", ".rst", ".tex", ".htm", ".html", ".xml"),
    *(".jsonl", ".ndjson", ".csv", ".tsv", ".log", ".mbox", ".srt", ".vtt", ".fa", ".fasta"),
)
"""Endings of files that are no part of what a corpus is called."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as a run sees it.

    Attributes:
        name: Short name, fit for a folder: the stem of the first source.
        tokenizer: Maps the text to ids and back.
        train: Ids of the training part.
        val: Ids of the validation part; empty if the text is too short or none was wanted.
        fingerprint: SHA-256, in hex, of the decoded text of both parts and of where the one ends.
        split: How the validation part was chosen: tail, lines, paragraphs or files.
        counts: Occurrences of each id in the training part. len V
        chars: Characters in both parts (bytes, for the byte tokenizer).
        val_unknown: Characters of a validation file that are not in the vocabulary, and so not in `val`.
        notes: What a reader should know about the text, in words.
    """

    name: str
    tokenizer: Tokenizer
    train: Ids
    val: Ids
    fingerprint: str
    split: str
    counts: list[int]
    chars: int
    val_unknown: int
    notes: list[str]


def open_corpus(
    sources: Sequence[str],
    *,
    tokenizer: str = "char",
    encoding: str = "utf-8",
    field: str | None = None,
    normalize: str = "none",
    val: str | None = None,
    val_fraction: float = 0.1,
    split: str = "tail",
    seed: int = 0,
    min_count: int = 1,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    skip_bad: bool = False,
    cache_dir: Path,
    symbols: str | None = None,
    on_unknown: str = "error",
    advice: str = "",
    progress: ProgressCallback | None = None,
    bundled: Path | None = None,
) -> Corpus:
    """Read, encode and split a text; a large one comes from the cache if it has been read before.

    The vocabulary is all characters of `sources`, both parts. The last floor(chars * val_fraction) characters are the
    validation part, but at least 2 are left for training; or the units that are drawn. With `val` all of `sources` is for
    training; characters of `val` that are not in the vocabulary are left out of its ids, and counted.

    Args:
        sources: Files, folders, archives, `-` or names of bundled corpora, joined in this order; see `decoding.documents`.
        tokenizer: `char` or `byte`.
        encoding: What the files are written in; the byte tokenizer asks only where it reads a field.
        field: The field of each record that is text, in files of records.
        normalize: Unicode form of the text: nfc, nfd, or none for what it is.
        val: A source for the validation part.
        val_fraction: Otherwise, the part of the text that is held out. 0 to 0.5
        split: What is held out: tail, lines, paragraphs or files; a record counts as a line or a file. auto: files where there
            are many, else the tail.
        seed: Draws what is held out, where it is not the tail.
        min_count: Characters that occur fewer times in the training part have no symbol of their own, but one for all of them;
            1: there is no such symbol.
        include: Patterns of the files in folders and archives that are read; none: all that are text.
        exclude: Patterns of those that are not.
        skip_bad: Leave out files that cannot be read or decoded, and say so, instead of refusing the corpus.
        cache_dir: Folder for ids that are too many for memory; made when it is needed.
        symbols: The vocabulary of a model that goes on.
        on_unknown: What becomes of characters of `sources` that are not in it: error, skip or replace, as for
            `CharTokenizer.encode`; grow: they are added to it. Without `symbols` there are none.
        advice: What the user can do about them where they are an error, as a sentence.
        progress: Is called with every piece.
        bundled: Folder of the corpora that come along; None: that of the program.

    Raises:
        TextError: If a source cannot be read or decoded, changes meanwhile, or has fewer than 2 characters.
        ConfigError: If there is no such encoding.
        UsageError: If rare bytes are to share a symbol.
        SystemProblem: If the cache folder cannot be written to.
    """
    if tokenizer == "byte" and min_count > 1:
        raise UsageError(f"--min-count: expected none with bytes, which are 256 and all known, found {min_count}. Leave it out.")
    read_in = encoding_of(tokenizer, encoding, field, normalize)
    how = Reading(read_in, field, normalize, symbols is None and tokenizer == "char")
    refuse_twice([*sources, val])
    names = [list(sources)] + ([[val]] if val is not None else [])
    with contextlib.suppress(SystemProblem):  # no such folder; other people's files can be read without it
        bundled = bundled or resource_dir("data")
    selection, left_out = Selection(tuple(include), tuple(exclude), how.encoding), LeftOut()
    bad: dict[str, TextError] = {}
    texts = [find_sources(group, bundled, selection, left_out, bad if skip_bad else None) for group in names]
    how = replace(how, alone=sum(map(len, texts)) == 1 and not texts[0][0].archive)
    if skip_bad:
        texts = [readable(text, how, bad) for text in texts]
        if not all(texts):
            raise _with_others(next(iter(bad.values())), bad)
    plan = Preparation(
        texts=texts,
        tokenizer=tokenizer,
        how=how,
        val_fraction=0.0 if val is not None else val_fraction,
        split=split,
        seed=seed,
        min_count=min_count,
        symbols=symbols,
        on_unknown=on_unknown,
        advice=advice,
        folder=cache_dir,
        progress=progress,
    )
    try:
        store = plan.remembered() or plan.read()
    except TextError as error:
        if not skip_bad:
            readable([source for text in texts for source in text], how, bad)
        raise _with_others(error, bad) from None
    found = _corpus(name_of(sources[0]), store, normalize)
    skipped = [f"{len(bad)} left out that cannot be read: {named(list(bad))}. {next(iter(bad.values()))}"] if bad else []
    return replace(found, notes=[*left_out.notes(), *skipped, *found.notes])


def _with_others(error: TextError, bad: dict[str, TextError]) -> TextError:
    """Add to what is wrong with one file which others cannot be read either."""
    if len(bad) < 2:
        return error
    return TextError(
        f"{error}\n{len(bad)} files cannot be read: {named(list(bad))}. Leave them out with `--on-bad-file skip` or `--exclude`."
    )


def open_configured(
    names: Sequence[str],
    config: RunConfig,
    *,
    cache_dir: Path,
    val: str | None = None,
    symbols: str | None = None,
    advice: str = "",
    begins: bool = True,
    progress: ProgressCallback | None = None,
) -> Corpus:
    """Open a corpus as a configuration says, with the corpora that come along; see `open_corpus`.

    What is to part documents has to stand in a text that a model begins with (`begins`), not in one for a model that is there.

    Raises:
        UsageError: What is to part its documents stands nowhere in it.
    """
    data, text = config.data, config.model.document_separator
    corpus = open_corpus(
        names,
        tokenizer=data.tokenizer,
        encoding=data.encoding,
        field=data.field,
        normalize=data.normalize,
        val=val,
        val_fraction=data.val_fraction,
        split=data.split,
        seed=config.train.seed,
        min_count=data.min_count,
        include=_patterns(data.include),
        exclude=_patterns(data.exclude),
        skip_bad=data.on_bad_file == "skip",
        on_unknown=data.on_unknown,
        advice=advice,
        cache_dir=cache_dir,
        symbols=symbols,
        progress=progress,
        bundled=resource_dir("data"),
    )
    if separator := separator_ids(text, corpus.tokenizer):
        found = [part.occurrences(separator) for part in (corpus.train, corpus.val)]
        if begins and not any(found):
            raise UsageError(
                f"--document-separator '{printable(str(text)[:40])}': expected a text that stands between documents, found it "
                f"nowhere in {printable(corpus.name)}. Give what stands there, or leave it out."
            )
        note = "document separators: {:,} in the training text, {:,} in the validation text"
        return replace(corpus, notes=[*corpus.notes, note.format(*found)])
    return corpus


def _patterns(given: str | None) -> list[str]:
    return [pattern for one in (given or "").split(",") if (pattern := one.strip())]


def _corpus(name: str, store: Store, form: str) -> Corpus:
    facts = store.facts
    return Corpus(
        name=name,
        tokenizer=from_dict(facts["tokenizer"], form),
        train=store.ids(0, facts["train"]),
        val=store.ids(facts["train"], facts["chars"]),
        fingerprint=facts["fingerprint"],
        split=facts["split"],
        counts=facts["counts"],
        chars=facts["chars"],
        val_unknown=facts["val_unknown"],
        notes=facts["notes"],
    )


def name_of(source: str) -> str:
    """Return the name of a corpus, and of the run on it, fit for a folder: that of its first source without known endings."""
    path = Path(source)
    stem = "stdin" if source == "-" else (path.name if path.name.strip(".") else path.resolve().name)
    for _ in range(2):  # stories.txt.gz
        stem = Path(stem).stem if Path(stem).suffix.lower() in ENDINGS else stem
    fit = "".join(c if c.isalnum() or c in "._-" else "_" for c in stem).lstrip(".-")
    return fit[:80] or "corpus"
