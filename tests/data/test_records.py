import gzip
import json
from pathlib import Path

import pytest

from lstmlm.data import sources
from lstmlm.errors import TextError
from tests.corpora import Reader, text_of

RECORDS = [{"id": i, "text": t} for i, t in enumerate(['The mill – "old".\nIt runs.', "", "so\n", "ünï"])]
TEXT = 'The mill – "old".\nIt runs.\nso\nünï'
LINES = "\n".join(json.dumps(record) for record in RECORDS) + "\n\n"
TABLE = 'id,text\n0,"The mill – ""old"".\nIt runs."\n1,\n2,"so\n"\n3,ünï\n'


@pytest.fixture(name="read")
def _read(tmp_path: Path) -> Reader:
    """Read a corpus with a cache folder of its own."""
    return Reader(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("d.jsonl", LINES.encode()),
        ("d.NDJSON", LINES.encode()),
        ("d.jsonl.gz", gzip.compress(LINES.encode())),
        ("d.csv", TABLE.encode()),
        ("d.csv", TABLE.replace(",", ";").encode()),
        ("d.tsv", TABLE.replace(",", "\t").encode()),
    ],
)
@pytest.mark.parametrize("chunk", [7, 1 << 18])
def test_a_field_is_the_text(read: Reader, name: str, data: bytes, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file of records one field is read, unescaped, a line end between records where one is missing; so in bytes."""
    monkeypatch.setattr(sources, "CHUNK", chunk)
    path = read.file(data, name)

    assert text_of(read(path, field="text")) == TEXT
    assert text_of(read(path, field="text", tokenizer="byte")) == TEXT
    assert read(path, field="text", val_fraction=0.0).notes == []


def test_a_path_leads_into_a_record(read: Reader) -> None:
    """A field within a field is named with a dot; of a list each is taken."""
    chat = {"messages": [{"role": "user", "content": "Who?"}, {"role": "bot", "content": "Bob."}], "a.b": "dotted", "n": 1.5}
    path = read.file(json.dumps(chat) + "\n" + json.dumps(chat), "chat.jsonl")

    assert text_of(read(path, field="messages.content")) == "Who?\nBob.\nWho?\nBob."
    assert text_of(read(path, field="a.b")) == "dotted\ndotted"
    assert text_of(read(path, field="n")) == "1.5\n1.5"


@pytest.mark.parametrize(
    ("name", "data", "field", "found"),
    [
        ("d.jsonl", LINES, "txt", "line 1: expected the field 'txt', found id, text"),
        ("d.jsonl", '{"text": "a"}\n{"text": \n', "text", "line 2: expected a JSON object"),
        ("d.jsonl", "[" * 100_000, "text", "line 1: expected a JSON object"),
        ("d.jsonl", '"text"\n', "text", "line 1: .*found no object"),
        ("d.jsonl", '{"m": [{"c": "a"}, {"c": [{"t": "b"}]}]}', "m.c", "line 1: expected the field 'm.c', found m.c, m.c.t"),
        ("d.csv", TABLE, "txt", "line 1: expected the column 'txt', found id, text"),
        ("d.csv", "a,b\n1,2\n3\n", "b", "line 3: expected a row of a table, found: 1 columns of 2"),
        ("d.txt", "text", "text", "expected records with a field 'text', found no file"),
        ("d.json", '[{"text": "a"}]', "text", r"jq -c '\.\[\]' .*d\.json > .*d\.jsonl` makes lines"),
        ("d.csv", "a,b\n1,2\n", "3", "line 1: expected the column '3', found a, b.*give its number if the first line names none"),
    ],
)
def test_a_record_that_is_not_as_expected_is_refused(read: Reader, name: str, data: str, field: str, found: str) -> None:
    """A damaged record, or one without the field, is named by its line, with the fields that there are."""
    with pytest.raises(TextError, match=found):
        read(read.file(data, name), field=field)


def test_records_read_as_they_are_are_noted(read: Reader) -> None:
    """A file of records that is read with its quotes and names is said to be, once."""
    one, two = read.file(LINES, "one.jsonl"), read.file(TABLE, "two.csv")

    assert text_of(read(one)) == LINES
    assert [note for note in read(one, two).notes if "one.jsonl and 1 more: records read as they are" in note]


def test_records_are_held_out_whole(read: Reader) -> None:
    """What is drawn of records is whole records, whatever lines are in them."""
    path = read.file("".join(json.dumps({"t": f"first {i}\nsecond {i}\n"}) + "\n" for i in range(40)), "d.jsonl")
    for split in ("lines", "paragraphs", "files", "auto"):
        got = read(path, field="t", split=split)
        held = got.tokenizer.decode(got.val.tensor(0, 9999).tolist()).split("\n")[:-1]

        assert len(held) == 8
        assert all(a.split()[1] == b.split()[1] for a, b in zip(held[::2], held[1::2], strict=True))
        assert any("4 of 40 records" in note for note in got.notes)


def test_a_table_without_names(read: Reader) -> None:
    """A column may be given by its number, counted from 1, where the first line names none: it is a row then."""
    assert text_of(read(read.file("1,old mill\n2,stone\n", "d.csv"), field="2")) == "old mill\nstone"
    assert text_of(read(read.file("1,2\nx,stone\ny,mill\n", "n.csv"), field="2")) == "stone\nmill"  # it names a column so
