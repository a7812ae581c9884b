"""The `qbits` command."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import qbits
from qbits.cli.extras import MissingExtra
from qbits.config import DEFAULT_THRESHOLD


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
    try:
        status = _run(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure has a handler
        return status
    except BrokenPipeError:  # whoever read the output has seen enough, as in `qbits info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("qbits: interrupted", file=sys.stderr)
        return 130
    except (MissingExtra, OSError, ValueError) as error:  # what a user can put right
        print(f"qbits: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    if args.cmake_dir:
        print(cmake_dir())
        return 0
    return {"demo": _demo, "outliers": _outliers}.get(args.command, _info)(args)


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
        help="windows of text to measure perplexity in (default: %(default)s)",
    )
    demo.add_argument(
        "--tokens",
        type=_at_least(2),
        default=40,
        help="tokens to generate in each format (default: %(default)s)",
    )
    demo.add_argument(
        "--output", type=Path, metavar="DIR", help="keep the nf4 model and the table (results.json)"
    )
    _add_device(demo)
    _add_outliers(commands)
    return parser


def _add_outliers(commands: Any) -> None:
    parser = commands.add_parser(
        "outliers",
        help="find the outlier columns in the inputs of a language model's linear layers",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder, a .gguf file or a name on the Hugging Face hub; SmolLM2-135M if not given",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="a UTF-8 text; pages of Python if not given"
    )
    parser.add_argument(
        "--threshold",
        type=_positive,
        default=DEFAULT_THRESHOLD,
        help="the magnitude from where on an element is an outlier (default: %(default)s)",
    )
    parser.add_argument(
        "--windows",
        type=_at_least(1),
        default=4,
        help="windows of up to 512 tokens of it to run (default: %(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw a heat map of the layers")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=_device, help="cpu, cuda or cuda:1 and so on; cuda if not given and there is one"
    )


def _at_least(minimum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or (value := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"got {text}, want a number from {minimum} on")
        return value

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, want a positive number")
    return value


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"got {text}, want cpu, cuda, or cuda: and a number")
    return text


def _info(_: argparse.Namespace) -> int:
    from qbits.cli.diagnosis import diagnosis

    report, passed = diagnosis()
    print(report)
    return 0 if passed else 1


def _demo(args: argparse.Namespace) -> int:
    from qbits.cli.extras import require

    require("qbits demo", "rich", "transformers", "safetensors")
    from qbits.cli import demo
    from qbits.cli.variants import variants

    names = None if args.formats is None else [name.strip() for name in args.formats.split(",")]
    chosen = variants(names)
    if args.footprint is not None:
        return demo.run_footprint(args.footprint, chosen)
    return demo.run(args.model, chosen, args.windows, args.tokens, args.output, args.device)


def _outliers(args: argparse.Namespace) -> int:
    from qbits.cli.extras import require

    require("qbits outliers", "rich", "transformers", "safetensors")
    from qbits.cli import outliers

    chosen = outliers.Options(
        args.model, args.text, args.threshold, args.windows, args.plot, args.json, args.device
    )
    return outliers.run(chosen)
