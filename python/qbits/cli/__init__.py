"""The `qbits` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import qbits
from qbits.cli.extras import MissingExtra


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
    args = _parser().parse_args(argv)
    if args.cmake_dir:
        print(cmake_dir())
        return 0
    try:
        return _demo(args) if args.command == "demo" else _info()
    except (MissingExtra, OSError, ValueError) as error:  # what a user can put right
        print(f"qbits: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qbits", description=qbits.__doc__)
    parser.add_argument("--version", action="version", version=qbits.__version__)
    parser.add_argument(
        "--cmake-dir", action="store_true", help="print where find_package(qbits) finds this package"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands.add_parser("info", help="print what a bug report needs; also without a COMMAND")
    demo = commands.add_parser(
        "demo",
        help="quantize a real language model and print what each format costs and gives",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    model = demo.add_mutually_exclusive_group()
    model.add_argument(
        "--model", help="a folder, a .gguf file or a name on the Hugging Face hub; SmolLM2-135M if not given"
    )
    model.add_argument(
        "--footprint",
        metavar="MODEL",
        help="only print the bytes of MODEL (random weights; facebook/opt-350m needs no network)",
    )
    demo.add_argument("--formats", metavar="A,B", help="formats to compare with fp32; all if not given")
    demo.add_argument(
        "--windows",
        type=_at_least(1),
        default=4,
        help="windows of text to measure perplexity in",
    )
    demo.add_argument("--tokens", type=_at_least(2), default=40, help="tokens to generate in each format")
    demo.add_argument(
        "--output", type=Path, metavar="DIR", help="keep the nf4 model and the table (results.json)"
    )
    demo.add_argument("--device", help="cpu or cuda; cuda if not given and there is one")
    return parser


def _at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (value := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"got {text}, want at least {minimum}")
        return value

    return parse


def _info() -> int:
    from qbits.cli.diagnosis import diagnosis

    report, passed = diagnosis()
    print(report)
    return 0 if passed else 1


def _demo(args: argparse.Namespace) -> int:
    from qbits.cli.extras import require

    require("qbits demo", "rich", "transformers", "safetensors")
    from qbits.cli import demo
    from qbits.cli.variants import variants

    chosen = variants(args.formats.split(",") if args.formats else None)
    if args.footprint:
        return demo.run_footprint(args.footprint, chosen)
    return demo.run(args.model, chosen, args.windows, args.tokens, args.output, args.device)
