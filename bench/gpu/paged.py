"""The table of paged optimizers: nothing resident against the host link, everything against no paging."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.gpu import optimizers, targets, timing
from bench.gpu.cells import Bound, Cell
from bench.gpu.optimizers import Parameters, Step
from bench.gpu.run import Run

NAME = "AdamW8bit"
CASES = (("one", torch.float32), ("llama", torch.bfloat16), ("small", torch.float32))


def paged(run: Run) -> Iterator[Cell]:
    link = timing.link_bytes_per_s()
    for shapes, dtype in CASES:
        params = optimizers.parameters(targets.OPTIMIZER_SHAPES[shapes], dtype)
        name = f"{NAME} {shapes} {str(dtype).removeprefix('torch.')}"
        yield _nothing_resident(run, name, params, link)
        yield _all_resident(run, name, params)


def _nothing_resident(run: Run, name: str, params: Parameters, link: float) -> Cell:
    elements = sum(param.numel() for param in params)
    each_way = elements * optimizers.STATE_BYTES[NAME]
    bounds = [Bound("of link", "share", targets.PAGED_SHARE)]
    cell = Cell(
        "paged", f"{name}, no budget", bounds, work={"elements": elements, "bytes each way": each_way}
    )
    cell.limit_us = each_way / link * 1e6
    work = run.attempt(cell, "qbits", lambda: timing.Stream([_step(params, budget=0)]))
    cell.measured(timing.interleaved_us({"qbits": work} if work is not None else {}))
    return cell


def _all_resident(run: Run, name: str, params: Parameters) -> Cell:
    bounds = [Bound("of unpaged", "ratio", targets.RESIDENT_OF_UNPAGED, ("unpaged",))]
    elements = sum(param.numel() for param in params)
    cell = Cell("paged", f"{name}, all resident", bounds, work={"elements": elements})
    makers = {"qbits": lambda: _step(params, budget=1 << 40), "unpaged": lambda: _step(params, budget=None)}
    timed = {}
    for contender, make in makers.items():
        work = run.attempt(cell, contender, lambda make=make: timing.Stream([make()]))
        if work is not None:
            timed[contender] = work
    cell.measured(timing.interleaved_us(timed))
    return cell


def _step(params: Parameters, budget: int | None) -> Step:
    """Of an optimizer with that budget; None for one that does not page."""
    from qbits import optim

    is_paged = budget is not None
    return getattr(optim, NAME)(params, lr=optimizers.RATE, is_paged=is_paged, device_budget=budget).step
