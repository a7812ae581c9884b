"""What the demo prints."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from torch import Tensor

import qbits
from qbits.cli.footprint import Footprint
from qbits.cli.variants import CALLS

if TYPE_CHECKING:
    from qbits.cli.demo import Result

MB = 1e6
WIDTH = 100


def print_header(console: Console, name: str, parameters: int, ids: Tensor, device: str, source: str) -> None:
    """What is measured, on what."""
    where = f"the CPU ({qbits.isa()}, {qbits.num_threads()} threads)" if device == "cpu" else device
    console.print(f"[bold]{name}[/], {parameters / MB:.1f} million parameters, on {where}", soft_wrap=True)
    console.print(
        f"Text: {source}, {len(ids)} windows of {ids.shape[1]} tokens",
        soft_wrap=True,
    )


def print_table(console: Console, results: list[Result]) -> None:
    """One row per format; the first is the reference."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("format")
    for column in ("MB", "of it scales", "of fp32", "perplexity", "change", "tokens/s"):
        table.add_column(column, justify="right")
    reference = results[0]
    for result in results:
        table.add_row(
            result.format,
            f"{result.bytes.total / MB:.1f}",
            f"{result.bytes.scales / MB:.1f}",
            f"{result.bytes.total / reference.bytes.total:.1%}",
            f"{result.perplexity:.3f}",
            f"{result.perplexity / reference.perplexity - 1:+.2%}",
            f"{result.tokens_per_second:.1f}",
        )
    console.print()
    console.print(table)


def print_texts(console: Console, results: list[Result]) -> None:
    """What each format answered."""
    from qbits.cli.language_model import PROMPT

    width = max(len(result.format) for result in results) + 2
    console.print(f'\nGreedy answers to "{PROMPT}":')
    for result in results:
        answer = textwrap.fill(result.text, WIDTH - width)
        lines = textwrap.indent(answer, " " * width).removeprefix(" " * width)
        console.print(f"{result.format:<{width}}{lines}", markup=False, soft_wrap=True)


def print_caveat(console: Console, results: list[Result], default_model: bool) -> None:
    """How to read the table."""
    notes = [
        "MB: 10^6 bytes of parameters and buffers, scales included. The quantized rows hold the linear "
        "layers in 4 or 8 bits and the embeddings, norms and output layer in bf16.",
        "perplexity: of the stored weights, with activations in fp32. tokens/s: greedy decoding; activations "
        "in fp32 in the first row, in bf16 in the others. int8 is LLM.int8(), whose products round "
        "activations to 8 bits, too, but for columns with outliers, from 6 on; int8-t0 does so without.",
    ]
    if default_model:
        notes.append(
            "Caveat: these weights were published in 4 bits (Q4_1, 16 levels per 32 weights) and already sit "
            "on that grid, so the perplexities show that the formats work, not which one is best. And a "
            "model of 135 million parameters suffers more from 4 bits than one of billions."
        )
    console.print()
    for note in notes:
        console.print(textwrap.fill(note, WIDTH), markup=False, soft_wrap=True)
    _print_calls(console, [result.format for result in results])


def _print_calls(console: Console, rows: list[str]) -> None:
    for row in rows:
        if row in CALLS:
            console.print(f"{row}: qbits.{CALLS[row]}", markup=False, soft_wrap=True)


def print_reload(console: Console, size: int, tokens: int, equal: bool, output: Path | None) -> None:
    """Whether the saved model came back."""
    verdict = "bit-equal to" if equal else "[red]NOT EQUAL to[/]"
    where = f" in {output}" if output else ""
    console.print(
        f"\nSaved the nf4 model ({size / MB:.1f} MB of safetensors{where}) and loaded it in a new process:\n"
        f"its logits of {tokens} tokens are {verdict} those before.",
        soft_wrap=True,
    )


def print_footprints(console: Console, name: str, counted: dict[str, Footprint]) -> None:
    """Bytes in each format, with the scales beside."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("format")
    for column in ("MB without scales", "MB of scales", "MB", "of fp32"):
        table.add_column(column, justify="right")
    reference = next(iter(counted.values()))
    for format, size in counted.items():
        table.add_row(
            format,
            f"{size.weights / MB:,.0f}",
            f"{size.scales / MB:,.1f}",
            f"{size.total / MB:,.0f}",
            f"{size.total / reference.total:.1%}",
        )
    console.print(
        f"[bold]{name}[/] with random weights; in the quantized rows, what is not linear is bf16",
        soft_wrap=True,
    )
    _print_calls(console, list(counted))
    console.print(table)
