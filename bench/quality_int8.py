"""`python -m bench quality`: what products in 8 bits lose to outlier columns, LLM.int8() beside simpler ways.

A synthetic counterpart of Table 1 of Dettmers et al., arXiv 2208.07339: not the perplexity of language
models, but the error of a stack of linear layers whose inputs have the outliers that paper describes.

x is [tokens, columns]. Its ordinary columns are normal, the root mean square of each row of them 1. A share
of the columns holds outliers, the same columns in all layers, in three of four elements: of one sign in each
column, of a magnitude drawn evenly from half of the setting's to the whole. A layer adds x W^T to the
ordinary columns, scaled (as GPT-2 scales it) so that its energy is 1 / layers of theirs, and normalizes them
again; the outlier columns pass unchanged. W is what nn.Linear begins with, in outlier columns as in others.

Errors are relative to the same stack in float32, in the Frobenius norm: that of the first product, all
methods being given the same x, and that of the ordinary columns after each layer, each method going on from
its own.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import qbits.functional as F

THRESHOLD = 6.0
SHOWN = (0, 1, 4, 16)  # of the errors: the product's, then those after so many layers
LIMIT, FACTOR = 0.01, 10.0
STYLES = {  # of the chart: colour, dashes, width; those that coincide differ in dashes
    "absmax": ("#636363", "-", 1.2),
    "zero point": ("#bdbdbd", "--", 1.2),
    "row-wise": ("#2c7fb8", "-", 1.2),
    "vector-wise": ("#a6bddb", "--", 1.2),
    "zp vector-wise": ("#7fbf7b", "-", 1.2),
    "LLM.int8()": ("#c0392b", "-", 2.4),
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5)


@dataclass(frozen=True)
class Setting:
    """How many of the columns hold outliers, and the largest magnitude of those."""

    share: float
    magnitude: float

    def __str__(self) -> str:
        return f"{self.share:.1%} up to {self.magnitude:g}" if self.share else "no outliers"


TENFOLD = (Setting(0.001, 60.0), Setting(0.003, 60.0))  # where absmax must err FACTOR times as much
SETTINGS = (Setting(0.0, 0.0), *(Setting(s, m) for s in (0.001, 0.003, 0.01) for m in (20.0, 40.0, 60.0)))


@dataclass(frozen=True)
class Size:
    tokens: int = 256
    columns: int = 2048
    layers: int = 16


def absmax(x: Tensor, rows: bool) -> Tensor:
    """x rounded to 255 levels around 0, with one scale for all or for each row."""
    step = (x.abs().amax(1, keepdim=True) if rows else x.abs().max()) / 127
    return (x / step).round() * step


def zero_point(x: Tensor, rows: bool) -> Tensor:
    """x rounded to multiples of 1/254 of its range: 8-bit codes around a zero point, itself a code."""
    low, high = (x.amin(1, keepdim=True), x.amax(1, keepdim=True)) if rows else (x.min(), x.max())
    step = (high - low) / 254
    return (x / step).round() * step


Product = Callable[[Tensor], Tensor]


def rounded(rounding: Callable[[Tensor, bool], Tensor], x_rows: bool, weight_rows: bool):
    """A method: the weight, then each x, rounded; multiplied in float32, whose error is 1e-4 of theirs."""

    def prepare(weight: Tensor) -> Product:
        transposed = rounding(weight, weight_rows).T
        return lambda x: rounding(x, x_rows) @ transposed

    return prepare


def llm_int8(weight: Tensor) -> Product:
    """What qbits computes: the weight in 8 bits in all columns, outlier columns of x as they are."""
    codes, scales, *_ = F.quantize_int8_rowwise(weight)
    return lambda x: F.linear_int8(x, codes, scales, None, THRESHOLD)


METHODS: dict[str, Callable[[Tensor], Product]] = {
    "absmax": rounded(absmax, False, False),
    "zero point": rounded(zero_point, False, False),
    "row-wise": rounded(absmax, True, False),
    "vector-wise": rounded(absmax, True, True),
    "zp vector-wise": rounded(zero_point, True, True),
    "LLM.int8()": llm_int8,
}


@dataclass
class Result:
    """By method, the error of the first product, then that after each layer."""

    setting: Setting
    errors: dict[str, list[float]]

    def gain(self, depth: int) -> float:
        """How many times the error of LLM.int8() that of plain absmax is."""
        return self.errors["absmax"][depth] / self.errors["LLM.int8()"][depth]


class Stack:
    """The activations of one setting, exact and by each method."""

    def __init__(self, setting: Setting, size: Size, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = round(setting.share * size.columns)
        self.columns = torch.randperm(size.columns, generator=generator)[:count]
        self.ordinary = torch.ones(size.columns).index_fill(0, self.columns, 0.0).bool()
        x = torch.randn(size.tokens, size.columns, generator=generator)
        signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
        magnitudes = setting.magnitude * (1 + torch.rand(size.tokens, count, generator=generator)) / 2
        held = torch.rand(size.tokens, count, generator=generator) < 0.75
        x[:, self.columns] = torch.where(held, signs * magnitudes, x[:, self.columns])
        self.exact = self._normalized(x)
        self.own = dict.fromkeys(METHODS, self.exact)
        self.layers = size.layers
        self.result = Result(setting, {name: [] for name in METHODS})

    def add(self, weight: Tensor, products: dict[str, Product]) -> None:
        product = self.exact @ weight.T
        scale = 1 / (product[:, self.ordinary].square().mean().sqrt() * math.sqrt(self.layers))
        self.exact = self._next(self.exact, product, scale)
        for name, multiply in products.items():
            errors, own = self.result.errors[name], multiply(self.own[name])
            if not errors:
                errors.append(_relative(own, product))
            self.own[name] = self._next(self.own[name], own, scale)
            errors.append(_relative(self.own[name][:, self.ordinary], self.exact[:, self.ordinary]))

    def _next(self, x: Tensor, product: Tensor, scale: Tensor) -> Tensor:
        return self._normalized(torch.where(self.ordinary, x + scale * product, x))

    def _normalized(self, x: Tensor) -> Tensor:
        root_mean_square = x[:, self.ordinary].square().mean(1, keepdim=True).sqrt()
        return torch.where(self.ordinary, x / root_mean_square, x)


def _relative(value: Tensor, exact: Tensor) -> float:
    return ((value - exact).norm() / exact.norm()).item()


def measure(settings: Sequence[Setting], size: Size, seed: int = 0) -> list[Result]:
    """All settings with the same weights."""
    stacks = [Stack(setting, size, seed) for setting in settings]
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(size.layers):
        weight = (2 * torch.rand(size.columns, size.columns, generator=generator) - 1) / size.columns**0.5
        products = {name: prepare(weight) for name, prepare in METHODS.items()}
        for stack in stacks:
            stack.add(weight, products)
    return [stack.result for stack in stacks]


def table(results: Sequence[Result]) -> str:
    """A block for each depth shown: a line for each setting, a column for each method."""
    lines = []
    layers = len(results[0].errors["absmax"]) - 1
    for depth in (depth for depth in SHOWN if depth <= layers):
        what = f"after {depth} of {layers} layers" if depth else "one product"
        lines.append(f"{what:<21}" + "".join(f"{name:>{len(name) + 3}}" for name in METHODS) + f"{'gain':>8}")
        for result in results:
            cells = "".join(f"{result.errors[name][depth]:>{len(name) + 3}.2%}" for name in METHODS)
            lines.append(f"{result.setting!s:<21}{cells}{result.gain(depth):>7.1f}x")
        lines.append("")
    return "\n".join(lines)


def verdict(results: Sequence[Result]) -> tuple[str, bool]:
    """What the table shows, and whether LLM.int8() stays within LIMIT and absmax fails in all of TENFOLD."""
    worst = max(max(result.errors["LLM.int8()"]) for result in results)
    depths = range(len(results[0].errors["absmax"]))
    tenfold = [result for result in results if all(result.gain(depth) >= FACTOR for depth in depths)]
    named = ", ".join(str(result.setting) for result in tenfold) or "nowhere"
    text = (
        f"LLM.int8() errs by at most {worst:.2%}, in every setting at every depth.\n"
        f"int8 with one scale per tensor (absmax) errs {FACTOR:g} times as much or more: {named}."
    )
    return text, worst <= LIMIT and {result.setting for result in tenfold} >= set(TENFOLD)


def draw(results: Sequence[Result], path: Path) -> None:
    """Error over magnitude after the last layer for each share, and over depth for the worst setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=100, layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    shares = sorted({result.setting.share for result in results} - {0.0})
    layers = len(results[0].errors["absmax"]) - 1
    for axis, share in zip(axes[:2], (shares[0], shares[-1]), strict=True):
        shown = [result for result in results if result.setting.share in (0.0, share)]
        for name in METHODS:
            points = [(r.setting.magnitude, 100 * r.errors[name][-1]) for r in shown]
            _line(axis, name, points)
        axis.set_title(f"after {layers} layers, outliers in {share:.1%} of columns", fontsize=8)
        axis.set_xlabel("largest magnitude of outliers", fontsize=8)
    worst = max(results, key=lambda r: r.gain(0))
    for name in METHODS:
        _line(axes[2], name, [(d, 100 * e) for d, e in enumerate(worst.errors[name]) if d])
    axes[2].set_title(f"outliers: {worst.setting}", fontsize=8)
    axes[2].set_xlabel("layers", fontsize=8)
    axes[0].set_ylabel("relative error, %", fontsize=8)
    axes[0].set_yscale("log")
    axes[0].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes[0].minorticks_off()
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path)


def _line(axis, name: str, points: list[tuple[float, float]]) -> None:
    colour, style, width = STYLES[name]
    axis.plot(
        *zip(*points, strict=True), color=colour, linestyle=style, linewidth=width, marker=".", label=name
    )
    axis.axhline(100 * LIMIT, color="black", linewidth=0.6, linestyle=":")
    axis.grid(alpha=0.3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench quality", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the errors after every layer")
    parser.add_argument("--chart", type=Path, help="draw docs/llm_int8.png")
    args = parser.parse_args(argv)
    results = measure(SETTINGS, Size(), args.seed)
    print(table(results))
    text, met = verdict(results)
    print(text)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    if args.chart:
        draw(results, args.chart)
    return 0 if met else 1
