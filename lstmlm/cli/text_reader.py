"""A text to be scored or searched: read once, piece by piece, for all models, and what is found out about it on the way."""

import codecs
import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lstmlm.cli.text_input import standard_input
from lstmlm.config import run_config
from lstmlm.data.decoding import Reading, Tally, at_borders, decode, encoding_of, join
from lstmlm.data.prepare import fingerprint_of
from lstmlm.data.sources import Selection, Source, find_sources
from lstmlm.errors import UsageError, printable
from lstmlm.storage import run_dir
from lstmlm.units import counted

if TYPE_CHECKING:
    from lstmlm.api import LanguageModel

CHUNK = 1 << 16  # bytes of a line of standard input taken at a time, at most


class Text:
    r"""A text to be scored.

    For models of bytes bytes stay bytes: those that are no UTF-8 come as the characters that stand for them
    (`surrogateescape`), which the tokenizer takes back. Where there is a model of characters too, the text is decoded, and all
    read that. Where models read unlike Unicode forms it comes as it is, in pieces that each of them can bring into its own.

    Args:
        names: Files, folders, bundled texts, or `-`.
        models: That are to score it.
        encoding: What it is written in; None: what the text of the first model of characters was. Its field of records is that
            model's too.
        by_line: A pipe is read line by line, as it comes; and a byte that is no text is an unknown character.
        alone: It is not one of many that are scored alike.

    Attributes:
        words: How many have been read: what stands between white space.
        encoding: Of a model of characters; None: bytes are read.
        form: A Unicode form in which a model knows more of the text than in its own; whoever finds one puts it here.

    Raises:
        TextError: A name leads nowhere; while it is read, as `decode`.
    """

    def __init__(
        self,
        names: Sequence[str],
        models: "Sequence[LanguageModel]",
        encoding: str | None,
        by_line: bool,
        *,
        alone: bool = True,
    ) -> None:
        forms = {model.tokenizer.form for model in models}
        self._apart = len(forms) > 1
        form = "none" if self._apart else forms.pop()
        lead = models[reads_characters(models)]
        data = lead.config.data
        read_in = encoding_of(lead.tokenizer.kind, encoding or data.encoding, data.field, lead.tokenizer.form)
        self.encoding = None if read_in == "bytes" else read_in
        self.words = 0
        self.form: str | None = None
        errors = "surrogateescape" if by_line else "strict"
        self._how = Reading(read_in, data.field, form, errors=errors, alone=alone and len(names) == 1)
        self._sources = find_sources(names, run_config.resource_dir("data"), Selection(encoding=read_in))
        self._live = by_line and list(names) == ["-"]
        self._tally = Tally()

    def __iter__(self) -> Iterator[str]:
        raw = (piece for source in self._sources for piece in (_arriving(source) if self._live else source.pieces()))
        pieces: Iterator[str]
        if self.encoding is None:
            pieces = codecs.iterdecode((piece for _, piece in join(raw, self._tally)), "utf-8", "surrogateescape")
        else:
            pieces = decode(raw, self._how, self._tally)
        if self._apart:
            pieces = at_borders(pieces)
        inside = False  # a word that may go on
        for piece in pieces:
            if piece:
                self.words += len(piece.split()) - (inside and not piece[0].isspace())
                inside = not piece[-1].isspace()
                yield piece

    def notes(self, model: "LanguageModel") -> list[str]:
        """Say, once it is read, in what it is unlike the training text of a model, though both look alike."""
        found = []
        cr, lf = (sum(model.counts[id_] for id_ in model.tokenizer.encode(char, "skip")) for char in "\r\n")
        if self._tally.lf and not self._tally.cr and cr > lf // 2:
            found.append("line ends: LF here, CRLF in the training text; sed 's/$/\\r/' makes them alike")
        if self.form:
            found.append(
                f"accents: the model knows more of this text in the Unicode form {self.form}. Bring it into that, or train with "
                f"--normalize {self.form.lower()}, which reads both alike."
            )
        if self._tally.c1 and self.encoding:
            controls = counted(self._tally.c1, "control character")
            found.append(f"{controls} from U+0080 to U+009F: text from Windows needs --encoding cp1252")
        return found

    def trained_on(self, model: "LanguageModel") -> bool:
        """Say, once it is read, whether a model was trained on it, or on a file of it as it is now."""
        named = model.corpus.get("sources")
        files = set()
        for name in named if isinstance(named, list) else []:
            with contextlib.suppress(OSError, ValueError):  # it is gone, or a stranger's file names what cannot be a name
                status = os.stat(str(name))
                files.add((status.st_dev, status.st_ino))
        return self.of_model(model, [self]) or any(
            one.identity is not None and one.identity[:2] in files for one in self._sources
        )

    @staticmethod
    def of_model(model: "LanguageModel", texts: "Sequence[Text]") -> bool:
        """Say whether texts that were read are the whole text that a model was made of, whatever it is called now.

        Args:
            model: Any.
            texts: One, of which a part was held back, or one to train on and one to validate by.
        """
        own = fingerprint_of([text._tally.digest.hexdigest() for text in texts], sum(model.counts))
        return bool(model.meta["corpus"].get("fingerprint") == own)


def reads_characters(models: "Sequence[LanguageModel]") -> int:
    """Return the place of the first model that reads characters, in which a text is counted; of models of bytes the first."""
    return next((place for place, model in enumerate(models) if model.tokenizer.kind == "char"), 0)


def refuse_models(command: str, names: Sequence[str], flag: str = "-m") -> None:
    """Refuse a run or a checkpoint where a text is expected; `flag` is what was probably meant.

    Raises:
        UsageError: With what was meant.
    """
    for name in names:
        if run_dir.is_model(name):
            shown = printable(name)
            raise UsageError(f"{command}: expected a text, found the model {shown}. Did you mean {flag} {shown}?")


def _arriving(source: Source) -> Iterator[tuple[Source, bytes]]:
    """Give what comes through standard input line by line, as it comes; a very long line in several pieces."""
    for piece in iter(partial(standard_input("text -").readline, CHUNK), b""):
        yield source, piece
