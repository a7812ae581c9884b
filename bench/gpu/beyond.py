"""The tables beyond the plain product: its gradient for x, many experts at once, a call of a layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import qbits
from bench.gpu import targets, timing
from bench.gpu.cells import Bound, Cell, product_bytes
from bench.gpu.linear import random_weight
from bench.gpu.run import Run

Work = list[Callable[[], object]]


def grad_x(run: Run) -> Iterator[Cell]:
    """grad W from the packed weight, beside bf16 matrices, and bitsandbytes' dequantize and multiply."""
    bounds = [
        Bound("of bf16", "ratio", targets.GRAD_OF_BF16, ("bf16",)),
        *run.fastest_peer(("bitsandbytes",)),
    ]
    for n, k in run.shapes(targets.SHAPES):
        weight = random_weight(n, k)
        for m in run.rows(targets.GRAD_ROWS):
            makers: dict[str, Callable[[], Work]] = {
                "qbits": functools.partial(_qbits_grad, weight, m),
                "bf16": functools.partial(_bf16_grad, weight, m),
            }
            if "bitsandbytes" in run.peers:
                makers["bitsandbytes"] = functools.partial(_bitsandbytes_grad, weight, m)
            moved = product_bytes(n, k, m, n * k // 2 + n * k // targets.BLOCK * 4)
            yield _cell(run, "grad_x", f"{n}x{k} M={m}", bounds, makers, moved, 2.0 * n * k * m)


def _cell(
    run: Run,
    table: str,
    name: str,
    bounds: list[Bound],
    makers: dict[str, Callable[[], Work]],
    moved: int,
    flops: float = 0.0,
) -> Cell:
    """A cell of contenders that are made for it alone."""
    limit = run.limit_us(moved, flops)
    cell = Cell(table, name, bounds, work={"bytes": moved, "flops": flops}, limit_us=limit)
    graphs = {}
    for contender, maker in makers.items():
        graph = run.attempt(cell, contender, lambda maker=maker: timing.Graph(maker()))
        if graph is not None:
            graphs[contender] = graph
    cell.measured(timing.interleaved_us(graphs))
    return cell


def _grads(weight: Tensor, m: int, count: int) -> list[Tensor]:
    return [torch.randn(m, weight.shape[0], device="cuda", dtype=weight.dtype) for _ in range(count)]


def _qbits_grad(weight: Tensor, m: int) -> Work:
    first = qbits.quantize(weight, "nf4", block_size=targets.BLOCK)
    weights = [first.clone() for _ in range(timing.copies(first.nbytes))]
    return [
        functools.partial(
            qbits.ops.linear_4bit_grad_x, g, w.codes, w.absmax, "nf4", w.block_size, w.rows, w.cols
        )
        for g, w in zip(_grads(weight, m, len(weights)), weights, strict=True)
    ]


def _bf16_grad(weight: Tensor, m: int) -> Work:
    weights = [weight.clone() for _ in range(timing.copies(weight.nbytes))]
    return [
        functools.partial(torch.mm, g, w)
        for g, w in zip(_grads(weight, m, len(weights)), weights, strict=True)
    ]


def _bitsandbytes_grad(weight: Tensor, m: int) -> Work:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight, blocksize=targets.BLOCK, quant_type="nf4")
    packs = [packed.clone() for _ in range(timing.copies(packed.nbytes + state.absmax.nbytes))]

    def grad_x(grad: Tensor, codes: Tensor) -> Tensor:
        return torch.mm(grad, functional.dequantize_4bit(codes, state))

    return [
        functools.partial(grad_x, g, p) for g, p in zip(_grads(weight, m, len(packs)), packs, strict=True)
    ]


def grouped(run: Run) -> Iterator[Cell]:
    """Tokens sorted by expert, beside linear_4bit of a dense weight made of the active experts' rows.

    Both read the same bytes and do the same operations: x has as many rows as each active expert has tokens.
    """
    n, k = targets.EXPERT_SHAPE
    if not run.shapes([targets.EXPERT_SHAPE]):
        return
    weight = random_weight(targets.EXPERTS * n, k)
    bounds = [Bound("of dense", "ratio", targets.GROUPED_OF_DENSE, ("dense",))]
    for tokens in run.rows(targets.TOKENS):
        active = min(tokens, targets.EXPERTS)
        makers = {
            "qbits": functools.partial(_grouped, weight, tokens, active),
            "dense": functools.partial(_dense, weight[: active * n], tokens // active),
        }
        moved = active * (n * k // 2 + n * k // targets.BLOCK * 4) + 2 * tokens * (n + k)
        yield _cell(run, "grouped", f"{tokens} tokens", bounds, makers, moved, 2.0 * tokens * n * k)


def _grouped(weight: Tensor, tokens: int, active: int) -> Work:
    op = torch.ops.qbits.grouped_linear_4bit
    n, k = targets.EXPERT_SHAPE
    first = qbits.quantize(weight, "nf4", block_size=targets.BLOCK)
    read = first.nbytes * active // targets.EXPERTS
    counts = torch.zeros(targets.EXPERTS + 1, dtype=torch.int64)
    counts[1 : active + 1] = tokens // active
    offsets = counts.cumsum(0).to("cuda", torch.int32)
    weights = [first.clone() for _ in range(timing.copies(read))]
    return [
        functools.partial(
            op,
            x=torch.randn(tokens, k, device="cuda", dtype=weight.dtype),
            codes=w.codes,
            scales=w.absmax,
            offsets=offsets,
            format="nf4",
            block_size=targets.BLOCK,
            n=n,
            k=k,
        )
        for w in weights
    ]


def _dense(weight: Tensor, m: int) -> Work:
    first = qbits.quantize(weight, "nf4", block_size=targets.BLOCK)
    weights = [first.clone() for _ in range(timing.copies(first.nbytes))]
    return [
        functools.partial(
            qbits.functional.linear_4bit, torch.randn(m, w.cols, device="cuda", dtype=weight.dtype), w
        )
        for w in weights
    ]


def layer(run: Run) -> Iterator[Cell]:
    """Host time of a forward call of Linear4bit, bfloat16, one row: the GPU waits for the host."""
    n, k = targets.HOST_SHAPE
    dense = torch.nn.Linear(k, n, bias=False, device="cuda", dtype=torch.bfloat16)
    makers: dict[str, Callable[[], torch.nn.Module]] = {
        "qbits": lambda: qbits.nn.Linear4bit.from_float(dense, "nf4"),
        "bf16": lambda: dense,
    }
    if "bitsandbytes" in run.peers:
        makers["bitsandbytes"] = lambda: _bitsandbytes_layer(dense)
    for mode, limit in targets.HOST_US.items():
        bounds = [Bound("host us", "us", limit), *run.fastest_peer(("bitsandbytes",))]
        cell = Cell("layer", f"Linear4bit {n}x{k} {mode}", bounds, work={"n": n, "k": k, "m": 1})
        for contender, maker in makers.items():
            x = torch.randn(1, k, device="cuda", dtype=torch.bfloat16, requires_grad=mode == "grad")

            def time(maker: Callable[[], torch.nn.Module] = maker, x: Tensor = x) -> float:
                module = maker().requires_grad_(False)
                with torch.set_grad_enabled(x.requires_grad):
                    return timing.host_us([lambda: module(x)], wall=False)

            run.attempt(cell, contender, time)
        yield cell


def _bitsandbytes_layer(dense: torch.nn.Linear) -> torch.nn.Module:
    import bitsandbytes

    n, k = dense.weight.shape
    made = bitsandbytes.nn.Linear4bit(
        k, n, bias=False, quant_type="nf4", compress_statistics=False, compute_dtype=dense.weight.dtype
    )
    made.weight = bitsandbytes.nn.Params4bit(
        dense.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    return made.to("cuda")
