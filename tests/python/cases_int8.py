"""The cases of LLM.int8() in the one list of cases."""

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


ARGUMENTS = {
    "quantize_int8_rowwise": _quantize_int8_rowwise,
    "dequantize_int8_rowwise": _dequantize_int8_rowwise,
    "linear_int8": _linear_int8,
}


def cases(Case):
    for shape in SHAPES:
        for layout in LAYOUTS if shape else ():
            for threshold in THRESHOLDS:
                yield Case("quantize_int8_rowwise", shape, layout=layout, threshold=threshold)
            if layout != "gaps":
                yield Case("dequantize_int8_rowwise", shape, layout=layout)
    for dtype in DTYPES:
        for threshold in THRESHOLDS:
            yield Case("quantize_int8_rowwise", (7, 333), dtype, threshold=threshold)
            for shape in (*WEIGHTS, (3, 5000)):
                for bias in (False, True):
                    yield Case("linear_int8", shape, dtype, lead=(2, 3), bias=bias, threshold=threshold)
        yield Case("dequantize_int8_rowwise", (7, 333), dtype)
    for threshold in THRESHOLDS:
        for lead in (*LEADS, (130,), (2, 1, 1, 1, 1, 1, 3)):
            for layout in LAYOUTS:
                yield Case("linear_int8", (33, 257), lead=lead, layout=layout, bias=True, threshold=threshold)
