"""The command `lstmlm info`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lstmlm.cli import safe_output
from lstmlm.cli.options import MODEL, OUTPUT, Json, ModelAgain, ModelArgument, Quiet, one_model
from lstmlm.display.console import Console
from lstmlm.errors import CheckpointError, UsageError, in_shell, printable
from lstmlm.units import bits, counted, size

if TYPE_CHECKING:
    from lstmlm.config.run_config import Value
    from lstmlm.storage.header import Header


CACHE = "Cache"
GROUPS = {MODEL: "-m runs/stories", "Checks and pictures": "--verify", CACHE: "--cache", OUTPUT: "--json -q"}


def info(
    target: ModelArgument = None,
    model: ModelAgain = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check every checkpoint of the run, byte by byte.", rich_help_panel="Checks and pictures"),
    ] = False,
    svg: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Draw the run's curves and three of its samples.", rich_help_panel="Checks and pictures"
        ),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Over the picture.", show_default="the run's folder", rich_help_panel="Checks and pictures"
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache", help="Show the ids of large texts that are kept for the next run.", rich_help_panel=CACHE)
    ] = False,
    clear_cache: Annotated[bool, typer.Option("--clear-cache", help="Remove them.", rich_help_panel=CACHE)] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a model is: configuration, vocabulary, scores, where it came from.

    lstmlm info runs/stories

    lstmlm info runs/stories --svg stories.svg

    lstmlm info --verify

    lstmlm info --cache
    """
    name = one_model("info", target, model)
    if title is not None and svg is None:
        raise UsageError("--title: expected --svg with the picture that it stands over, found none.")
    if cache or clear_cache:
        if name or verify or svg:
            raise UsageError("--cache and --clear-cache are about no model; leave out all else.")
        _show_cache(Console(quiet=quiet), json, clear_cache)
        return
    safe_output.refuse_other("--svg", svg)

    from lstmlm.config import run_config
    from lstmlm.data.saved_model import note, parts
    from lstmlm.storage import run_dir

    console = Console(quiet=quiet)
    if verify:
        _verify(console, name, json)
        if svg is None:
            return
    path, saved = run_dir.load_header(name, console.warn, lambda header: parts(header.meta, []))
    if name is None:
        console.say(f"model {printable(str(path))}")
    if svg is not None:
        from lstmlm.cli import run_plots

        run_plots.write(path.parent, svg, title or str(run_dir.folder_of(path)))
        console.say(f"wrote {printable(svg)}")
    if verify or (svg is not None and not json):
        return
    ignored: list[str] = []
    config, _ = parts(saved.meta, ignored)
    if ignored:
        console.warn(f"checkpoint {printable(str(path))}: {note(saved.meta, ignored)}")
    facts = _facts(path, saved)
    if json:
        console.as_json(facts)
    else:
        console.table(_rows(facts, run_config.flat(config)))


def _verify(console: Console, name: str | None, json: bool) -> None:
    """Read every byte of a checkpoint, or of all that lie in a run folder, and say of each whether it is whole.

    Raises:
        CheckpointError: One is not; that of the first one.
    """
    from lstmlm.storage import checkpoint, run_dir
    from lstmlm.training.run_folder import replaced

    paths = run_dir.candidates(name)
    if paths != [Path(name or "")]:  # a run
        folder = paths[0].parent
        paths = [folder / one for one in replaced(folder) if one.endswith(run_dir.SUFFIX) and (folder / one).exists()]
    states: dict[str, str] = {}
    first: CheckpointError | None = None
    for path in paths:
        try:
            checkpoint.read(path)
            states[str(path)] = "whole"
        except CheckpointError as error:
            states[str(path)] = "damaged"
            first = first or error
    if json:
        found = {kind: [path for path, state in states.items() if state == kind] for kind in ("whole", "damaged")}
        console.as_json({"schema": 1, "command": "info", "verified": found["whole"], "damaged": found["damaged"]})
    else:
        console.result("".join(f"{printable(path)}: {state}\n" for path, state in states.items()), end="")
    if first:
        raise first


def _show_cache(console: Console, json: bool, clear: bool) -> None:
    """Show the cached ids of texts, or remove them."""
    from lstmlm.data import cache
    from lstmlm.machine import ids_folder

    folder = ids_folder()
    files = cache.kept(folder)
    gone = cache.clear(folder) if clear else 0
    if json:
        rows = [{"file": str(one.path), "text": one.text, "bytes": one.size, "used": one.used} for one in files]
        console.as_json({"schema": 1, "command": "info", "cache": str(folder), "files": rows, "removed_bytes": gone})
        return
    if clear:
        console.result(f"{size(gone)} in {counted(len(files), 'file')} removed from {printable(str(folder))}")
        return
    days = [max(0.0, (time.time() - one.used) / 86400) for one in files]
    table = [(one.text, size(one.size), f"{counted(round(day), 'day')} ago") for one, day in zip(files, days, strict=True)]
    console.table([*table, ("all", size(sum(one.size for one in files)), "")], ("text", "size", "last used"))
    console.say(
        f"in {printable(str(folder))}; what is unused for 30 days goes when another one is written, "
        "`lstmlm info --clear-cache` removes all."
    )


def _facts(path: Path, saved: "Header") -> dict[str, Any]:
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


def _rows(facts: dict[str, Any], values: "dict[str, Value]") -> list[tuple[str, str]]:
    """Return what is shown, as name and value."""
    scores, corpus = facts["scores"], facts["corpus"]
    members = values["model.members"]
    each = f" ({members} members of {facts['parameters'] // members:,})" if isinstance(members, int) and members > 1 else ""
    rows = [
        ("model", f"{facts['model']} ({facts['kind']}, {size(facts['bytes'])})"),
        ("parameters", f"{facts['parameters']:,}{each}"),
        ("step", f"{facts['step']:,}"),
    ]
    if "validation_bits_per_char" in scores:
        about = "about " if scores.get("exact") is False else ""
        rows.append(
            (
                "validation",
                f"{about}{scores['validation_bits_per_char']:.4f} bits/char at step {scores.get('step')}, the best so far",
            )
        )
    chars = f"{corpus['chars']:,}" if isinstance(corpus.get("chars"), int) else "?"
    files = corpus.get("count") or len(corpus.get("sources") or "-")
    more = f" and {files - 1:,} more" if isinstance(files, int) and files > 1 else ""
    vocabulary = f"{facts['vocabulary_size']} {'bytes' if facts['tokenizer'] == 'byte' else 'characters'}"
    if facts["vocabulary"]:
        vocabulary += f": {facts['vocabulary'][:100]}{'...' if len(facts['vocabulary']) > 100 else ''}"
    rows += [
        ("vocabulary", vocabulary),
        ("corpus", f"{corpus.get('name')}{more}, {chars} characters, fingerprint {str(corpus.get('fingerprint'))[:16]}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        ("command", in_shell(*map(str, facts["command_line"]))),
    ]
    return rows + [
        (key, str(value).lower() if isinstance(value, bool) else str(value)) for key, value in values.items() if value is not None
    ]
