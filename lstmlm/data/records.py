"""Files of records -> the text in one field of each: JSON lines, and tables in .csv or .tsv.

`decoding` calls `texts`, a record at a time: a file may have any length, a record is held in memory.
"""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from lstmlm.data.lines import whole_lines
from lstmlm.data.sources import PACKED, Source
from lstmlm.errors import TextError, printable

ENDINGS = {".jsonl": "", ".ndjson": "", ".csv": ",", ".tsv": "\t"}
"""Endings of such files, and what separates the columns of a table."""
SEPARATORS = ",;\t|"  # of a .csv file: the one that its first line has most of
MEND = "Mend or remove that line, or leave out `--field` to read the file as it is."
LONGEST = 2**31 - 1  # characters of one field: what the csv module takes on every system


def separator(source: Source) -> str | None:
    """Return what separates the columns of a source, nothing for JSON lines; None where it holds no records."""
    name = source.path.name.lower() if source.path else ""
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((between for ending, between in ENDINGS.items() if name.endswith(ending)), None)


def texts(name: str, pieces: Iterable[str], between: str, field: str) -> Iterator[str]:
    """Give the text in one field of each record.

    Args:
        name: Of the file, for messages.
        pieces: Its text.
        between: What separates its columns; nothing: it is JSON lines.
        field: Name of a column, or of a field; `messages.content` is the field `content` of `messages`, of each in a list.

    Raises:
        TextError: A record is damaged, or has no such field.
    """
    lines = itertools.chain.from_iterable(whole_lines(pieces))
    yield from _of_table(name, lines, between, field) if between else _of_json(name, lines, field)


def _of_json(name: str, lines: Iterator[str], field: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(
                f"text {name} at line {number}: expected a JSON object, found: {printable(str(error))[:80]}. {MEND}"
            ) from None
        try:
            yield "\n".join(_strings(record, field))
        except KeyError:
            fields = printable(", ".join(_paths(record))) if isinstance(record, dict) else f"no object: {printable(line[:40])}"
            raise TextError(
                f"text {name} at line {number}: expected the field {printable(repr(field))}, found {fields[:200]}. "
                "Name another one with `--field`."
            ) from None


def _paths(value: Any, before: str = "") -> Iterator[str]:
    """Give the paths that lead to the texts in a record, each once."""
    if isinstance(value, dict):
        yield from dict.fromkeys(path for key, one in value.items() for path in _paths(one, f"{before}.{key}" if before else key))
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        yield from dict.fromkeys(path for one in value for path in _paths(one, before))
    else:
        yield before


def _strings(value: Any, path: str) -> Iterator[str]:
    """Give the texts that a path leads to.

    Raises:
        KeyError: It leads to nothing, or to an object.
    """
    if isinstance(value, list):
        for one in value:
            yield from _strings(one, path)
    elif path and isinstance(value, dict) and path in value:
        yield from _strings(value[path], "")
    elif path:
        first, _, rest = path.partition(".")
        if not rest or not isinstance(value, dict):
            raise KeyError(path)
        yield from _strings(value[first], rest)
    elif isinstance(value, dict):
        raise KeyError(path)
    elif value is not None:
        yield value if isinstance(value, str) else json.dumps(value)


def _of_table(name: str, lines: Iterator[str], between: str, field: str) -> Iterator[str]:
    first = next(lines, "")
    if between == ",":
        between = max(SEPARATORS, key=first.count)
    csv.field_size_limit(LONGEST)
    rows = csv.reader(itertools.chain([first], lines), delimiter=between)
    try:
        columns = next(rows, [])
        numbered = field not in columns and field.isdecimal() and 1 <= int(field) <= len(columns)
        if field not in columns and not numbered:
            found = ", ".join(map(printable, columns))[:200] or "none"
            raise TextError(
                f"text {name} at line 1: expected the column {printable(repr(field))}, found {found}. "
                "Name another one with `--field`, or give its number if the first line names none."
            )
        place = int(field) - 1 if numbered else columns.index(field)
        for row in itertools.chain([columns] if numbered else [], rows):
            if row:
                if place >= len(row):
                    raise csv.Error(f"{len(row)} columns of {len(columns)}")
                yield row[place]
    except csv.Error as error:
        raise TextError(
            f"text {name} at line {rows.line_num}: expected a row of a table, found: {printable(str(error))}. {MEND}"
        ) from None
