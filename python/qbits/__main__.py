"""`python -m qbits` is the `qbits` command."""

from qbits.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
