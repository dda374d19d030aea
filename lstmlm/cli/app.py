"""The command `lstmlm` and its commands' flags; each command calls the module of its name.

`cli.main` calls `app`. A command is the function of its own name in the module of its own name. The module also has
`GROUPS`, the headings of its help, each with flags that show what it is for, and may have `RULES`, the last words of its help.
"""

import difflib
import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from lstmlm import __version__
from lstmlm.cli import completion
from lstmlm.cli.options import OUTPUT
from lstmlm.errors import UsageError, printable

COMMANDS = {
    "train": "Learn a text.",
    "sample": "Write text with a model.",
    "eval": "Measure a model on a text.",
    "fill": "Fill the blanks of a text.",
    "inspect": "Show what the gates do along a text.",
    "info": "Show what a model is.",
    "export": "Write a model for other programs.",
}
OTHER_WORDS = {
    "learn": "train", "generate": "sample", "write": "sample", "score": "eval", "test": "eval", "measure": "eval",
    "show": "info", "convert": "export", "save": "export", "help": "--help", "version": "--version",
}  # fmt: skip
"""What other programs call it, and people type."""

FIRST_STEPS = """First steps; `lstmlm COMMAND --help` has more examples:

lstmlm train stories --minutes 1

lstmlm sample --prompt 'Bob is'"""

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Command(TyperCommand):
    """A command with its options in groups, and its arguments shown in help by their metavar alone."""

    groups: dict[str, str]
    """The module's `GROUPS`, in the order of the help."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read what was typed; of a setting that is no flag of `train` it is said how it is set."""
        if not ctx.resilient_parsing:  # else it completes what is half typed
            self._refuse_swallowed(args)
        typed = [*args, "VALUE"]  # what stands behind the last one, for a hint; click uses up the list that it is given
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            flag = getattr(error, "option_name", "")  # of click's error for an unknown option, which typer keeps to itself
            if self.name != "train" or not flag:
                raise
            from lstmlm.config import schema

            key = next((one.key for one in schema.KEYS.values() if one.flag == flag and not one.group), None)
            if key is None:
                raise
            at, word = next((at, word) for at, word in enumerate(typed) if word.partition("=")[0] == flag)
            value = word.partition("=")[2] or typed[at + 1]
            ctx.fail(f"No such option: {flag}. Did you mean --set {key}={printable(value)}?")

    def _refuse_swallowed(self, args: list[str]) -> None:
        """Refuse an option whose value was forgotten, so that the next option would be taken for it."""
        options = [param for param in self.params if param.param_type_name == "option"]
        known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
        with_value = {name: option.metavar for option in options if not getattr(option, "is_flag", False) for name in option.opts}
        words = iter(args)
        for word in words:
            if word == "--":
                return
            if word not in with_value:
                continue
            value = next(words, "")
            if value.startswith("--") and value in known and with_value[word] != "TEXT":  # a text may be anything
                hint = f"; if that is meant, write {word}={value}" if word.startswith("--") else ""
                raise UsageError(f"{word}: expected a value behind it, found the option {value}. Give it one{hint}.")

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what stands behind the command's name in the first line of its help."""
        pieces = (param.metavar for param in self.params if param.param_type_name == "argument" and param.metavar)
        return ["[OPTIONS]", *pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, group by group."""
        found: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{group: [] for group in self.groups}}
        for param in self.get_params(ctx):
            if getattr(param, "hidden", False):
                continue
            if param.param_type_name == "argument":
                found["Arguments"].append((str(param.metavar), _help(param)))
            else:
                names = ", ".join([*sorted(param.opts, key=len), *param.secondary_opts])
                shown = names if getattr(param, "is_flag", False) else f"{names} {param.metavar}"
                found[getattr(param, "rich_help_panel", None) or OUTPUT].append((shown, _help(param)))
        for group, rows in found.items():
            if rows:
                example = self.groups.get(group)
                heading = f"{group}, e.g. {example}"
                with formatter.section(heading if example and len(heading) < formatter.width else group):
                    formatter.write_dl(rows, col_max=26)


def _help(param: Any) -> str:
    """Return what a parameter is for, and what it is where nothing is said."""
    said = getattr(param, "show_default", None)
    default = said if isinstance(said, str) else param.default
    return f"{param.help} [default: {default}]" if isinstance(default, str | int | float) and default is not False else param.help


class _Group(TyperGroup):
    """The commands. A reader that leaves early is taken as content."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a command: help for one, and every mistake, need not wait for the others."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lstmlm.cli.{cmd_name}")
        completion.offer(getattr(module, cmd_name))
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        rules = getattr(module, "RULES", None)
        alone.command(cmd_name, cls=_Command, short_help=COMMANDS[cmd_name], epilog=rules)(getattr(module, cmd_name))
        command = typer.main.get_command(alone)
        assert isinstance(command, _Command)
        command.groups = module.GROUPS
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, none of which needs to be loaded for that."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was typed, or say which one was meant, also where the words are not alike."""
        typed = args[0]
        if typed not in COMMANDS and not typed.startswith("-"):
            meant = [OTHER_WORDS[typed]] if typed in OTHER_WORDS else difflib.get_close_matches(typed, COMMANDS)
            hint = f" Did you mean {' or '.join(map(repr, meant))}?" if meant else ""
            ctx.fail(f"No such command {typed!r}.{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; `lstmlm sample | head -1` is no error, though typer takes it for one."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(0) from None


app = typer.Typer(
    name="lstmlm",
    cls=_Group,
    help="Train, sample and measure character language models: an LSTM written from scratch.",
    epilog=FIRST_STEPS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)


def _version(asked: bool) -> None:
    if asked:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "missing"
        typer.echo(f"lstmlm {__version__} (torch {torch}, python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Train, sample and measure character language models: an LSTM written from scratch."""
