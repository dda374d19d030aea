"""The command line: flags -> configuration -> call -> exit code.

`main` is the entry point. Each command has a module of its own, which says who does the work; no module imports torch before a
command needs it.
"""

import os
import sys
import time

STARTED = time.perf_counter() - time.process_time()  # when the process began: until here it did little else than run

# Plain help: half the time to the first line, and no escape sequence that a pipe or a log would have to undo.
os.environ["TYPER_USE_RICH"] = "0"


def main() -> None:
    """Run the command line and leave with its exit code."""
    from lstmlm.cli.app import app
    from lstmlm.display.console import Console
    from lstmlm.errors import LstmlmError, Stopped, SystemProblem

    console = Console()
    try:
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
    except MemoryError:
        console.error(SystemProblem("memory: expected enough for this model and batch, found less. Try a smaller --batch."))
        code = 5
    except RuntimeError as error:
        from lstmlm.model import devices

        full = devices.out_of_memory(error)
        if full is None:
            raise
        console.error(full)
        code = full.exit_code
    sys.exit(console.finish(code if isinstance(code, int) else int(bool(code))))
