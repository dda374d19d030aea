"""`python -m lstmlm` is the command `lstmlm`."""

from lstmlm.cli import main

if __name__ == "__main__":
    main()
