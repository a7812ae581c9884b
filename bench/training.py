"""Training a language model from scratch with optimizer state in 8 and in 32 bits: the same loss.

A small transformer predicts the next character of the text of Python's pydoc_data.topics. For each seed both
runs start from the same weights and see the same batches; only the width of AdamW's state differs.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qbits

LIMIT = 0.01  # by which the mean losses of all seeds may differ, nats a character
STYLES = {32: ("lightgray", "-", 4.0), 8: ("tab:blue", "--", 1.0)}  # one lies on the other


@dataclass(frozen=True)
class Size:
    """Of the model and of the run."""

    width: int = 128
    layers: int = 2
    heads: int = 4
    context: int = 64
    batch: int = 12
    steps: int = 600
    rate: float = 2e-3
    points: int = 10  # of the curve


@dataclass(frozen=True)
class Run:
    """One training: the validation loss, nats a character, after some numbers of steps."""

    bits: int
    seed: int
    steps: list[int]
    losses: list[float]
    state_bytes: int
    seconds: float


def text() -> Tensor:
    """All topics in the order of their names, int64 [characters], an index for each."""
    topics = pydoc_data.topics.topics
    whole = "\n".join(topics[name] for name in sorted(topics))
    index = {character: i for i, character in enumerate(sorted(set(whole)))}
    return torch.tensor([index[character] for character in whole])


class Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1, self.norm2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    """Logits [batch, context, characters] of the characters that follow int64 [batch, context]."""

    def __init__(self, size: Size, characters: int) -> None:
        super().__init__()
        self.embedding = qbits.nn.StableEmbedding(characters, size.width)
        self.position = nn.Parameter(torch.randn(size.context, size.width) / math.sqrt(size.width))
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(tokens) + self.position)))


def loss_of(model: Model, windows: Tensor) -> Tensor:
    """Of windows [batch, context + 1]."""
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validate(model: Model, data: Tensor, size: Size) -> float:
    """Over all of `data`, in windows one after the other."""
    count = (len(data) - 1) // size.context
    windows = data[: count * size.context + 1].unfold(0, size.context + 1, size.context)
    parts = [loss_of(model, part).item() * len(part) for part in windows.split(256)]
    return sum(parts) / count


def train(bits: int, seed: int, size: Size) -> Run:
    data = text()
    held_out = data[-len(data) // 20 :]
    data = data[: -len(data) // 20]
    torch.manual_seed(seed)
    model = Model(size, int(data.max()) + 1)
    optimizer = qbits.optim.AdamW(model.parameters(), lr=size.rate, betas=(0.9, 0.95), optim_bits=bits)
    generator = torch.Generator().manual_seed(seed)
    windows = data.unfold(0, size.context + 1, 1)
    shown = {round(size.steps * (i + 1) / size.points) for i in range(size.points)}
    steps, losses = [], []
    start = time.perf_counter()
    for step in range(size.steps):
        warm, done = min(1.0, (step + 1) / 50), step / size.steps
        for group in optimizer.param_groups:
            group["lr"] = size.rate * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        batch = torch.randint(len(windows), (size.batch,), generator=generator)
        loss_of(model, windows[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in shown:
            steps.append(step + 1)
            losses.append(validate(model, held_out, size))
    states = [t for state in optimizer.state.values() for t in state.values()]
    state_bytes = sum(t.nbytes for t in states)
    return Run(bits, seed, steps, losses, state_bytes, time.perf_counter() - start)


def compare(size: Size, seeds: Sequence[int]) -> list[Run]:
    return [train(bits, seed, size) for seed in seeds for bits in (32, 8)]


def difference(runs: Sequence[Run]) -> float:
    """Of the last losses, their mean in 8 bits minus that in 32."""
    means = {bits: [run.losses[-1] for run in runs if run.bits == bits] for bits in (8, 32)}
    return sum(means[8]) / len(means[8]) - sum(means[32]) / len(means[32])


def table(runs: Sequence[Run]) -> str:
    lines = [f"{'seed':<6}{'32 bits':>10}{'8 bits':>10}{'difference':>12}"]
    for seed in sorted({run.seed for run in runs}):
        last = {run.bits: run.losses[-1] for run in runs if run.seed == seed}
        lines.append(f"{seed:<6}{last[32]:>10.4f}{last[8]:>10.4f}{last[8] - last[32]:>+12.4f}")
    sizes = {run.bits: run.state_bytes for run in runs}
    lines.append(f"mean difference {difference(runs):+.4f} nats a character, limit {LIMIT}")
    lines.append(f"state: {sizes[32]:,} bytes in 32 bits, {sizes[8]:,} in 8")
    return "\n".join(lines)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Losses over steps, and their differences between the runs of a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), dpi=100, layout="constrained")
    curves, differences = figure.subplots(1, 2)
    for run in runs:
        label = f"AdamW, {run.bits}-bit state" if run.seed == runs[0].seed else None
        colour, style, width = STYLES[run.bits]
        curves.plot(run.steps, run.losses, color=colour, linestyle=style, linewidth=width, label=label)
    curves.set_title("validation loss, three seeds" if len(runs) == 6 else "validation loss", fontsize=8)
    curves.set_ylabel("nats a character", fontsize=8)
    curves.legend(fontsize=8)
    for seed in sorted({run.seed for run in runs}):
        wide, narrow = (next(r for r in runs if (r.seed, r.bits) == (seed, bits)) for bits in (32, 8))
        gaps = [b - a for a, b in zip(wide.losses, narrow.losses, strict=True)]
        differences.plot(wide.steps, gaps, marker=".", linewidth=1, label=f"seed {seed}")
    for limit in (-LIMIT, LIMIT):
        differences.axhline(limit, color="black", linewidth=0.6, linestyle=":")
    differences.set_title("8 bits minus 32 bits", fontsize=8)
    differences.legend(fontsize=8)
    for axis in (curves, differences):
        axis.set_xlabel("steps", fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench training", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Size.steps)
    parser.add_argument("--json", type=Path, help="write the losses")
    parser.add_argument("--chart", type=Path, help="draw docs/training.png")
    args = parser.parse_args(argv)
    if args.chart and find_spec("matplotlib") is None:
        parser.error("--chart: needs matplotlib, as pip install matplotlib brings it")
    runs = compare(Size(steps=args.steps), range(args.seeds))
    print(table(runs))
    print(f"{sum(run.seconds for run in runs):.0f} s in all")
    if args.json:
        args.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    if args.chart:
        draw(runs, args.chart)
    return 0 if abs(difference(runs)) <= LIMIT else 1
