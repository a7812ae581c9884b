"""The table of quantizers: bytes they must move over the time they take, as a share of copy bandwidth.

Not in graphs: bitsandbytes quantizes on the legacy default stream, which none can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench.gpu import targets, timing
from bench.gpu.cells import Bound, Cell
from bench.gpu.run import Run
from qbits import codec, ops
from qbits.formats import NESTED_BLOCK_SIZE

Call = Callable[[], object]
Maker = Callable[[Tensor], Call]

BLOCKWISE = 256
COLS = 4096  # of the matrix that affine formats quantize


def quantizers(run: Run) -> Iterator[Cell]:
    n = targets.QUANTIZER_ELEMENTS
    x = torch.randn(n // COLS, COLS, device="cuda", dtype=torch.bfloat16)
    for op, what, moved, makers in _rows(n):
        limit = targets.OF_COPY.get(f"{op} {what}", targets.OF_COPY[op])
        bounds = [Bound("of copy", "share", limit)]
        if "bitsandbytes" in makers:
            bounds += run.fastest_peer(("bitsandbytes",))
        cell = Cell("quantizers", f"{op} {what}", bounds, work={"bytes": moved}, limit_us=run.limit_us(moved))
        graphs = {}
        for name, maker in makers.items():
            if name == "qbits" or name in run.peers:
                graph = run.attempt(
                    cell, name, lambda maker=maker: timing.Stream([maker(x), maker(x.clone())])
                )
                if graph is not None:
                    graphs[name] = graph
        cell.measured(timing.interleaved_us(graphs))
        del graphs
        yield cell


def _rows(n: int) -> Iterator[tuple[str, str, int, dict[str, Maker]]]:
    """Op, what of, bytes it moves, and how each contender does it."""
    size = targets.BLOCK
    plain, nested = 4 * n // size, n // size + 4 * n // size // NESTED_BLOCK_SIZE
    for format in ("nf4", "fp4"):
        moved = 2 * n + n // 2 + plain
        yield (
            "quantize_4bit",
            format,
            moved,
            {
                "qbits": lambda x, f=format: lambda: ops.quantize_4bit(x, f, size),
                "bitsandbytes": lambda x, f=format: lambda: _bnb().quantize_4bit(x, size, f, torch.uint8),
            },
        )
        yield (
            "dequantize_4bit",
            format,
            moved,
            {
                "qbits": lambda x, f=format: _dequantize_4bit(x, f),
                "bitsandbytes": lambda x, f=format: _bnb_dequantize_4bit(x, f),
            },
        )
    moved = 2 * n + n // 2 + nested
    yield (
        "quantize_4bit",
        "nf4 double",
        moved,
        {"qbits": _quantize_double, "bitsandbytes": _bnb_quantize_double},
    )
    yield (
        "dequantize_4bit",
        "nf4 double",
        moved,
        {"qbits": _dequantize_double, "bitsandbytes": _bnb_dequantize_double},
    )
    for format, bits, group in [("int4", 4, size), ("int8_affine", 8, 128), ("int8_affine", 8, 0)]:
        what = f"{format} groups of {group}" if group else f"{format} whole rows"
        moved = 2 * n + n * bits // 8 + 8 * n // (group or COLS)
        makers = {"qbits": lambda x, f=format, g=group: lambda: ops.quantize_affine(x, f, g, torch.float32)}
        yield "quantize_affine", what, moved, makers
        makers = {"qbits": lambda x, f=format, g=group: _dequantize_affine(x, f, g)}
        yield "dequantize_affine", what, moved, makers
    moved = 3 * n + 4 * n // BLOCKWISE
    yield (
        "quantize_blockwise",
        "dynamic",
        moved,
        {"qbits": _quantize_blockwise, "bitsandbytes": _bnb_quantize_blockwise},
    )
    yield (
        "dequantize_blockwise",
        "dynamic",
        moved,
        {
            "qbits": _dequantize_blockwise,
            "bitsandbytes": _bnb_dequantize_blockwise,
        },
    )
    moved = 3 * n + 4 * n // COLS
    for threshold in targets.INT8_THRESHOLDS:
        yield (
            "quantize_int8_rowwise",
            f"threshold {threshold:g}",
            moved,
            {
                "qbits": lambda x, t=threshold: lambda: ops.quantize_int8_rowwise(x, t),
                "bitsandbytes": lambda x, t=threshold: _bnb_quantize_int8(x, t),
            },
        )
    yield (
        "dequantize_int8_rowwise",
        "",
        moved,
        {"qbits": _dequantize_int8},
    )
    yield (
        "estimate_quantiles",
        "256 quantiles",
        2 * n,
        {"qbits": lambda x: lambda: ops.estimate_quantiles(x, 256, 1 / 512)},
    )


def _bnb_quantize_int8(x: Tensor, threshold: float) -> Call:
    half = x.half()  # it takes no other dtype
    return lambda: _bnb().int8_vectorwise_quant(half, threshold)


def _dequantize_int8(x: Tensor) -> Call:
    codes, scales, *_ = ops.quantize_int8_rowwise(x)
    return lambda: ops.dequantize_int8_rowwise(codes, scales, x.dtype)


def _dequantize_4bit(x: Tensor, format: str) -> Call:
    codes, absmax = ops.quantize_4bit(x, format, targets.BLOCK)
    return lambda: ops.dequantize_4bit(codes, absmax, format, targets.BLOCK, x.shape, x.dtype)


def _quantize_double(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)

    def quantize() -> object:
        codes, absmax = ops.quantize_4bit(x, "nf4", targets.BLOCK)
        return codes, ops.quantize_absmax(absmax, code)

    return quantize


def _dequantize_double(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)
    codes, absmax = ops.quantize_4bit(x, "nf4", targets.BLOCK)
    values, nested, offset = ops.quantize_absmax(absmax, code)
    return lambda: ops.dequantize_4bit(
        codes, values, "nf4", targets.BLOCK, x.shape, x.dtype, nested, code, offset
    )


def _dequantize_affine(x: Tensor, format: str, group: int) -> Call:
    codes, scales, zeros = ops.quantize_affine(x, format, group, torch.float32)
    return lambda: ops.dequantize_affine(codes, scales, zeros, format, group, x.shape, x.dtype)


def _quantize_blockwise(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)
    return lambda: ops.quantize_blockwise(x, code, BLOCKWISE)


def _dequantize_blockwise(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)
    codes, absmax = ops.quantize_blockwise(x, code, BLOCKWISE)
    return lambda: ops.dequantize_blockwise(codes, absmax, code, BLOCKWISE, x.dtype)


# bitsandbytes by its operators: its functions make their code maps on the host in each call.


def _bnb():
    import bitsandbytes  # noqa: F401  registers the operators

    return torch.ops.bitsandbytes


def _bnb_dequantize_4bit(x: Tensor, format: str) -> Call:
    codes, absmax = _bnb().quantize_4bit(x, targets.BLOCK, format, torch.uint8)
    return lambda: _bnb().dequantize_4bit(codes, absmax, targets.BLOCK, format, x.shape, x.dtype)


def _bnb_nest(absmax: Tensor, code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    offset = absmax.mean()
    values, nested = _bnb().quantize_blockwise(absmax - offset, code, 256)
    return values, nested, offset


def _bnb_quantize_double(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)

    def quantize() -> object:
        codes, absmax = _bnb().quantize_4bit(x, targets.BLOCK, "nf4", torch.uint8)
        return codes, _bnb_nest(absmax, code)

    return quantize


def _bnb_dequantize_double(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)
    codes, absmax = _bnb().quantize_4bit(x, targets.BLOCK, "nf4", torch.uint8)
    values, nested, offset = _bnb_nest(absmax, code)

    def dequantize() -> object:
        scales = _bnb().dequantize_blockwise(values, nested, code, 256, torch.float32) + offset
        return _bnb().dequantize_4bit(codes, scales, targets.BLOCK, "nf4", x.shape, x.dtype)

    return dequantize


def _bnb_quantize_blockwise(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)
    return lambda: _bnb().quantize_blockwise(x, code, BLOCKWISE)


def _bnb_dequantize_blockwise(x: Tensor) -> Call:
    code = codec.dynamic_map(x.device)
    codes, absmax = _bnb().quantize_blockwise(x, code, BLOCKWISE)
    return lambda: _bnb().dequantize_blockwise(codes, absmax, code, BLOCKWISE, x.dtype)
