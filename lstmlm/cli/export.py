"""The command `lstmlm export`: a model for programs that know nothing of this one."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lstmlm.cli import safe_output
from lstmlm.cli.options import MODEL, OUTPUT, Json, ModelAgain, ModelArgument, Quiet, one_model, require_extra, words
from lstmlm.cli.text_input import open_model
from lstmlm.display.console import Console
from lstmlm.errors import UsageError, printable
from lstmlm.storage import run_dir
from lstmlm.storage.header import KINDS

SUFFIXES = {"torch": ".safetensors", "onnx": ".onnx"}
GROUPS = {MODEL: "-m runs/stories", OUTPUT: "--to onnx --out stories.onnx"}
RULES = """\
--to torch writes two files: weights of nn.LSTM, nn.LayerNorm and nn.Linear with the vocabulary in their header, and beside them
a module of the same name that loads them, reads and writes text with them. It needs torch and safetensors, but not lstmlm. Where
there is an M too (model.multiplicative), the first nn.LSTM reads a step at a time, its hidden state multiplied by 1 + M[id].
Where pairs of characters have rows of their own (model.pairs), the header says which, and the state has the last id too.

--to onnx writes one graph: ids (T, B) and state (B, N) to logits (T, B, V) and state_after (B, N). The empty state is zeros; N,
the vocabulary and the sizes stand in its metadata as "state" and "model".

A model of --document-separator says in its description which ids part documents ("separator"): behind them a reader begins again
with the empty state.

Several networks that were trained side by side stay one model, the mean of their probabilities.
"""


def export(
    target: ModelArgument = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="torch|onnx", callback=words(*SUFFIXES), help="For which program.", rich_help_panel=OUTPUT),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Where to write it.", show_default="the run's name, in this folder", rich_help_panel=OUTPUT
        ),
    ] = None,
    model: ModelAgain = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model for other programs: as plain torch weights with a loader, or as an ONNX graph.

    lstmlm export runs/stories --to torch

    lstmlm export runs/stories --to onnx --out web/stories.onnx
    """
    if to is None:
        raise UsageError("export: expected --to torch or --to onnx, found neither.")
    model = one_model("export", target, model)
    suffix = SUFFIXES[to]
    if out is not None and Path(out).suffix != suffix:
        raise UsageError(f"--out {printable(out)}: expected a name that ends in {suffix}, as --to {to} writes, found another.")

    if to == "onnx":
        require_extra("--to onnx", "onnx", "take --to torch")
    from lstmlm.export import to_onnx, to_torch

    console = Console(quiet=quiet)
    opened = open_model(console, model, device="cpu")
    if opened.config.model.document_separator is not None:
        console.warn(
            "the model begins with an empty state behind its document separator; what is written does not do so by itself: "
            "begin each document with the empty state. Only its first character is predicted otherwise than here."
        )
    own = opened.path.resolve()
    name = Path(out or f"{run_dir.folder_of(own).name if own.stem in KINDS else own.stem}{suffix}")
    flag = "--out" if out else "export"
    symbols, rare = getattr(opened.tokenizer, "symbols", None), opened.tokenizer.rare
    if to == "onnx":
        safe_output.refuse_other(flag, str(name), to_onnx.MARK)
        safe_output.write_bytes(flag, str(name), [to_onnx.graph(opened.network, symbols, rare)], to_onnx.MARK)
        files = [name]
    else:
        loader = name.with_suffix(".py")
        if loader.stem in {*sys.stdlib_module_names, "torch", "safetensors"}:
            raise UsageError(
                f"{flag} {printable(str(name))}: expected a name that no module of Python or torch has, found one: who imports "
                f"{loader.stem} beside {loader.name} gets the wrong one. Choose another name with --out."
            )
        safe_output.refuse_other(flag, str(name), to_torch.MARK)
        safe_output.refuse_other(flag, str(loader))
        safe_output.write_bytes(flag, str(name), to_torch.weights(opened.network, symbols, rare), to_torch.MARK)
        safe_output.write(flag, str(loader), to_torch.loader(), "# ")
        files = [name, loader]
    if json:
        console.as_json(
            {"schema": 1, "command": "export", "model": str(opened.path), "to": to, "files": [str(file) for file in files]}
        )
    else:
        console.say(f"wrote {' and '.join(printable(str(file)) for file in files)}")
