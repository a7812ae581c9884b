"""What the GPU bench measures and what it must reach: shapes, rows, peers and limits, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

Shape = tuple[int, int]  # N x K of a weight

SHAPES: tuple[Shape, ...] = ((28672, 8192), (8192, 8192), (4096, 14336), (14336, 4096), (4096, 4096))
ROWS = (1, 4, 16, 32, 64, 128, 256, 1024, 4096)  # of x
BLOCK = 64

PEERS = ("bitsandbytes", "humming", "gemlite")

# linear_4bit, nf4 with float32 scales, bfloat16 x: time as a fraction of bf16 cuBLAS, by ROWS.
_MIDDLE = (0.38, 0.38, 0.42, 0.50, 0.65, 0.85, 1.05, 1.05, 1.0)
OF_BF16: dict[Shape, tuple[float, ...]] = {
    (28672, 8192): (0.34, 0.34, 0.38, 0.42, 0.52, 0.72, 0.95, 1.0, 1.0),
    (8192, 8192): (0.38, 0.38, 0.42, 0.50, 0.60, 0.80, 1.0, 1.0, 1.0),
    (4096, 14336): _MIDDLE,
    (14336, 4096): _MIDDLE,
    (4096, 4096): (0.45, 0.45, 0.50, 0.60, 0.75, 1.0, 1.15, 1.1, 1.03),
}
OF_FASTEST_PEER = 1.02  # in every cell that has peers

FORMAT_ROWS = (1, 16, 64, 1024)
OF_NF4 = {"nf4 double": 1.05, "fp4": 1.0, "int4": 1.0}

GRAD_ROWS = (512, 2048, 8192)
GRAD_OF_BF16 = 1.1

EXPERTS = 8
EXPERT_SHAPE: Shape = (14336, 4096)
TOKENS = (2, 8, 32, 128, 512, 2048, 4096)  # spread evenly over as many experts as they can reach
GROUPED_OF_DENSE = 1.1

QUANTIZER_ELEMENTS = 1 << 28
OF_COPY = {
    "quantize_4bit": 0.60,
    "dequantize_4bit": 0.85,
    "quantize_affine": 0.60,
    "dequantize_affine": 0.85,
    "quantize_blockwise": 0.60,
    "dequantize_blockwise": 0.85,
    "estimate_quantiles": 0.25,
    "quantize_int8_rowwise": 0.80,
    "quantize_int8_rowwise threshold 6": 0.50,
    "dequantize_int8_rowwise": 0.85,
}

# linear_int8, float16 x, outliers in 0.5 % of the columns: time as a fraction of cuBLAS's, by INT8_ROWS.
INT8_ROWS = (1, 16, 64, 256, 1024, 4096)
INT8_THRESHOLDS = (6.0, 0.0)
OF_FP16: dict[Shape, tuple[float, ...]] = {
    (28672, 8192): (0.60, 0.62, 0.66, 0.70, 0.55, 0.50),
    (8192, 8192): (0.64, 0.68, 0.75, 0.85, 0.65, 0.55),
    (4096, 4096): (0.80, 0.80, 0.95, 1.1, 0.85, 0.65),
}
INT8_SHAPES = tuple(OF_FP16)


def int8_of_fp16(shape: Shape, m: int, threshold: float) -> float:
    """Without a threshold 0.95 of the time that is allowed with one."""
    limit = OF_FP16[shape][INT8_ROWS.index(m)]
    return limit if threshold > 0 else round(0.95 * limit, 2)


@dataclass(frozen=True)
class OptimizerCase:
    """Parameters to step, and the time each optimizer may take as a fraction of torch's fused AdamW."""

    name: str
    shapes: str
    dtype: torch.dtype
    of_torch: dict[str, float]
    share: dict[str, float] = field(default_factory=dict)  # of the byte limit
    wall: bool = False  # by the clock, not the GPU's time


_LAYER = (
    (2048,),
    (2048, 2048),
    (512, 2048),
    (512, 2048),
    (2048, 2048),
    (2048,),
    *[(8192, 2048)] * 2,
    (2048, 8192),
)
OPTIMIZER_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "one": ((1 << 30,),),
    "llama": ((128256, 2048), *_LAYER * 16, (2048,)),  # Llama 3.2 of 1.2 billion parameters
    "small": ((1 << 16,),) * 2000,
}
PAGED_SHARE = 0.85  # of what the host link moves in each direction while both are busy
RESIDENT_OF_UNPAGED = 1.02
OPTIMIZER_CASES = (
    OptimizerCase(
        "1 tensor of 1.07e9 float32",
        "one",
        torch.float32,
        {"AdamW8bit": 0.58, "Lion8bit": 0.52, "AdamW32bit": 1.0},
        {"AdamW8bit": 0.80},
    ),
    OptimizerCase(
        "llama 1B float32",
        "llama",
        torch.float32,
        {"AdamW8bit": 0.60, "Lion8bit": 0.55, "AdamW32bit": 1.0},
        {"AdamW8bit": 0.80},
    ),
    # torch keeps its state in 16 bits there.
    OptimizerCase(
        "llama 1B bfloat16", "llama", torch.bfloat16, {"AdamW8bit": 0.85, "Lion8bit": 0.70, "AdamW32bit": 1.7}
    ),
    OptimizerCase(
        "2000 x 64k float32, wall",
        "small",
        torch.float32,
        {"AdamW8bit": 0.50, "Lion8bit": 0.50, "AdamW32bit": 0.60},
        wall=True,
    ),
)

HOST_SHAPE: Shape = (256, 256)  # so small that a call costs its host time
HOST_US = {"no_grad": 8.0, "grad": 15.0}

CELLS_MET = 0.8  # the share of a table's cells that must be met
