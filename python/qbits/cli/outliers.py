"""`qbits outliers`: where the inputs of a language model's linear layers hold outliers, on a text."""

from __future__ import annotations

import json
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
    text = language_model.text() if options.text is None else options.text.read_text(encoding="utf-8")
    if options.plot is not None:
        require("--plot", "matplotlib")
        setup.check_writable(options.plot.parent)
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
    if options.plot is not None:  # last: a suffix that matplotlib does not know must not cost the table
        found.plot(options.plot)
    return 0


def _inputs(ids: Tensor) -> Iterator[dict[str, Any]]:
    for window in tqdm(ids, unit="window", disable=None, leave=False):
        yield {"input_ids": window.unsqueeze(0), "use_cache": False}
