"""The command `lstmlm info`."""

import shlex
from pathlib import Path
from typing import Any

from lstmlm.cli import safe_output
from lstmlm.config import run_config
from lstmlm.data.saved_model import note, parts
from lstmlm.display.console import Console
from lstmlm.errors import printable
from lstmlm.storage import checkpoint, run_dir
from lstmlm.storage.header import Header
from lstmlm.units import bits


def run(model: str | None, *, verify: bool, json: bool, svg: str | None = None) -> None:
    """Show what a checkpoint says of itself; only `verify` reads its tensors, and neither needs torch.

    Raises:
        CheckpointError: It is missing or damaged; with `verify`, any checkpoint of the run is.
    """
    console = Console()
    safe_output.refuse_other("--svg", svg)
    if verify:
        verified = [str(path) for path in run_dir.candidates(model) if checkpoint.read(path)]  # read checks every byte
        if json:
            console.as_json({"schema": 1, "command": "info", "verified": verified})
        else:
            for name in verified:
                console.result(f"{printable(name)}: whole")
        return
    path, saved = run_dir.load_header(model, console.warn, lambda header: parts(header.meta, []))
    if model is None:
        console.say(f"model {printable(str(path))}")
    if svg is not None:
        from lstmlm.cli import run_plots

        run_plots.write(path.parent, svg)
        console.say(f"wrote {printable(svg)}")
        return
    ignored: list[str] = []
    config, _ = parts(saved.meta, ignored)
    if ignored:
        console.warn(f"checkpoint {printable(str(path))}: {note(saved.meta, ignored)}")
    facts = _facts(path, saved)
    if json:
        console.as_json(facts)
    else:
        console.result(_as_text(facts, run_config.flat(config)), end="")


def _facts(path: Path, saved: Header) -> dict[str, Any]:
    meta = saved.meta
    nats = meta["scores"].get("validation_nats_per_char")
    return {
        "schema": 1,
        "command": "info",
        "model": str(path),
        "kind": saved.kind,
        "step": meta["step"],
        "parameters": meta["parameters"],
        "tokenizer": meta["tokenizer"].get("kind"),
        "vocabulary_size": len(meta["counts"]),
        "vocabulary": meta["tokenizer"].get("symbols"),
        "scores": meta["scores"] | ({"validation_bits_per_char": bits(nats)} if isinstance(nats, float) else {}),
        "corpus": meta["corpus"],
        "config": meta["config"],
        "versions": meta["versions"],
        "command_line": meta["command"],
        "bytes": path.stat().st_size,
    }


def _as_text(facts: dict[str, Any], values: dict[str, run_config.Value]) -> str:
    scores, corpus = facts["scores"], facts["corpus"]
    members = values["model.members"]
    each = f" ({members} members of {facts['parameters'] // members:,})" if isinstance(members, int) and members > 1 else ""
    rows = [
        ("model", f"{facts['model']} ({facts['kind']}, {facts['bytes'] / 2**20:.1f} MiB)"),
        ("parameters", f"{facts['parameters']:,}{each}"),
        ("step", f"{facts['step']:,}"),
    ]
    if "validation_bits_per_char" in scores:
        rows.append(
            ("validation", f"{scores['validation_bits_per_char']:.4f} bits/char at step {scores.get('step')}, the best so far")
        )
    chars = f"{corpus['chars']:,}" if isinstance(corpus.get("chars"), int) else "?"
    vocabulary = f"{facts['vocabulary_size']} {'bytes' if facts['tokenizer'] == 'byte' else 'characters'}"
    if facts["vocabulary"]:
        vocabulary += f": {facts['vocabulary'][:100]}{'...' if len(facts['vocabulary']) > 100 else ''}"
    rows += [
        ("vocabulary", vocabulary),
        ("corpus", f"{corpus.get('name')}, {chars} characters, fingerprint {str(corpus.get('fingerprint'))[:16]}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        ("command", shlex.join(map(str, facts["command_line"]))),
    ]
    rows += [
        (key, str(value).lower() if isinstance(value, bool) else str(value)) for key, value in values.items() if value is not None
    ]
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:{width}}  {printable(text)}\n" for name, text in rows)
