"""The table of optimizers: a step of all parameters, beside torch's fused AdamW and bitsandbytes.

Not in graphs: bitsandbytes synchronises. Many small tensors are timed by the clock, launches included.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from bench.gpu import targets, timing
from bench.gpu.cells import Bound, Cell
from bench.gpu.run import Run

Step = Callable[[], object]
Parameters = list[nn.Parameter]

RATE = 1e-5  # so small that parameters hardly move
STATE_BYTES = {"AdamW8bit": 2 * (1 + 4 / 256), "Lion8bit": 1 + 4 / 256, "AdamW32bit": 8.0}  # of an element


def optimizers(run: Run) -> Iterator[Cell]:
    rate = timing.update_bytes_per_s()
    for case in targets.OPTIMIZER_CASES:
        params = parameters(targets.OPTIMIZER_SHAPES[case.shapes], case.dtype)
        for name, limit in case.of_torch.items():
            yield _cell(run, case, name, limit, params, rate)


def parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> Parameters:
    params = [nn.Parameter(torch.randn(shape, device="cuda", dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def _cell(
    run: Run, case: targets.OptimizerCase, name: str, limit: float, params: Parameters, rate: float
) -> Cell:
    elements = sum(param.numel() for param in params)
    width = params[0].element_size()
    moved = elements * (
        3 * width + 2 * STATE_BYTES[name]
    )  # the parameter and its state both ways, the gradient
    bounds = [Bound("of torch", "ratio", limit, ("torch",)), *run.fastest_peer(("bitsandbytes",))]
    if case.share and name in case.share:
        bounds.append(Bound("of bytes", "share", case.share[name]))
    cell = Cell("optimizers", f"{name} {case.name}", bounds, work={"elements": elements, "bytes": moved})
    cell.limit_us = moved / rate * 1e6
    makers = {"qbits": _qbits, "torch": _torch}
    if "bitsandbytes" in run.peers:
        makers["bitsandbytes"] = _bitsandbytes
    timed = {}
    for contender, make in makers.items():
        if case.wall:
            run.attempt(cell, contender, functools.partial(_wall_us, make, name, params))
            continue
        work = run.attempt(cell, contender, lambda make=make: timing.Stream([make(name, params)]))
        if work is not None:
            timed[contender] = work
    cell.measured(timing.interleaved_us(timed))
    return cell


def _wall_us(make: Callable[[str, Parameters], Step], name: str, params: Parameters) -> float:
    return timing.host_us([make(name, params)], wall=True, count=5, repeats=7)


def _qbits(name: str, params: Parameters) -> Step:
    from qbits import optim

    return getattr(optim, name)(params, lr=RATE).step


def _bitsandbytes(name: str, params: Parameters) -> Step:
    import bitsandbytes

    return getattr(bitsandbytes.optim, name)(params, lr=RATE).step


def _torch(name: str, params: Parameters) -> Step:
    return torch.optim.AdamW(params, lr=RATE, fused=True).step
