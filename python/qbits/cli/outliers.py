"""`qbits outliers`: where the inputs of a language model's linear layers hold outliers, on a text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

import qbits
from qbits.cli import language_model, report, setup
from qbits.cli.evaluate import windows
from qbits.cli.extras import require
from qbits.cli.language_model import TEXT

CONTEXT = 512


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    model: str | None
    text: Path | None
    threshold: float
    windows: int
    plot: Path | None
    json: bool
    device: str | None


def run(options: Options) -> int:
    """Prints the table, or JSON, and draws the plot; returns the exit status."""
    device = setup.usable("outliers", options.device)
    text = language_model.text() if options.text is None else _read(options.text)
    if options.plot is not None:
        require("--plot", "matplotlib")
        _check_plot(options.plot)
    console = setup.console()
    loaded = setup.load(console, options.model)
    tokens = loaded.encode(text)
    if len(tokens) == 0:
        raise ValueError(f"[outliers] text: got no tokens in {options.text}, want some")
    ids = windows(tokens, options.windows, int(min(CONTEXT, loaded.positions(), len(tokens)))).to(device)
    loaded.model.to(device)
    found = qbits.outliers(loaded.model, _inputs(ids), options.threshold)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        source = TEXT if options.text is None else str(options.text)
        report.print_header(console, loaded.name, loaded.model.num_parameters(), ids, device, source)
        print(f"\n{found}")
    if options.plot is not None:  # last: a disk that is full must not cost the table
        found.plot(options.plot)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"[outliers] text: got {path} ({why}), want a text in UTF-8") from error


def _check_plot(path: Path) -> None:
    """Raises ValueError or OSError, before the model runs, for what savefig would refuse after it."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = path.suffix[1:].lower()
    if suffix and suffix not in known:  # without one it gets matplotlib's own
        raise ValueError(f"[outliers] plot: got {path}, want one of the suffixes {', '.join(sorted(known))}")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise OSError(f"[outliers] plot: got {path}, want a file that can be written to")
    setup.check_writable("outliers", "plot", path.parent)


def _inputs(ids: Tensor) -> Iterator[dict[str, Any]]:
    for window in tqdm(ids, unit="window", disable=None, leave=False):
        yield {"input_ids": window.unsqueeze(0), "use_cache": False}
