import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lstmlm.kernels import native
from tests.cli.conftest import TINY, Lstmlm
from tests.cli.test_train import digest


def changed_text(run: Path, text: Path) -> None:
    """Edit one character of the corpus."""
    text.write_text(text.read_text(encoding="utf-8").replace("Bob", "bob", 1), encoding="utf-8")


def changed_config(run: Path, text: Path) -> None:
    """Edit the run's configuration, which is not what it is resumed from."""
    (run / "config.yaml").write_text("train:\n  lr: 9.0\n")


CONDITIONS: dict[str, tuple[tuple[str, ...], dict[str, str], Callable[[Path, Path], None] | None, int, str]] = {
    "another kernel": ((), {"LSTMLM_KERNEL": "native"}, None, 0, "kernel eager then, native"),
    "more threads": (("--threads", "2"), {}, None, 0, "threads 1 then, 2 now"),
    "another torch": ((), {"TORCH": "9.9.9"}, None, 0, "torch 9.9.9 then"),
    "saving more often": (("--set", "train.save_every=1"), {}, None, 0, ""),
    "an edited text": ((), {}, changed_text, 3, "expected the text that the run in"),
    "an edited config.yaml": ((), {}, changed_config, 0, ""),
    "another seed": (("--seed", "9"), {}, None, 2, "train.seed is 0 in this run, and 9 was asked for"),
    "another size": (("--hidden", "9"), {}, None, 2, "model.hidden is 7 in this run, and 9 was asked for"),
    "another precision": (("--precision", "bfloat16"), {}, None, 2, "train.precision is auto in this run, and bfloat16"),
    "another tokenizer": (("--tokenizer", "byte"), {}, None, 2, "data.tokenizer is char in this run, and byte"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_under_other_conditions(lstmlm: Lstmlm, run: Path, text: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What differs is said exactly; the run goes on where that is sound, and is refused and left as it was where it is not."""
    flags, env, change, code, words = CONDITIONS[name]
    if "TORCH" in env:
        import torch

        shutil.rmtree(run)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "__version__", env["TORCH"])
            assert lstmlm("train", text, *TINY, "--lr", "0.05").code == 0
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    if change:
        change(run, text)
    before = digest(run)
    result = lstmlm("train", text, "--resume", *flags)
    if name == "another kernel" and "kernel eager: native is not available" in result.err:
        pytest.skip("this machine cannot build or run the native kernel")

    assert result.code == code, result.err
    assert words in result.err
    assert len(result.err.splitlines()) <= 6
    assert digest(run) == before  # it had ended, so that going on changes nothing either


@pytest.mark.slow
def test_a_run_goes_on_with_its_kind(lstmlm: Lstmlm, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several kinds of products run, a run keeps the one it began with, though another would be taken by now."""
    monkeypatch.delenv("LSTMLM_KERNEL")
    try:
        strict = native.load("float32")
    except native.Unavailable as error:
        pytest.skip(str(error))
    native.load.cache_clear()
    monkeypatch.setattr(native, "_fastest", lambda library, kernels: next(k for k in kernels if k.kind == native.FLOAT32))
    begun = lstmlm("train", text, *TINY, "--out", "kept")
    monkeypatch.setattr(native, "_fastest", lambda library, kernels: kernels[0])
    native.load.cache_clear()
    again = lstmlm("train", text, "--resume", "--out", "kept")
    native.load.cache_clear()

    assert strict.name in begun.err
    assert strict.name in again.err, again.err
    assert "then" not in again.err


@pytest.mark.parametrize("part", ["config.yaml", "metrics.jsonl", "samples.txt", "best.safetensors", "clock.jsonl"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
def test_a_part_that_is_damaged(part: str, how: str, lstmlm: Lstmlm, run: Path, text: Path) -> None:
    """Whatever part of a run is missing or cut, resuming is an error that names it, or the part is not needed: never silence."""
    path = run / part
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else path.read_bytes()[:-9])
    result = lstmlm("train", text, *TINY, "--lr", "0.05", "--resume")
    needed = part in ("best.safetensors", "metrics.jsonl", "samples.txt")

    assert result.code == (4 if needed else 0), result.err
    assert not needed or part in result.err
    assert "Traceback" not in result.err
