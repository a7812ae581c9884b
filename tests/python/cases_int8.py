"""The cases of LLM.int8() in the one list of cases."""

import itertools

import torch

from case_parts import DTYPES, LAYOUTS, LEADS, SHAPES, THRESHOLDS, WEIGHTS, random
from qbits import ops


def _with_outliers(shape, case, generator):
    """Values below the threshold but in a few columns, which hold some above it and some just at it."""
    x = random(shape, case.dtype, generator, case.layout)
    if case.threshold == 0:
        return x
    x = x.clamp_(-case.threshold * 0.75, case.threshold * 0.75)
    for column in range(3, shape[-1], 29):
        outliers = torch.rand(shape[:-1], generator=generator) < 0.4
        outliers.view(-1)[:1] = True
        x[..., column].masked_fill_(outliers, -case.threshold * (1 if column % 2 else 9.3))
    return x


def _quantize_int8_rowwise(case, generator):
    return _with_outliers(case.shape, case, generator), case.threshold


def _quantize_int8_colwise(case, generator):
    return _with_outliers(case.shape, case, generator), case.threshold


def _dequantize_int8_rowwise(case, generator):
    codes, scales, _, _ = ops.quantize_int8_rowwise(random(case.shape, torch.float32, generator))
    if case.layout == "transposed":
        codes = codes.mT.contiguous().mT if codes.dim() > 1 else codes
    return codes, scales, case.dtype


def _linear_int8(case, generator):
    n, k = case.shape
    codes, scales, _, _ = ops.quantize_int8_rowwise(random((n, k), torch.float32, generator))
    x = _with_outliers((*case.lead, k), case, generator)
    bias = random((n,), case.dtype, generator) if case.bias else None
    return x, codes, scales, bias, case.threshold


def _linear_int8_weight_only(case, generator):
    *operands, _ = _linear_int8(case, generator)
    return tuple(operands)


def _codes(shape, generator, layout="contiguous"):
    if layout == "transposed":
        return _codes((*shape[:-2], shape[-1], shape[-2]), generator).mT
    if layout == "gaps":
        return _codes((*shape, 2), generator)[..., 0]
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def _igemm(case, generator):
    *batch, m = case.lead
    n, k = case.shape
    sizes = ((k, m) if case.transposed[0] else (m, k)), ((n, k) if case.transposed[1] else (k, n))
    a, b = (_codes((*batch, *size), generator, case.layout) for size in sizes)
    return a, b, *case.transposed


def _dequantize_int8_product(case, generator):
    n = case.shape[-1]
    dots = torch.randint(-(2**31), 2**31, case.shape, generator=generator)
    dots = (dots >> torch.randint(0, 32, case.shape, generator=generator)).to(torch.int32)
    if case.layout == "transposed":
        dots = dots.mT.contiguous().mT if dots.dim() > 1 else dots
    scales = random(case.shape[:-1], torch.float32, generator).abs()
    bias = random((n,), case.dtype, generator) if case.bias else None
    return dots, scales, random((n,), torch.float32, generator).abs() * 1e-4, bias, case.dtype


ARGUMENTS = {
    "quantize_int8_rowwise": _quantize_int8_rowwise,
    "quantize_int8_colwise": _quantize_int8_colwise,
    "dequantize_int8_rowwise": _dequantize_int8_rowwise,
    "linear_int8": _linear_int8,
    "linear_int8_weight_only": _linear_int8_weight_only,
    "igemm": _igemm,
    "dequantize_int8_product": _dequantize_int8_product,
}
PRODUCTS = ("linear_int8", "linear_int8_weight_only", "igemm")


def cases(Case):
    for shape in SHAPES:
        for layout in LAYOUTS if shape else ():
            for threshold in THRESHOLDS:
                yield Case("quantize_int8_rowwise", shape, layout=layout, threshold=threshold)
                yield Case("quantize_int8_colwise", shape, layout=layout, threshold=threshold)
            if layout != "gaps":
                yield Case("dequantize_int8_rowwise", shape, layout=layout)
                yield Case("dequantize_int8_product", shape, layout=layout, bias=True)
    for dtype in DTYPES:
        for threshold in THRESHOLDS:
            yield Case("quantize_int8_rowwise", (7, 333), dtype, threshold=threshold)
            for shape in ((7, 333), (300, 264)):
                yield Case("quantize_int8_colwise", shape, dtype, threshold=threshold)
            for shape in (*WEIGHTS, (3, 5000)):
                for bias in (False, True):
                    yield Case("linear_int8", shape, dtype, lead=(2, 3), bias=bias, threshold=threshold)
        yield Case("dequantize_int8_rowwise", (7, 333), dtype)
        for shape in ((7, 333), (65, 1040)):
            for bias in (False, True):
                yield Case("dequantize_int8_product", shape, dtype, bias=bias)
    for dtype in DTYPES:
        for shape in (*WEIGHTS, (3, 5000), (130, 1040)):
            for bias in (False, True):
                yield Case("linear_int8_weight_only", shape, dtype, lead=(2, 3), bias=bias)
        for lead in ((1,), (9,), (17,), (33,), (130,)):
            yield Case("linear_int8_weight_only", (130, 528), dtype, lead=lead, bias=True)
    for lead in (*LEADS, (2, 1, 1, 1, 1, 1, 3)):
        for layout in LAYOUTS:
            yield Case("linear_int8_weight_only", (33, 257), lead=lead, layout=layout, bias=True)
    for transposed in itertools.product((False, True), repeat=2):
        for shape in (*WEIGHTS, (3, 0), (5, 5000)):
            for lead in ((1,), (7,), (0,), (3, 66), (0, 2), (2, 0)):
                yield Case("igemm", shape, lead=lead, transposed=transposed)
        for layout in LAYOUTS[1:]:
            yield Case("igemm", (33, 257), lead=(5,), layout=layout, transposed=transposed)
            yield Case("igemm", (33, 257), lead=(2, 5), layout=layout, transposed=transposed)
    for threshold in THRESHOLDS:
        for lead in (*LEADS, (130,), (2, 1, 1, 1, 1, 1, 3)):
            for layout in LAYOUTS:
                yield Case("linear_int8", (33, 257), lead=lead, layout=layout, bias=True, threshold=threshold)
