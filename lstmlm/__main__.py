"""`python -m lstmlm` is the command `lstmlm`."""

import os
from typing import NoReturn

from lstmlm import cli


def main() -> NoReturn:
    """Run the command line and end the process at once.

    All files are closed and all output is flushed by then; to take torch down piece by piece would last a tenth of a second.
    """
    try:
        cli.main()
    except SystemExit as leaving:
        os._exit(leaving.code if isinstance(leaving.code, int) else 1)
    except KeyboardInterrupt:  # what the command line needs was still being imported
        os._exit(130)
    os._exit(0)


if __name__ == "__main__":
    main()
