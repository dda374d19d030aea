"""The command line: flags -> configuration -> call -> exit code.

`main` is the entry point. Each command has a module of its own, which says who does the work; no module imports torch before a
command needs it.
"""

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmlm.display.console import Console

STARTED = time.perf_counter() - time.process_time()  # when the process began: until here it did little else than run

# Plain help: half the time to the first line, and no escape sequence that a pipe or a log would have to undo.
os.environ["TYPER_USE_RICH"] = "0"


BUG = 70
"""The exit code of a fault of the program itself: 1 says that a requested check failed."""

TORCH_SPACE = 768 << 20
"""Bytes of address space below which torch's libraries abort, each in its own way; measured with two processors."""


class _RefuseTorch:
    """Asks, as an importer, whether torch fits before it is imported: where it does not, its libraries end the process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing, and let others look.

        Raises:
            SystemProblem: Torch is looked for, and the process may not take enough memory.
        """
        if name == "torch":
            from lstmlm.errors import SystemProblem

            raise SystemProblem(
                f"memory: expected {TORCH_SPACE >> 20} MiB of address space or more, which torch takes, found a limit of "
                f"{self._limit >> 20} MiB. Raise it (ulimit -v)."
            )


def main() -> None:
    """Run the command line and leave with its exit code."""
    from lstmlm.display.console import Console
    from lstmlm.errors import LstmlmError, Stopped, SystemProblem, printable

    console = Console()
    try:
        _require_place(sys.argv[1:])
        from lstmlm.cli.app import app

        app(prog_name="lstmlm")
        code: object = 0
    except SystemExit as leaving:  # how typer ends every command, a usage error included
        code = leaving.code
    except Stopped as stopped:
        console.say(str(stopped))  # what was asked for, and no error
        code = stopped.exit_code
    except LstmlmError as error:
        console.error(error)
        code = error.exit_code
    except BrokenPipeError:
        code = 0  # the reader has had enough, as in `lstmlm sample | head -1`: no error
    except OSError as error:
        from lstmlm.storage.atomic import problem

        console.error(problem(error, f"cannot use {error.filename}" if error.filename else "cannot go on"))
        code = 5
    except KeyboardInterrupt:
        code = 130
    except (MemoryError, RuntimeError) as error:
        from lstmlm.model import devices

        full = devices.out_of_memory(error)
        if full is None:
            code = _fault(console)
        else:
            console.error(full)
            code = full.exit_code
    except ImportError as error:
        if (error.name or "").startswith("lstmlm"):
            code = _fault(console)
        else:  # a library that does not fit into the memory, or is not whole
            found = printable(str(error))
            console.error(
                SystemProblem(f"libraries: expected them to load, found: {found}. Allow more memory, or install them again.")
            )
            code = 5
    except Exception:
        code = _fault(console)
    sys.exit(console.finish(code if isinstance(code, int) else int(bool(code))))


def _require_place(words: list[str]) -> None:
    """Make sure that a command has a place to work in, and that torch is not loaded where it does not fit.

    Raises:
        SystemProblem: The working folder was deleted.
    """
    from lstmlm.errors import SystemProblem

    if not words or words[0] == "info" or {"-h", "--help", "--version"} & set(words):
        return

    try:
        os.getcwd()
    except OSError:
        raise SystemProblem("working folder: expected one that exists, found it deleted. Go to another one (cd).") from None
    try:
        import resource
    except ImportError:
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < TORCH_SPACE:
        sys.meta_path.insert(0, _RefuseTorch(limit))


def _fault(console: "Console") -> int:
    """Show a fault of the program itself with all that is known of it, and return its exit code."""
    import platform
    import traceback

    from lstmlm import __version__
    from lstmlm.errors import LstmlmError, printable

    if console.stderr is not None:
        for line in traceback.format_exc().splitlines():
            print(printable(line), file=console.stderr)
    where = f"lstmlm {__version__}, Python {platform.python_version()}, {platform.platform()}"
    console.error(
        LstmlmError(f"fault in the program ({where}): expected none, found the one above. Report these lines with the command.")
    )
    return BUG
