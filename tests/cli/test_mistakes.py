import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Lstmlm
from tests.cli.test_main import process

MISTAKES = """
# commands typed wrong
2 | tarin text.txt | train text.txt
2 | Train text.txt | train text.txt
2 | training text.txt | train text.txt
2 | trian text.txt | train text.txt
2 | learn text.txt | train text.txt
2 | sampel | sample
2 | samples | sample
2 | generate | sample
2 | evaluate text.txt | eval text.txt
2 | evla text.txt | eval text.txt
2 | score text.txt | eval text.txt
2 | filll "B____b" --choice o --choice a | fill "B____b" --choice o --choice a
2 | inspekt Bob | inspect Bob
2 | inof | info
2 | show | info
2 | --verison | --version
2 | version | --version
2 | help | --help
2 | text.txt
2 | -train text.txt
2 | ""
# options typed wrong
2 | train text.txt --hiden 7 | train text.txt --hidden 7
2 | train text.txt --Hidden 7 | train text.txt --hidden 7
2 | train text.txt --hidden-size 7 | train text.txt --hidden 7
2 | train text.txt --layer 2 | train text.txt --layers 2
2 | train text.txt --num-layers 2 | train text.txt --layers 2
2 | train text.txt --batch-size 2 | train text.txt --batch 2
2 | train text.txt --windw 9 | train text.txt --window 9
2 | train text.txt --step 5 | train text.txt --steps 5
2 | train text.txt --max-steps 5 | train text.txt --steps 5
2 | train text.txt --epoch 5 | train text.txt --epochs 5
2 | train text.txt --n-epochs 5 | train text.txt --epochs 5
2 | train text.txt --minute 5 | train text.txt --minutes 5
2 | train text.txt --output new | train text.txt --out new
2 | train text.txt --overwrit | train text.txt --overwrite
2 | train text.txt --resum --out runs/text | train text.txt --resume --out runs/text
2 | train text.txt --val_fraction 0.2 | train text.txt --val-fraction 0.2
2 | train text.txt --drop-out 0.2 | train text.txt --dropout 0.2
2 | train text.txt --tokeniser byte | train text.txt --tokenizer byte
2 | train text.txt --quite | train text.txt --quiet
2 | train text.txt --dryrun | train text.txt --dry-run
2 | train text.txt --printconfig | train text.txt --print-config
2 | train text.txt --learning-rate 0.1
2 | train text.txt --accumulate 2 | train text.txt --set train.accumulate=2
2 | train text.txt --clip=0.5 | train text.txt --set train.clip=0.5
2 | train text.txt -o new
2 | train text.txt -qx
2 | train text.txt --json=yes
2 | sample --promt Bob | sample --prompt Bob
2 | sample --Prompt Bob | sample --prompt Bob
2 | sample --prompt_file text.txt | sample --prompt-file text.txt
2 | sample --lenght 5 | sample --length 5
2 | sample --len 5 | sample --length 5
2 | sample --temp 1 | sample --temperature 1
2 | sample --temprature 1 | sample --temperature 1
2 | sample --topk 3 | sample --top-k 3
2 | sample --top_p 0.9 | sample --top-p 0.9
2 | sample --no-eco | sample --no-echo
2 | sample --on-unknwon skip | sample --on-unknown skip
2 | sample --gredy | sample --greedy
2 | sample -p Bob
2 | sample --greedy=1
2 | eval text.txt --max-bcp 9 | eval text.txt --max-bpc 9
2 | eval text.txt --line | eval text.txt --lines
2 | eval text.txt --modle runs/text | eval text.txt --model runs/text
2 | eval text.txt --protocl cold | eval text.txt --protocol cold
2 | fill "B____b" --choise o --choice a | fill "B____b" --choice o --choice a
2 | fill "B____b" --choice o --choice a --forget . | fill "B____b" --choice o --choice a --forget-at .
2 | inspect Bob --tops 2 | inspect Bob --top 2
2 | inspect Bob --shwo cell | inspect Bob --show cell
2 | inspect --reac --file text.txt | inspect --reach --file text.txt
2 | info --verfy | info --verify
2 | info --jsn | info --json
# values, with and without units
2 | train text.txt --hidden
2 | train text.txt --hidden= | train text.txt --hidden=auto
2 | train text.txt --hidden 7.5
2 | train text.txt --hidden -3
2 | train text.txt --hidden 1e3 | train text.txt --hidden 1000
2 | train text.txt --hidden 1,000 | train text.txt --hidden 1000
2 | train text.txt --hidden 1_000 | train text.txt --hidden 1000
2 | train text.txt --hidden 1k | train text.txt --hidden 1000
2 | train text.txt --layers 010 | train text.txt --layers 10
2 | train text.txt --lr high
2 | train text.txt --lr 0.1.2
2 | train text.txt --lr 0,01 | train text.txt --lr 0.01
2 | train text.txt --lr -0.1
2 | train text.txt --lr
2 | train text.txt --minutes 0
2 | train text.txt --minutes 5m | train text.txt --minutes 5
2 | train text.txt --minutes 5min | train text.txt --minutes 5
2 | train text.txt --minutes "5 minutes" | train text.txt --minutes 5
2 | train text.txt --minutes 1h | train text.txt --minutes 60
2 | train text.txt --minutes 90s | train text.txt --minutes 1.5
2 | train text.txt --minutes 12:30
2 | train text.txt --minutes nan
2 | train text.txt --minutes inf
2 | train text.txt --steps 0
2 | train text.txt --steps 1e4 | train text.txt --steps 10000
2 | train text.txt --steps 10k | train text.txt --steps 10000
2 | train text.txt --steps 2M | train text.txt --steps 2000000
2 | train text.txt --steps 0x10 | train text.txt --steps 16
2 | train text.txt --steps 10.5
2 | train text.txt --steps 5 --minutes 1
2 | train text.txt --epochs one
2 | train text.txt --dropout 1.5
2 | train text.txt --dropout 50% | train text.txt --dropout 0.5
2 | train text.txt --val-fraction 10% | train text.txt --val-fraction 0.1
2 | train text.txt --val-fraction 0.9
2 | train text.txt --seed -1
2 | train text.txt --seed 1.0 | train text.txt --seed 1
2 | train text.txt --seed abc
2 | train text.txt --threads all
2 | train text.txt --device gpu | train text.txt --device cuda
2 | train text.txt --device CPU | train text.txt --device cpu
2 | train text.txt --device cpux | train text.txt --device cpu
2 | train text.txt --precision fp32 | train text.txt --precision float32
2 | train text.txt --tokenizer bytes | train text.txt --tokenizer byte
2 | train text.txt --tokenizer word
2 | train text.txt --encoding binary
2 | sample --length many
2 | sample --length 1k
2 | sample --length -5
2 | sample --length 0 --json
2 | sample --temperature hot
2 | sample --temperature 0,8
2 | sample --temperature nan
2 | sample --top-p 90
2 | sample --seed 1.5
2 | sample -n 0
2 | sample --on-unknown ignore --prompt a
2 | sample --on-unknown skipp --prompt a | sample --on-unknown skip --prompt a
2 | sample --device cpux | sample --device cpu
2 | fill "B____b" --choice o --choice a --device Cpu | fill "B____b" --choice o --choice a --device cpu
2 | eval text.txt --protocol luke
2 | eval text.txt --protocol code | eval text.txt --protocol cold
2 | eval text.txt --lines --state carry | eval text.txt --lines --state carried
2 | eval text.txt --device CPU | eval text.txt --device cpu
2 | eval --files-from ""
2 | eval text.txt --window 0
2 | eval text.txt --max-bpc abc
2 | eval text.txt --lines --chars
2 | inspect Bob --show forgot | inspect Bob --show forget
2 | inspect Bob --show ""
2 | inspect Bob --show Cell | inspect Bob --show cell
2 | inspect Bob --units 1:99
2 | inspect Bob --units 3:1
2 | inspect Bob --top many
2 | inspect --at ab
2 | inspect --find captial --file text.txt | inspect --find capital --file text.txt
2 | inspect --find re:[ --file text.txt
2 | inspect --reach --find capital
2 | inspect --swap Bob,Ann
2 | inspect --at . --swap Bob
# keys and configurations
2 | train text.txt --set lr=3 | train text.txt --set train.lr=3
2 | train text.txt --set train.lrr=3 | train text.txt --set train.lr=3
2 | train text.txt --set train.learning_rate=3 | train text.txt --set train.lr=3
2 | train text.txt --set modle.hidden=7 | train text.txt --set model.hidden=7
2 | train text.txt --set Model.Hidden=7 | train text.txt --set model.hidden=7
2 | train text.txt --set train.lr
2 | train text.txt --set train.lr 3
2 | train text.txt --set train.lr:3
2 | train text.txt --set =7
2 | train text.txt --set model=7
2 | train text.txt --set model.bias=maybe
2 | train text.txt --set model.bias=yes | train text.txt --set model.bias=true
2 | train text.txt --set model.bias=True | train text.txt --set model.bias=true
2 | train text.txt --set model.readout=linaer | train text.txt --set model.readout=linear
2 | train text.txt --set train.kernel=navite | train text.txt --set train.kernel=native
2 | train text.txt --config minut | train text.txt --config minute
2 | train text.txt --config Article | train text.txt --config article
2 | train text.txt --config article.yml | train text.txt --config article
2 | train text.txt --config my.yml | train text.txt --config my.yaml
2 | train text.txt --config nowhere.yaml
2 | train text.txt --config bad.yaml | train text.txt --set train.lr=0.01
2 | train text.txt --config text.txt
2 | train text.txt --config folder
2 | train text.txt --config runs/text
2 | train text.txt --config runs/text/best.safetensors
# paths
2 | train
3 | train texd.txt | train text.txt
3 | train Text.txt | train text.txt
3 | train storys | train stories
3 | train Stories | train stories
3 | train stories.txt | train stories
3 | train empty.txt
3 | train folder
3 | train my text.txt
3 | train http://example.com/a.txt
3 | train ""
2 | train runs/text --out a | train text.txt --from runs/text --out a
3 | train text.txt --val none.txt --out a
3 | train text.txt --val folder --out a
3 | train text.txt --val empty.txt --out a
2 | train - --val -
2 | train text.txt --out text.txt
2 | train text.txt --overwrite --steps 1 --out ""
2 | train text.txt --steps 1 --out a --val ""
2 | train text.txt --steps 1 --out a --from ""
2 | train text.txt --hidden 7 --out text.txt/run
2 | train text.txt --resume --overwrite
2 | train text.txt --resume --hidden 9 --out runs/text
3 | train my.yaml --resume --out runs/text
4 | train text.txt --from none --out a
4 | train text.txt --from runs/tex --out a | train text.txt --from runs/text --out a
4 | train text.txt --from text.txt --out a
2 | train text.txt --from runs/text --hidden 9 --out a
2 | train text.txt --from runs/text --overwrite --out runs/text
4 | train text.txt --resume --out none
4 | train text.txt --resume --out folder
4 | sample -m text.txt
4 | sample -m runs/tex | sample -m runs/text
4 | sample -m text | sample -m runs/text
4 | sample -m runs | sample -m runs/text
4 | sample -m RUNS/text | sample -m runs/text
4 | sample -m runs/TEXT | sample -m runs/text
4 | sample -m runs/text/best | sample -m runs/text
4 | sample -m runs/text/best.safetensor | sample -m runs/text/best.safetensors
4 | sample -m runs/text/config.yaml
3 | sample --prompt-file none
3 | sample --prompt-file folder
3 | sample --prompt-file runs/text/best.safetensors
3 | eval none.txt
3 | eval folder
3 | eval empty.txt
4 | eval text.txt -m text.txt
2 | eval runs/text/best.safetensors | eval -m runs/text/best.safetensors
2 | eval runs/text | eval -m runs/text
3 | fill --file none.tsv
3 | fill --file folder
3 | fill --file text.txt
3 | fill "B____b" --choices none.txt
3 | inspect --file none
3 | inspect --file folder
5 | inspect Bob --svg folder
5 | inspect Bob --html none/a.html
4 | info none
4 | info text.txt
4 | info runs/tex | info runs/text
4 | info runs/text/metrics.jsonl
# swapped, missing and superfluous
2 | sample "Bob is" | sample --prompt "Bob is"
2 | sample Bob is | sample --prompt "Bob is"
2 | sample runs/text | sample -m runs/text
2 | sample --prompt
2 | sample --prompt --length 3
2 | sample -Bob
3 | sample --prompt -x
3 | sample --prompt Zebra
3 | sample --prompt 日本
2 | sample --prompt a --prompt-file text.txt
2 | info runs/text extra
2 | info -m runs/text runs/other
2 | fill
2 | fill "B____b"
2 | fill "B____b" --choice o
3 | fill "Bob" --choice o --choice a
3 | fill "B___b" --choice o --choice a
3 | fill "B_____b" --choice o --choice a
2 | fill Bob ____ l --choice o --choice a | fill "Bob ____ l" --choice o --choice a
2 | fill blanks.tsv | fill --file blanks.tsv
2 | fill "B____b" --file text.txt
2 | inspect
2 | inspect Bob --file text.txt
2 | inspect Bob est l | inspect "Bob est l"
2 | inspect text.txt | inspect --file text.txt
2 | inspect --reach ./text.txt | inspect --reach --file ./text.txt
3 | inspect Zebra
3 | inspect ""
"""
QUICK = {"train": "--print-config", "sample": "--length 2 --seed 1 --threads 1", "eval": "--threads 1", "fill": "--threads 1"}
"""Added to a mended line, so that it takes no time: what was wrong with it has been read by then."""


def rows() -> list[tuple[int, str, str]]:
    """Return exit code, line, and the line mended as the message offers, if it does."""
    found = []
    for row in MISTAKES.strip().splitlines():
        if not row.startswith("#"):
            code, line, mended = [part.strip() for part in [*row.split(" | "), ""][:3]]
            found.append((int(code), line, mended))
    return found


@pytest.fixture(autouse=True)
def _here(run: Path, text: Path) -> None:
    Path("empty.txt").write_bytes(b"")
    Path("folder").mkdir()
    Path("bad.yaml").write_text("train:\n  lrr: 0.01\n")
    Path("my.yaml").write_text("train:\n  lr: 0.01\n")
    Path("blanks.tsv").write_text("text\tcandidates\tanswer\nBob ____ l\to|a\to\n")


def offers(message: str) -> list[str]:
    """Return what a message offers in place of what was typed, as it would be typed."""
    asked = re.findall(r"Did you mean (.*?)\?(?: |$)", message)
    options = re.findall(r"\(Possible options: (.*)\)", message)
    return [*(word for some in asked for word in some.split(" or ")), *(word for some in options for word in some.split(", "))]


@pytest.mark.slow
@pytest.mark.parametrize(("code", "line", "mended"), rows(), ids=[line or "nothing" for _, line, _ in rows()])
def test_mistakes_get_help(lstmlm: Lstmlm, run: Path, code: int, line: str, mended: str) -> None:
    """A mistaken line has its exit code, at most six lines, no traceback and no result; where a fix is offered, it works."""
    before = {path: path.read_bytes() for path in sorted(run.iterdir())}
    result = lstmlm(*shlex.split(line))
    message = " ".join(result.err.splitlines())

    assert result.code == code, result.err
    assert 0 < len(result.err.splitlines()) <= 6, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert {path: path.read_bytes() for path in sorted(run.iterdir())} == before
    assert bool(mended) == bool(offers(message)), message
    if mended:
        typed, offered = shlex.split(mended.replace("=", " ")), map(shlex.split, offers(message.replace("=", " ")))
        assert any(set(words) <= set(typed) for words in offered), message
        assert lstmlm(*shlex.split(mended), *shlex.split(QUICK.get(mended.split()[0], ""))).code == 0


def test_there_are_enough_mistakes() -> None:
    """There are at least 150 different mistaken lines, and a third of them is offered a fix."""
    lines = rows()

    assert len({line for _, line, _ in lines}) == len(lines) >= 150
    assert sum(bool(mended) for _, _, mended in lines) >= 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["tarin text.txt", "train text.txt --lr 0,01", "train texd.txt", "sample -m runs/tex", "info text.txt"]
)
def test_mistakes_in_a_process(line: str) -> None:
    """A process of its own says the same, and imports nothing that it does not need for that."""
    expected = next(code for code, wanted, _ in rows() if wanted == line)
    done = process(*shlex.split(line))

    assert (done.returncode, done.stdout) == (expected, b"")
    assert 0 < len(done.stderr.splitlines()) <= 6
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("prompt", ["-", "--", "-Bob", "--length", "-n 3", "- Bob"])
@pytest.mark.parametrize("way", ["--prompt={}", "--prompt {}"])
def test_a_prompt_that_starts_with_a_dash(lstmlm: Lstmlm, run: Path, prompt: str, way: str) -> None:
    """What follows --prompt is the prompt, whatever it begins with: even the name of an option."""
    typed = [part.format(prompt) for part in way.split()]
    result = lstmlm("sample", *typed, "--length", "3", "--seed", "1", "--on-unknown", "skip")

    assert result.code == 0, result.err
    assert result.out.startswith(prompt)


def test_a_run_that_nobody_may_read(lstmlm: Lstmlm, run: Path) -> None:
    """An empty folder in place of every run is told as such, with the way to a first run."""
    shutil.rmtree(run)

    assert "lstmlm train stories" in lstmlm("sample").err
