"""The `qbits` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import qbits


def cmake_dir() -> Path:
    """The folder of qbitsConfig.cmake inside the installed wheel.

    Raises FileNotFoundError where qbits runs from a build folder, which has none.
    """
    folder = Path(qbits.__file__).parent / "lib" / "cmake" / "qbits"
    if not folder.is_dir():
        raise FileNotFoundError(f"[cmake_dir] CMake files: got none at {folder}, want an installed wheel")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's) and returns its exit status."""
    parser = argparse.ArgumentParser(prog="qbits", description=qbits.__doc__)
    parser.add_argument("--version", action="version", version=qbits.__version__)
    parser.add_argument(
        "--cmake-dir", action="store_true", help="print where find_package(qbits) finds this package"
    )
    args = parser.parse_args(argv)
    if args.cmake_dir:
        print(cmake_dir())
    else:
        parser.print_help()
    return 0
