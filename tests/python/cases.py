"""The one list of cases: equality, opcheck, compilation, gradients and speed all iterate over it.

A case names an op and everything its arguments are made of; `arguments(device)` makes them, `call(device)`
runs the op. A new format or block size joins by itself, because the list is made from the format table.
"""

import math
from dataclasses import dataclass

import torch

import cases_int8
from case_parts import DTYPES, LAYOUTS, LEADS, SHAPES, WEIGHTS, move, random
from qbits import ops
from qbits.formats import FORMATS, Format

# Experts, [N, K] of one's weight, rows of x; with N * K odd, experts begin inside a byte.
MIXTURES = ((1, (33, 64), 5), (3, (7, 33), 20), (5, (33, 257), 9), (8, (64, 512), 4), (2, (96, 64), 0))
GROUPED = ("grouped_linear_4bit", "grouped_linear_4bit_grad_x")
PRODUCTS = ("linear_4bit", "linear_4bit_grad_x", "embedding_4bit", *GROUPED)


@dataclass(frozen=True)
class Case:
    """One call of `op`; `shape` is that of the tensor to quantize, or [N, K] of a weight."""

    op: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    format: str = "nf4"
    block_size: int = 64
    nested: bool = False
    scale_dtype: torch.dtype = torch.float32
    lead: tuple[int, ...] = ()
    bias: bool = False
    num_quantiles: int = 256
    experts: int = 1
    threshold: float = 0.0
    transposed: tuple[bool, bool] = (False, False)

    def __str__(self):
        shape = "x".join(map(str, self.shape)) or "scalar"
        format = () if self.op in cases_int8.ARGUMENTS else (self.format, self.block_size)
        parts = [self.op, *format, shape, str(self.dtype).removeprefix("torch.")]
        if self.op in (*PRODUCTS, *cases_int8.PRODUCTS):
            parts.append("lead" + "x".join(map(str, self.lead)))
        if self.op in GROUPED:
            parts.append(f"experts{self.experts}")
        if self.threshold:
            parts.append(f"threshold{self.threshold:g}")
        parts += [f"{name}^T" for name, flag in zip("ab", self.transposed, strict=True) if flag]
        if self.scale_dtype != torch.float32:
            parts.append("scales" + str(self.scale_dtype).removeprefix("torch."))
        parts += (
            [self.layout] * (self.layout != "contiguous") + ["nested"] * self.nested + ["bias"] * self.bias
        )
        return "-".join(map(str, parts))

    @property
    def row(self) -> Format:
        return FORMATS[self.format]

    def arguments(self, device):
        """The positional arguments of the op, the same on every device and at every call."""
        generator = torch.Generator().manual_seed(len(str(self)) + math.prod(self.shape))
        arguments = _ARGUMENTS[self.op](self, generator)
        return tuple(move(t, device) if isinstance(t, torch.Tensor) else t for t in arguments)

    def call(self, device):
        return getattr(ops, self.op)(*self.arguments(device))


def code_of(format):
    """The 256 values of an 8-bit codebook format, those of the data-driven one from normal quantiles."""
    values = FORMATS[format].codebook
    if values:
        return torch.tensor(values)
    return torch.special.ndtri(torch.linspace(0.005, 0.995, 256)) / 2.5758295


def _x(case, generator):
    return random(case.shape, case.dtype, generator, case.layout)


def _quantize_4bit(case, generator):
    return _x(case, generator), case.format, case.block_size


def _dequantize_4bit(case, generator):
    x = _x(case, generator)
    codes, absmax = ops.quantize_4bit(x.float(), case.format, case.block_size)
    absmax, *nested = _nest(absmax) if case.nested else (absmax, None, None, None)
    return codes, absmax, case.format, case.block_size, list(case.shape), case.dtype, *nested


def _nest(absmax):
    code = code_of("dynamic")
    values, nested_absmax, offset = ops.quantize_absmax(absmax, code)
    return values, nested_absmax, code, offset


def _quantize_absmax(case, generator):
    return _x(case, generator).abs(), code_of("dynamic")


def _dequantize_absmax(case, generator):
    return _nest(_x(case, generator).abs())


def _quantize_affine(case, generator):
    return _x(case, generator), case.format, case.block_size, case.scale_dtype


def _dequantize_affine(case, generator):
    quantized = ops.quantize_affine(_x(case, generator), case.format, case.block_size, case.scale_dtype)
    return *quantized, case.format, case.block_size, list(case.shape), case.dtype


def _quantize_blockwise(case, generator):
    return _x(case, generator), code_of(case.format), case.block_size


def _dequantize_blockwise(case, generator):
    code = code_of(case.format)
    codes, absmax = ops.quantize_blockwise(_x(case, generator), code, case.block_size)
    return codes, absmax, code, case.block_size, case.dtype


def _estimate_quantiles(case, generator):
    return _x(case, generator), case.num_quantiles, 0.5 / (case.num_quantiles + 1)


def _weight(case, generator):
    """Codes, scales and the keyword arguments of a quantized random [N, K] weight, of each expert."""
    n, k = case.shape
    dense = random((case.experts * n, k), torch.float32, generator)
    if case.row.coding == "affine":
        codes, scales, zeros = ops.quantize_affine(dense, case.format, case.block_size, case.scale_dtype)
        return codes, scales, (zeros, None, None, None)
    codes, absmax = ops.quantize_4bit(dense, case.format, case.block_size)
    absmax, *nested = _nest(absmax) if case.nested else (absmax, None, None, None)
    return codes, absmax, (None, *nested)


def _linear_4bit(case, generator):
    n, k = case.shape
    codes, scales, rest = _weight(case, generator)
    x = random((*case.lead, k), case.dtype, generator, case.layout)
    bias = random((n,), case.dtype, generator) if case.bias else None
    return x, codes, scales, bias, case.format, case.block_size, n, k, *rest


def _linear_4bit_grad_x(case, generator):
    n, k = case.shape
    codes, scales, rest = _weight(case, generator)
    grad = random((*case.lead, n), case.dtype, generator, case.layout)
    return grad, codes, scales, case.format, case.block_size, n, k, *rest


def _embedding_4bit(case, generator):
    n, k = case.shape
    codes, scales, rest = _weight(case, generator)
    lead = case.lead if n else (0, 3)
    indices = torch.randint(max(n, 1), lead, generator=generator)
    return indices, codes, scales, case.format, case.block_size, n, k, case.dtype, *rest


def _offsets(case, generator):
    """The rows spread at random, which leaves some experts without."""
    (rows,) = case.lead
    expert = torch.randint(case.experts, (rows,), generator=generator)
    ends = torch.bincount(expert, minlength=case.experts).cumsum(0)
    return torch.nn.functional.pad(ends, (1, 0)).to(torch.int32)


def _grouped_linear_4bit(case, generator):
    n, k = case.shape
    codes, scales, rest = _weight(case, generator)
    x = random((*case.lead, k), case.dtype, generator, case.layout)
    bias = random((case.experts, n), case.dtype, generator) if case.bias else None
    return x, _offsets(case, generator), codes, scales, case.format, case.block_size, n, k, bias, *rest


def _grouped_linear_4bit_grad_x(case, generator):
    n, k = case.shape
    codes, scales, rest = _weight(case, generator)
    grad = random((*case.lead, n), case.dtype, generator, case.layout)
    return grad, _offsets(case, generator), codes, scales, case.format, case.block_size, n, k, *rest


_ARGUMENTS = {
    "quantize_4bit": _quantize_4bit,
    "dequantize_4bit": _dequantize_4bit,
    "quantize_absmax": _quantize_absmax,
    "dequantize_absmax": _dequantize_absmax,
    "quantize_affine": _quantize_affine,
    "dequantize_affine": _dequantize_affine,
    "quantize_blockwise": _quantize_blockwise,
    "dequantize_blockwise": _dequantize_blockwise,
    "estimate_quantiles": _estimate_quantiles,
    "linear_4bit": _linear_4bit,
    "linear_4bit_grad_x": _linear_4bit_grad_x,
    "embedding_4bit": _embedding_4bit,
    "grouped_linear_4bit": _grouped_linear_4bit,
    "grouped_linear_4bit_grad_x": _grouped_linear_4bit_grad_x,
    **cases_int8.ARGUMENTS,
}
OPS = tuple(_ARGUMENTS)


def formats_of(op):
    """The rows of the format table that `op` works on."""
    rows = FORMATS.values()
    if op in ("quantize_4bit", "dequantize_4bit"):
        rows = [row for row in rows if row.coding == "codebook" and row.bits == 4]
    elif op in ("quantize_affine", "dequantize_affine"):
        rows = [row for row in rows if row.coding == "affine"]
    elif op in ("quantize_blockwise", "dequantize_blockwise"):
        rows = [row for row in rows if row.coding == "codebook" and row.bits == 8]
    elif op in PRODUCTS:
        rows = [row for row in rows if row.bits == 4]
    else:
        rows = []
    return tuple(rows)


def block_sizes_of(row):
    return (*row.block_sizes, 0) if row.whole_rows else row.block_sizes


def _of_format(op):
    """Every format with every block size and dtype, on a shape that straddles blocks and ends in a tail.

    The 8-bit codebooks differ only in their values: where sizes are concerned, the first stands for all.
    """
    for i, row in enumerate(formats_of(op)):
        alike = i > 0 and row.coding == "codebook" and row.bits == 8
        for block_size in (64,) if alike else block_sizes_of(row):
            shape = (3, max(block_size, 64) * 3 // 2 + 1)
            for dtype in DTYPES:
                yield Case(op, shape, dtype, format=row.name, block_size=block_size)


def _of_shape(op, shapes):
    """Every shape in every memory layout."""
    first = formats_of(op)[:2] or [FORMATS["nf4"]]
    for row in first:
        for shape in shapes:
            for layout in LAYOUTS:
                yield Case(op, shape, layout=layout, format=row.name)


def _of_weight(op):
    for row in formats_of(op):
        for nested in (False, True) if row.coding == "codebook" else (False,):
            for dtype in DTYPES:
                for shape in WEIGHTS:
                    yield Case(
                        op, shape, dtype, format=row.name, nested=nested, lead=(2, 3), bias=shape[0] > 32
                    )
        for block_size in block_sizes_of(row):
            yield Case(op, (64, 512), format=row.name, block_size=block_size, lead=(4,))
        for scale_dtype in row.scale_dtypes[1:]:
            yield Case(op, (64, 512), format=row.name, scale_dtype=scale_dtype, lead=(4,))
    for lead in LEADS:
        for layout in ("contiguous",) if op == "embedding_4bit" else LAYOUTS:
            yield Case(op, (33, 257), lead=lead, layout=layout, bias=True)


def _of_experts(op):
    for row in formats_of(op):
        for nested in (False, True) if row.coding == "codebook" else (False,):
            for dtype in DTYPES:
                for experts, shape, rows in MIXTURES:
                    bias = experts % 2 == 1 and op == "grouped_linear_4bit"
                    yield Case(
                        op,
                        shape,
                        dtype,
                        format=row.name,
                        nested=nested,
                        lead=(rows,),
                        bias=bias,
                        experts=experts,
                    )
        for block_size in block_sizes_of(row):
            yield Case(op, (64, 512), format=row.name, block_size=block_size, lead=(6,), experts=3)
    for layout in LAYOUTS:
        yield Case(op, (33, 257), lead=(11,), layout=layout, experts=4)


def _cases():
    at_least_1d = tuple(shape for shape in SHAPES if shape)
    for op in ("quantize_4bit", "dequantize_4bit"):
        yield from _of_format(op)
        yield from _of_shape(op, SHAPES)
    for shape in SHAPES:
        yield Case("dequantize_4bit", shape, nested=True)
    for op in ("quantize_absmax", "dequantize_absmax"):
        for blocks in (0, 1, 255, 256, 257, 4099):
            yield Case(op, (blocks,))
    for op in ("quantize_affine", "dequantize_affine"):
        yield from _of_format(op)
        yield from _of_shape(op, at_least_1d)
        for row in formats_of(op):
            for scale_dtype in row.scale_dtypes[1:]:
                yield Case(op, (5, 200), format=row.name, scale_dtype=scale_dtype)
    for op in ("quantize_blockwise", "dequantize_blockwise"):
        yield from _of_format(op)
        yield from _of_shape(op, SHAPES)
    for dtype in DTYPES:
        for shape in ((1,), (1000,), (37, 1001)):
            for num_quantiles in (1, 2, 16, 256):
                yield Case("estimate_quantiles", shape, dtype, num_quantiles=num_quantiles)
    yield Case("estimate_quantiles", (37, 1001), layout="transposed")
    for op in ("linear_4bit", "linear_4bit_grad_x", "embedding_4bit"):
        yield from _of_weight(op)
    for op in GROUPED:
        yield from _of_experts(op)
    yield from cases_int8.cases(Case)


CASES = tuple(dict.fromkeys(_cases()))


def cases(*names):
    """All cases of the named ops."""
    return [case for case in CASES if case.op in names]


def few(*names):
    """For slow checks: per op, one case of each format, nesting, threshold, layout and dimensions."""
    chosen = {}
    for case in cases(*names or OPS):
        lead = (len(case.lead), math.prod(case.lead) == 0)
        key = (
            case.op,
            case.format,
            case.nested,
            case.bias,
            case.layout,
            len(case.shape),
            lead,
            0 in case.shape,
            case.threshold,
            case.transposed,
        )
        chosen.setdefault(key, case)
    return list(chosen.values())
