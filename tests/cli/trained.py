"""A run folder with a small model in it, made without training."""

from pathlib import Path
from typing import Any

from lstmlm import kernels
from lstmlm.config.run_config import DataConfig, ModelConfig, RunConfig, to_dict
from lstmlm.data.tokenizer import ByteTokenizer, CharTokenizer, separator_ids
from lstmlm.model import ensemble
from lstmlm.model.char_lm import CharLM
from lstmlm.storage import checkpoint
from lstmlm.storage.checkpoint import Checkpoint

TEXT = "Bob is a baker. Dan ran home.\nDan is (not) a farmer. Bob ate bread.\n"


def make_run(
    folder: Path,
    text: str = TEXT,
    corpus: dict[str, Any] | None = None,
    byte: bool = False,
    rare: bool = False,
    form: str = "none",
    **model: Any,
) -> Path:
    """Write `best.safetensors` of an untrained model with the vocabulary of a text, perhaps in a Unicode form, and perhaps a
    symbol for all rare ones.
    """
    sizes = ModelConfig(**{"hidden": 6, "layers": 2, "dropout": 0.0, **model})
    tokenizer = ByteTokenizer() if byte else CharTokenizer(text, rare=rare)
    ids = tokenizer.encode(text)
    kernel, _ = kernels.choose(precision="float32")
    separator = separator_ids(sizes.document_separator, tokenizer)
    network = ensemble.of([CharLM(sizes, len(tokenizer), kernel, separator) for _ in range(sizes.members)])
    for member in ensemble.members(network):
        member.give_rows([divmod(number, len(tokenizer)) for number in range(0, len(tokenizer) ** 2, 7)][: sizes.pairs or 0])
    for layer in network.stack():
        if layer.M is not None:  # as training leaves them: a row that is taken for another one shows
            layer.M.data.normal_(std=0.3)
    meta = {
        "config": to_dict(RunConfig(model=sizes, data=DataConfig(min_count=2 if rare else 1, normalize=form))),
        "tokenizer": tokenizer.to_dict(),
        "counts": [ids.count(symbol) for symbol in range(len(tokenizer))],
        "step": 1,
        "parameters": network.parameter_count(),
        "scores": {},
        "corpus": corpus or {"name": "none", "fingerprint": "", "chars": len(text)},
        "versions": {},
        "command": [],
    }
    folder.mkdir(parents=True)
    weights = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    checkpoint.write(folder / "best.safetensors", Checkpoint("best", meta, checkpoint.to_blobs(weights)))
    return folder
