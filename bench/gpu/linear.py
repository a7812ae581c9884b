"""The tables of products: linear_4bit beside its peers, its formats beside each other, calls from Python."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from bench.gpu import products, targets, timing
from bench.gpu.cells import Bound, Cell, product_bytes
from bench.gpu.products import Product
from bench.gpu.run import Run, Unavailable

CHECKED_ROWS = 16  # of a result that are compared with the product of the values the codes stand for
WRONG = 0.05  # a deviation that is no rounding any more; gemlite's sums in bfloat16 reach 0.027 at M = 1


def linear_4bit(run: Run) -> Iterator[Cell]:
    """Kernel times of nf4, block 64, float32 scales, bfloat16 x; and calls of M = 1 from Python."""
    for n, k in run.shapes(targets.SHAPES):
        weight = random_weight(n, k)
        made = run.make({name: functools.partial(make, weight) for name, make in run.contenders().items()})
        for m in run.rows(targets.ROWS):
            target = targets.OF_BF16[n, k][targets.ROWS.index(m)]
            bounds = [Bound("of bf16", "ratio", target, ("bf16",)), *run.fastest_peer()]
            cell = _cell(run, "linear_4bit", (n, k, m), bounds, made)
            yield cell
            if m == 1:
                yield from _calls(run, (n, k), made)


def _calls(run: Run, shape: targets.Shape, made: dict[str, Product | Unavailable]) -> Iterator[Cell]:
    """Wall and host time of the same calls without a graph."""
    n, k = shape
    for name, wall in [("wall", True), ("host", False)]:
        cell = Cell(
            "eager", f"{n}x{k} M=1 {name}", run.fastest_peer() if wall else [], work={"n": n, "k": k, "m": 1}
        )
        for contender, product in made.items():
            if isinstance(product, Unavailable):
                cell.errors[contender] = product.why
                continue
            work = _work(product, products.inputs(1, k, len(product.calls)))
            run.attempt(cell, contender, functools.partial(timing.host_us, work, wall))
        yield cell


def formats(run: Run) -> Iterator[Cell]:
    """A cell for each beside nf4: double-quantized, fp4, int4 (bfloat16 scale and zero: as many bytes)."""
    kinds: dict[str, Callable[[Tensor], Product]] = {
        "nf4": products.qbits,
        "nf4 double": functools.partial(products.qbits, double_quant=True),
        "fp4": functools.partial(products.qbits, format="fp4"),
        "int4": functools.partial(products.qbits, format="int4", scale_dtype=torch.bfloat16),
    }
    bounds = [Bound(f"{kind}/nf4", "ratio", limit, ("nf4",), kind) for kind, limit in targets.OF_NF4.items()]
    for n, k in run.shapes(targets.SHAPES):
        weight = random_weight(n, k)
        made = run.make({name: functools.partial(make, weight) for name, make in kinds.items()})
        for m in run.rows(targets.FORMAT_ROWS):
            measured = _cell(run, "formats", (n, k, m), bounds, made)
            yield from map(measured.for_bound, bounds)


def random_weight(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02


def _work(product: Product, xs: Sequence[Tensor]) -> list[Callable[[], object]]:
    return [functools.partial(call, x) for call, x in zip(product.calls, xs, strict=True)]


def _cell(
    run: Run,
    table: str,
    size: tuple[int, int, int],
    bounds: list[Bound],
    made: dict[str, Product | Unavailable],
) -> Cell:
    n, k, m = size
    first = next(iter(made.values()))
    weight_bytes = first.bytes if isinstance(first, Product) else 0
    work = {"n": n, "k": k, "m": m, "bytes": product_bytes(n, k, m, weight_bytes), "flops": 2.0 * n * k * m}
    cell = Cell(
        table, f"{n}x{k} M={m}", bounds, work=work, limit_us=run.limit_us(work["bytes"], work["flops"])
    )
    graphs = {}
    for name, product in made.items():
        if isinstance(product, Unavailable):
            cell.errors[name] = product.why
            continue
        xs = products.inputs(m, k, len(product.calls))
        graph = run.attempt(cell, name, functools.partial(_checked_graph, cell, name, product, xs))
        if graph is not None:
            graphs[name] = graph
    cell.measured(timing.interleaved_us(graphs))
    return cell


def _checked_graph(cell: Cell, name: str, product: Product, xs: list[Tensor]) -> timing.Graph:
    """The graph of a contender, once its replay has written the right result."""
    graph = timing.Graph(_work(product, xs))
    first: Tensor = graph.results[0]
    first.zero_()
    graph.replay()
    want = xs[0][:CHECKED_ROWS].float() @ product.dense.t()
    cell.deviations[name] = float((first[:CHECKED_ROWS].float() - want).norm() / want.norm())
    if not cell.deviations[name] < WRONG:
        raise ValueError(f"a wrong result: relative error {cell.deviations[name]:.3g}")
    return graph
