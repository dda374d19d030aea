import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm.api import LanguageModel, Sample
from lstmlm.cli import sample as sample_command
from lstmlm.storage import checkpoint
from tests.cli.conftest import TEXT, Lstmlm
from tests.cli.trained import make_run

SOME = ("--length", "20", "--seed", "5")


def test_text(lstmlm: Lstmlm, run: Path) -> None:
    """A sample is the prompt, so many characters after it, and one line end; the same seed draws the same text."""
    first, second = (lstmlm("sample", "--prompt", "Bob est", *SOME) for _ in range(2))
    other = lstmlm("sample", "--prompt", "Bob est", "--length", "20", "--seed", "6")

    assert first.code == 0
    assert first.out.startswith("Bob est")
    assert len(first.out) == len("Bob est") + 20 + 1
    assert first.stdout == second.stdout != other.stdout


def test_default_model(lstmlm: Lstmlm, run: Path) -> None:
    """Without -m the newest run is taken, and said on stderr; with -m nothing needs to be said."""
    assert "model runs/text/best.safetensors" in lstmlm("sample", *SOME).err
    assert lstmlm("sample", "-m", "runs/text", *SOME).err == ""


def test_device(lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Every command that runs a model takes --device: auto is the CPU without a GPU, and what cannot be had is exit 2."""
    commands = [("sample", *SOME), ("eval", text, "--json"), ("fill", "Bob ____ l", "--choice", "est", "--choice", "is")]
    for command in commands:
        auto, cpu = lstmlm(*command), lstmlm(*command, "--device", "cpu")
        assert auto.code == cpu.code == 0
        if not torch.cuda.is_available():
            assert auto.stdout == cpu.stdout
            refused = lstmlm(*command, "--device", "cuda")
            assert refused.code == 2
            assert "expected a working CUDA device, found: torch" in refused.err
        assert lstmlm(*command, "--device", "tpu").code == 2


def test_drawn_seed(lstmlm: Lstmlm, run: Path) -> None:
    """A seed that was not given is drawn and said, and draws the same text again."""
    drawn = lstmlm("sample", "-m", run, "--length", "20")
    seed = drawn.err.split()[-1]

    assert drawn.err == f"seed {seed}\n"
    assert lstmlm("sample", "-m", run, "--length", "20", "--seed", seed).out == drawn.out


def test_json(lstmlm: Lstmlm, run: Path) -> None:
    """--json prints one object for each sample: text, seed, nats and why it ended."""
    result = lstmlm("sample", "--prompt", "Bob", *SOME, "--json")
    told = result.json

    assert {key: type(value) for key, value in told.items()} == {
        "schema": int, "command": str, "prompt": str, "text": str, "seed": int, "nats": float, "stop": str,
    }  # fmt: skip
    assert (told["schema"], told["command"], told["prompt"], told["seed"], told["stop"]) == (1, "sample", "Bob", 5, "length")
    assert lstmlm("sample", "--prompt", "Bob", *SOME).out == f"Bob{told['text']}\n"


def test_count(lstmlm: Lstmlm, run: Path) -> None:
    """-n 3 draws what three seeds draw alone."""
    import json

    together = lstmlm("sample", *SOME, "-n", "3", "--json").out.splitlines()
    alone = [lstmlm("sample", "--length", "20", "--seed", seed, "--json").json for seed in (5, 6, 7)]

    assert [json.loads(line)["seed"] for line in together] == [5, 6, 7]
    assert [json.loads(line)["text"] for line in together] == [one["text"] for one in alone]
    assert lstmlm("sample", *SOME, "-n", "3").out == "\n\n".join(one["text"] for one in alone) + "\n"


def test_many(lstmlm: Lstmlm, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples come in batches, each written before the next one is drawn, and are the same whatever a batch holds."""
    whole = [json.loads(line)["text"] for line in lstmlm("sample", *SOME, "-n", "7", "--json").out.splitlines()]
    plain = lstmlm("sample", *SOME, "-n", "7").out
    monkeypatch.setattr(sample_command, "DRAWN_TOGETHER", {"cpu": 3})

    assert [json.loads(line)["text"] for line in lstmlm("sample", *SOME, "-n", "7", "--json").out.splitlines()] == whole
    assert lstmlm("sample", *SOME, "-n", "7").out == plain


@pytest.mark.parametrize("ways", [("--greedy",), ("--top-k", "1"), ("--temperature", "0"), ("--top-p", "0")])
def test_greedy(lstmlm: Lstmlm, run: Path, ways: tuple[str, ...]) -> None:
    """The article's rule, one candidate, temperature zero and no probability to spare all mean the same."""
    assert lstmlm("sample", *SOME, *ways).out == lstmlm("sample", "--length", "20", "--seed", "9", "--greedy").out


@pytest.mark.parametrize("flags", ["--temperature 0.7", "--top-k 5", "--top-p 0.9", "-n 2"])
def test_greedy_draws_nothing(lstmlm: Lstmlm, run: Path, flags: str) -> None:
    """What only a draw obeys, or several samples that would all be the same, contradicts --greedy, and is named."""
    refused = lstmlm("sample", *SOME, "--greedy", *flags.split())
    assert (refused.code, f"expected no {flags} beside it" in refused.err) == (2, True)


def test_stop(lstmlm: Lstmlm, run: Path) -> None:
    """A sample ends before the stop text, though its characters come one by one; the first of several texts counts."""
    text = lstmlm("sample", "--length", "60", "--seed", "5", "--json").json["text"]
    stop = text[11:15]
    told = lstmlm("sample", "--length", "60", "--seed", "5", "--stop", stop, "--stop", "ùùùùùùùùù", "--json").json

    assert told["text"] == text[: text.index(stop)]
    assert told["stop"] == "stop"
    assert lstmlm("sample", "--length", "60", "--seed", "5", "--stop", stop).out == told["text"] + "\n"


def test_almost_stopped(lstmlm: Lstmlm, run: Path) -> None:
    """The beginning of a stop text that does not come whole is written all the same."""
    text = lstmlm("sample", "--length", "30", "--seed", "5", "--json").json["text"]
    told = lstmlm("sample", "--length", "30", "--seed", "5", "--stop", text[-3:] + "ùùùùùùùùù", "--json").json

    assert (told["text"], told["stop"]) == (text, "length")


def test_until_stopped(lstmlm: Lstmlm, run: Path) -> None:
    """--length 0 goes on until a stop text comes, in all three ways of writing."""
    plain = lstmlm("sample", "--length", "0", "--stop", "e", "--seed", "5")
    told = lstmlm("sample", "--length", "0", "--stop", "e", "--seed", "5", "--json").json
    several = lstmlm("sample", "--length", "0", "--stop", "e", "--seed", "5", "-n", "2")

    assert plain.out == told["text"] + "\n"
    assert several.out.startswith(told["text"] + "\n\n")
    assert "e" not in several.out


@pytest.mark.parametrize("ways", [("--json",), ("-n", "2")])
def test_without_end(lstmlm: Lstmlm, run: Path, ways: tuple[str, ...]) -> None:
    """What is only written when it has ended is refused where it would never end."""
    result = lstmlm("sample", "--length", "0", *ways)

    assert result.code == 2
    assert "--stop" in result.err


def test_prompt_file(lstmlm: Lstmlm, run: Path) -> None:
    """A prompt comes from a file or stdin without its last line end, which an option keeps; prompt and file are too many."""
    Path("prompt.txt").write_text("Bob est\n", encoding="utf-8")
    from_file = lstmlm("sample", *SOME, "--prompt-file", "prompt.txt")
    from_stdin = lstmlm("sample", *SOME, "--prompt-file", "-", stdin=b"Bob est\r\n")
    two = lstmlm("sample", *SOME, "--prompt-file", "-", stdin=b"Bob est\n\n")
    kept = lstmlm("sample", *SOME, "--prompt-file", "prompt.txt", "--keep-line-end")

    assert from_file.out == from_stdin.out == lstmlm("sample", *SOME, "--prompt", "Bob est").out
    assert two.out == kept.out == lstmlm("sample", *SOME, "--prompt", "Bob est\n").out
    assert lstmlm("sample", "--prompt", "a", "--prompt-file", "-").code == 2
    assert lstmlm("sample", "--prompt", "a", "--keep-line-end").code == 2


@pytest.mark.parametrize(("data", "found"), [(b"Bob \xff", "byte 0xff at offset 4"), (None, "No such file")])
def test_bad_prompt_file(lstmlm: Lstmlm, run: Path, data: bytes | None, found: str) -> None:
    """A prompt file that is not there, or no UTF-8, is exit 3 and says where."""
    if data is not None:
        Path("prompt").write_bytes(data)
    result = lstmlm("sample", "--prompt-file", "prompt")

    assert result.code == 3
    assert found in result.err


def test_no_echo(lstmlm: Lstmlm, run: Path) -> None:
    """--no-echo leaves the prompt out and changes nothing else."""
    assert "Bob" + lstmlm("sample", "--prompt", "Bob", *SOME, "--no-echo").out == lstmlm("sample", "--prompt", "Bob", *SOME).out


@pytest.mark.parametrize("form", [("--prompt=-- Bob",), ("--prompt", "-- Bob"), ("--prompt", "-n"), ("--prompt=--json",)])
def test_dash(lstmlm: Lstmlm, run: Path, form: tuple[str, ...]) -> None:
    """A prompt that starts with a dash is a prompt."""
    result = lstmlm("sample", *form, *SOME, "--on-unknown", "skip")

    assert result.code == 0
    assert result.out.startswith(form[-1].removeprefix("--prompt="))


def test_unknown(lstmlm: Lstmlm, run: Path) -> None:
    """A character that the model does not know is exit 3, with its name, code point and position, and the way out."""
    result = lstmlm("sample", "--prompt", "Bob Ħ\x1b", *SOME)

    assert result.code == 3
    assert result.out == ""
    assert all(part in result.err for part in ("Ħ", "U+0126", "4", "--on-unknown"))
    assert "seed" not in lstmlm("sample", "--prompt", "Ħ").err  # nothing was drawn
    assert b"\x1b" not in result.stderr


def test_on_unknown(lstmlm: Lstmlm, run: Path) -> None:
    """Skip leaves it out, replace takes the nearest character; the echo is the prompt as it was given."""
    skipped = lstmlm("sample", "--prompt", "BobĦ", *SOME, "--on-unknown", "skip")
    replaced = lstmlm("sample", "--prompt", "Böb", *SOME, "--on-unknown", "replace")

    assert skipped.out.removeprefix("BobĦ") == lstmlm("sample", "--prompt", "Bob", *SOME).out.removeprefix("Bob")
    assert replaced.out.removeprefix("Böb") == lstmlm("sample", "--prompt", "Bob", *SOME).out.removeprefix("Bob")
    assert lstmlm("sample", "--on-unknown", "drop").code == 2


@pytest.mark.parametrize(
    "flags",
    [
        ("--temperature", "nan"), ("--temperature", "-1"), ("--temperature", "inf"), ("--top-p", "nan"), ("--top-p", "1.5"),
        ("--stop", "\\n"), ("--stop", "Ħ"), ("--lines", "0"),
        ("--top-k", "-1"), ("--seed", "-1"), ("--seed", "9" * 30), ("--length", "-1"), ("-n", "0"), ("--stop", ""),
    ],
)  # fmt: skip
def test_out_of_range(lstmlm: Lstmlm, run: Path, flags: tuple[str, ...]) -> None:
    """A number that makes no sense, NaN among them, is exit 2 and names the flag."""
    result = lstmlm("sample", *flags)

    assert result.code == 2
    assert flags[0] in result.err
    assert result.out == ""


def test_fallback(lstmlm: Lstmlm, run: Path) -> None:
    """Where best is damaged, last is used, and a warning names both."""
    path = run / "best.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    result = lstmlm("sample", "-m", run, *SOME)

    assert result.code == 0
    assert "warning:" in result.err
    assert "best.safetensors" in result.err
    assert "Using runs/text/last.safetensors instead" in result.err.replace(str(run), "runs/text")
    assert lstmlm("sample", "-m", path, *SOME).code == 4


def test_missing_model(lstmlm: Lstmlm, run: Path) -> None:
    """A model that is not there is exit 4, with the one that was perhaps meant."""
    result = lstmlm("sample", "-m", "runs/txt")

    assert result.code == 4
    assert "Did you mean runs/text?" in result.err


def test_bytes(lstmlm: Lstmlm, text: Path) -> None:
    """A model of bytes takes any prompt and writes the bytes that it draws."""
    lstmlm("train", text, "--tokenizer", "byte", "--steps", "2", "--hidden", "7", "--threads", "1", "-q")
    result = lstmlm("sample", "--prompt", "Ħ\x1b[0m", *SOME)

    assert result.code == 0
    assert result.stdout.startswith("Ħ\x1b[0m".encode())
    assert checkpoint.read(Path("runs/text/best.safetensors")).meta["tokenizer"] == {"kind": "byte"}


def lines(output: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines."""
    return [json.loads(line) for line in output.splitlines()]


def test_prompts(lstmlm: Lstmlm, run: Path) -> None:
    """Each line of a file or of stdin is answered as --prompt would be: a JSON line a sample, an empty line as no prompt."""
    asked = ["Bob est", "", "Ann is", "Bob est"]
    Path("asked.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(asked).encode())
    alone = [line for prompt in asked for line in lines(lstmlm("sample", "--prompt", prompt, *SOME, "-n", "2", "--json").out)]

    from_file = lstmlm("sample", "--prompts", "asked.txt", *SOME, "-n", "2")
    from_stdin = lstmlm("sample", "--prompts", "-", *SOME, "-n", "2", stdin="\n".join(asked).encode() + b"\n")

    assert lines(from_file.out) == lines(from_stdin.out) == alone
    assert [line["prompt"] for line in alone] == [prompt for prompt in asked for _ in range(2)]
    assert lstmlm("sample", "--prompts", "-", *SOME).out == ""


def test_bad_prompts(lstmlm: Lstmlm, run: Path) -> None:
    """A line that cannot be answered gets an error record with its number, the others their answers, and the end is exit 3."""
    result = lstmlm("sample", "--prompts", "-", *SOME, stdin="Bob\nBob Ħ\nB\udcf6b\nAnn\n".encode("utf-8", "surrogateescape"))
    records = lines(result.out)
    missing = lstmlm("sample", "--prompts", "asked.txt")

    assert (result.code, missing.code) == (3, 3)
    assert [record["prompt"] for record in records] == ["Bob", "Bob Ħ", "B\ufffdb", "Ann"]
    assert ["error" in record for record in records] == [False, True, True, False]
    assert "--prompts - line 2: text at character 4" in records[1]["error"]
    assert "--prompts - line 3: expected UTF-8, found byte 0xf6 at offset 1" in result.err
    assert "expected an answer to 4 lines, found 2 without" in result.err
    assert "No such file" in missing.err
    assert len(lines(lstmlm("sample", "--prompts", "-", *SOME, "--on-unknown", "skip", stdin="Bob Ħ\n".encode()).out)) == 1
    for other in (("--prompt", "a"), ("--prompt-file", "-")):
        assert lstmlm("sample", "--prompts", "-", *other).code == 2
    assert lstmlm("sample", "--prompts", "-", "--length", "0").code == 2


def test_next(lstmlm: Lstmlm, run: Path) -> None:
    """--next shows the likeliest characters, the likeliest first, as a table, as JSON and for every prompt of a list."""
    shown = [line.split("\t") for line in lstmlm("sample", "--prompt", "Bob ", "--next", "4").out.splitlines()]
    told = lstmlm("sample", "--prompt", "Bob ", "--next", "4", "--json").json
    every = lstmlm("sample", "--prompt", "Bob ", "--next", "500", "--json").json["next"]
    listed = lines(lstmlm("sample", "--prompts", "-", "--next", "4", stdin=b"Ann\nBob ").out)

    assert [(f"{entry['probability']:.6f}", entry["text"]) for entry in told["next"]] == [(p, text) for p, text in shown]
    assert listed[1] == told
    assert listed[0]["next"] != told["next"]
    assert sum(entry["probability"] for entry in every) == pytest.approx(1.0)
    assert every[:4] == told["next"] == sorted(told["next"], key=lambda entry: -entry["probability"])
    assert lstmlm("sample", "--prompt", "Bob ", "--greedy", "--length", "1", "--no-echo").out == told["next"][0]["text"] + "\n"
    for flags in (("--temperature", "0.5"), ("-n", "2"), ("--stop", "e"), ("--seed", "1"), ("--greedy",)):
        assert lstmlm("sample", "--next", "4", *flags).code == 2
    assert lstmlm("sample", "--next", "0").code == 2


def test_a_backslash_and_an_n(lstmlm: Lstmlm, run: Path) -> None:
    """A stop text or separator with a backslash and an n asks whether a line end was meant; what cannot be written is exit 2."""
    refused = lstmlm("sample", "--stop", "\\n", "--length", "0")
    asked = lstmlm("sample", *SOME, "-n", "2", "--separator", "\\n")

    assert (refused.code, asked.code) == (2, 0)
    assert "Did you mean a line end, --stop $'\\n'?" in refused.err
    assert "Did you mean a line end, --separator $'\\n'?" in asked.err
    assert "\\n" in asked.out


def test_items(lstmlm: Lstmlm, run: Path) -> None:
    """Samples of one line stand in a line each; one that was cut has a mark and is counted; other samples have none."""
    flags = ("--seed", "5", "-n", "6", "--length", "20")
    told = lines(lstmlm("sample", *flags, "--lines", "1", "--json").out)
    by_lines, by_stop = (lstmlm("sample", *flags, *ends) for ends in (("--lines", "1"), ("--stop", "\n")))
    cut = sum(one["stop"] == "length" for one in told)

    assert cut > 0
    assert by_lines.out == by_stop.out == "".join(one["text"] + "…" * (one["stop"] == "length") + "\n" for one in told)
    assert f"{cut} of 6 samples cut at 20 characters, marked …" in by_lines.err
    assert "…" not in lstmlm("sample", *flags).out
    assert lstmlm("sample", *flags, "--lines", "1", "--separator", "|").out == by_lines.out[:-1].replace("\n", "|") + "\n"
    assert lstmlm("sample", "--seed", "5", "--length", "20", "--lines", "1").out.endswith(
        "…\n" if "…" in by_lines.out.split("\n")[0] else "\n"
    )


@pytest.fixture
def at_home(run: Path, text: Path) -> Path:
    """Return a run that knows where its text lies."""
    saved = checkpoint.read(run / "best.safetensors")
    saved.meta["corpus"]["sources"] = [str(text)]
    checkpoint.write(run / "best.safetensors", saved)
    return run


def test_new(lstmlm: Lstmlm, at_home: Path, text: Path) -> None:
    """--new leaves out what the training text holds, as a whole line where samples are lines, and says when nothing is left."""
    flags = ("--seed", "5", "-n", "8", "--length", "2")
    every = [one["text"] for one in lines(lstmlm("sample", *flags, "-n", "40", "--json").out)]
    some = [one["text"] for one in lines(lstmlm("sample", *flags, "--new", "--json").out)]
    held = TEXT[: len(TEXT) - len(TEXT) // 10]

    assert some == [one for one in every if one not in held][:8]
    assert len(some) < len(every)
    none = lstmlm("sample", "--length", "1", "-n", "2", "--new", "--seed", "1")
    assert (none.code, none.out) == (1, "")
    assert "Try a higher --temperature" in none.err
    assert lstmlm("sample", "--length", "1", "--new", "--prompts", "-", stdin=b"\n").code == 1  # nothing else is wrong
    assert lstmlm("sample", "--length", "1", "--new", "--prompts", "-", stdin="\n€\n".encode()).code == 3
    assert lstmlm("sample", "--new", "--lines", "2").code == 2
    text.write_text("other")
    assert "else leave out --new" in lstmlm("sample", *flags, "--new").err


@pytest.mark.parametrize(("stop", "found"), [(["\n"], [True, False, True, False]), ([], [True, True, True, True])])
def test_what_a_text_holds(at_home: Path, stop: list[str], found: list[bool]) -> None:
    """A sample that is a line is looked up as a whole one, one that was cut as the beginning of one, any other anywhere."""
    own = sample_command._TrainingText(LanguageModel.open(at_home), stop, lines=False)
    asked = [("Ann is there, and Bob is not.", "stop"), ("is there", "stop"), ("Ann is", "length"), ("nn is", "length")]

    assert [own.holds(text, Sample("", 0, 0.0, reason)) for text, reason in asked] == found


def test_bytes_are_written_as_they_are(lstmlm: Lstmlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of bytes writes into a pipe the bytes that it drew; JSON and terminals get U+FFFD for what is no UTF-8."""
    make_run(tmp_path / "runs" / "bytes", byte=True)
    data = "é\n".encode() + b"\xf6\xffb"
    monkeypatch.setattr("lstmlm.evaluation.text_sampler.generate_each", lambda *_: (([byte], [1.0]) for byte in data))
    plain, told = lstmlm("sample", "--length", "5", "-q"), lstmlm("sample", "--length", "5", "--json", "-q")
    given = lstmlm("sample", "--prompt-file", "-", "--length", "5", "-q", stdin=b"\xe4\n")
    asked = lstmlm("sample", "--prompts", "-", "--length", "5", "-q", stdin=b"\xe4\n")

    assert plain.stdout == data + b"\n"
    assert given.stdout == b"\xe4" + data + b"\n"
    assert (asked.code, asked.json["prompt"]) == (0, "\ufffd")
    assert told.json["text"] == "é\n\ufffd\ufffdb"
    assert sample_command._shown("é\udcf6\x1b", terminal=True) == "é\ufffd\\x1b"


def test_a_pipe_gets_every_line_at_once(lstmlm: Lstmlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into a pipe is there at the end of each line, not when some buffer is full."""
    make_run(tmp_path / "runs" / "bytes", byte=True)
    monkeypatch.setattr("lstmlm.evaluation.text_sampler.generate_each", lambda *_: (([byte], [1.0]) for byte in b"Bob\nis\nhere"))
    written: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "lstmlm.display.console.Console.result", lambda _, text, end="\n", flush=False: written.append((text + end, flush))
    )
    lstmlm("sample", "--length", "10", "-q")

    assert "".join(text for text, _ in written) == "Bob\nis\nher\n"
    assert [text for text, flush in written if flush] == ["\n", "\n"]
