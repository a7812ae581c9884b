"""The table of LLM.int8() products: whole layers, with outliers and without, beside float16 and the peers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bench.gpu import products, targets, timing
from bench.gpu.cells import Bound, Cell, product_bytes
from bench.gpu.run import Run, Unavailable

Call = Callable[[Tensor, float], Tensor]  # of x and a threshold

WRONG = 0.05  # a deviation that is more than rounding to 8 bits
CHECKED_ROWS = 16


def linear_int8(run: Run) -> Iterator[Cell]:
    """x W^T in float16, x rounded to 8 bits on the way. bitsandbytes synchronises: in a stream, no graph."""
    for n, k in run.shapes(targets.INT8_SHAPES):
        weight = torch.randn(n, k, device="cuda", dtype=torch.float16) * 0.02
        count = timing.copies(n * k)
        makers = {name: functools.partial(make, weight, count) for name, make in _makers(run).items()}
        made = run.make(makers)
        for m in run.rows(targets.INT8_ROWS):
            for threshold in targets.INT8_THRESHOLDS:
                yield _cell(run, weight, count, made, m, threshold)


def _makers(run: Run) -> dict[str, Callable[[Tensor, int], list[Call]]]:
    own = {"qbits": _qbits, "fp16": _fp16, "int_mm": _int_mm}
    peers = {"bitsandbytes": _bitsandbytes, "humming": _humming}
    return own | {name: make for name, make in peers.items() if name in run.peers}


def _takes_part(name: str, m: int, threshold: float) -> bool:
    if name == "humming":
        return threshold == 0  # it knows no outliers
    return name != "int_mm" or (m > 16 and threshold == 0)


def _cell(
    run: Run, weight: Tensor, count: int, made: dict[str, list[Call] | Unavailable], m: int, threshold: float
) -> Cell:
    n, k = weight.shape
    limit = targets.int8_of_fp16((n, k), m, threshold)
    contenders = {name: calls for name, calls in made.items() if _takes_part(name, m, threshold)}
    peers = tuple(name for name in contenders if name not in ("qbits", "fp16"))
    bounds = [Bound("of fp16", "ratio", limit, ("fp16",))]
    if peers:
        bounds.append(Bound("of best peer", "ratio", targets.OF_FASTEST_PEER, peers))
    # The matrix unit takes int8 at twice the rate of bfloat16.
    work = {"n": n, "k": k, "m": m, "bytes": product_bytes(n, k, m, n * k + 4 * n), "flops": 1.0 * n * k * m}
    cell = Cell(
        "linear_int8",
        f"{n}x{k} M={m} threshold {threshold:g}",
        bounds,
        work=work,
        limit_us=run.limit_us(work["bytes"], work["flops"]),
    )
    xs = [_input(m, k) for _ in range(count)]
    timed = {}
    for name, calls in contenders.items():
        if isinstance(calls, Unavailable):
            cell.errors[name] = calls.why
            continue
        start = functools.partial(_started, cell, name, calls, xs, weight, threshold)
        if (work_of := run.attempt(cell, name, start)) is not None:
            timed[name] = work_of
    cell.measured(timing.interleaved_us(timed))
    return cell


def _started(
    cell: Cell, name: str, calls: list[Call], xs: list[Tensor], weight: Tensor, threshold: float
) -> timing.Timed:
    """The calls, ready to be timed, once the first has given the right result."""
    work = [functools.partial(call, x, threshold) for call, x in zip(calls, xs, strict=True)]
    if name != "int_mm":  # whose result are integers
        got, want = work[0]()[:CHECKED_ROWS].float(), xs[0][:CHECKED_ROWS].float() @ weight.float().t()
        cell.deviations[name] = float((got - want).norm() / want.norm())
        if not cell.deviations[name] < WRONG:
            raise ValueError(f"a wrong result: relative error {cell.deviations[name]:.3g}")
    return timing.Stream(work) if name == "bitsandbytes" else timing.Graph(work)


def _input(m: int, k: int) -> Tensor:
    """Normal numbers, and large ones in 0.5 % of the columns."""
    x = torch.randn(m, k, device="cuda", dtype=torch.float16).clamp_(-5, 5)
    x[:, 7::200] = 20.0
    return x


def _qbits(weight: Tensor, count: int) -> list[Call]:
    from qbits import functional

    rows = functional.quantize_int8_rowwise(weight)
    copies = [(rows.codes.clone(), rows.scales.clone()) for _ in range(count)]
    return [lambda x, t, w=w, s=s: functional.linear_int8(x, w, s, threshold=t) for w, s in copies]


def _fp16(weight: Tensor, count: int) -> list[Call]:
    own = max(2, count // 2)  # twice as many bytes each
    copies = [weight.clone() for _ in range(own)]
    return [lambda x, t, w=copies[i % own]: torch.nn.functional.linear(x, w) for i in range(count)]


def _bitsandbytes(weight: Tensor, count: int) -> list[Call]:
    import bitsandbytes

    codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight)
    calls = []
    for _ in range(count):
        state = bitsandbytes.MatmulLtState()
        state.CB, state.SCB = codes.clone(), scales.clone()
        state.has_fp16_weights, state.is_training = False, False

        def call(x: Tensor, threshold: float, state: bitsandbytes.MatmulLtState = state) -> Tensor:
            state.threshold = threshold
            return bitsandbytes.matmul(x, state.CB, state=state)

        calls.append(call)
    return calls


def _humming(weight: Tensor, count: int) -> list[Call]:
    calls = itertools.cycle(products.humming_int8(weight).calls)
    return [lambda x, t, call=call: call(x) for call in itertools.islice(calls, count)]


def _int_mm(weight: Tensor, count: int) -> list[Call]:
    """The product of codes alone, which leaves the rest of the layer out."""
    from qbits import functional

    codes = functional.quantize_int8_rowwise(weight).codes
    copies = [codes.clone() for _ in range(count)]
    kept = WeakTensorKeyDictionary()  # the codes of x

    def call(x: Tensor, threshold: float, w: Tensor) -> Tensor:
        if x not in kept:
            kept[x] = functional.quantize_int8_rowwise(x).codes
        return torch._int_mm(kept[x], w.t())

    return [functools.partial(call, w=w) for w in copies]
