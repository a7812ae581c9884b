"""x W^T with a 4-bit W by each contender: qbits in each of its formats, bf16 cuBLAS, and the peers."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu import timing
from bench.gpu.targets import BLOCK


@dataclass
class Product:
    """A weight in a contender's form, in as many copies as the L2 cache asks for."""

    calls: list[Callable[[Tensor], Tensor]]  # x -> x W^T, one for each copy
    dense: Tensor  # float32 [N, K]: the values its codes stand for
    bytes: int  # of one copy


def inputs(m: int, k: int, count: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [torch.randn(m, k, device="cuda", dtype=dtype) for _ in range(count)]


def bf16(weight: Tensor) -> Product:
    weights = [weight.clone() for _ in range(timing.copies(weight.nbytes))]
    calls = [functools.partial(_linear, weight=w) for w in weights]
    return Product(calls, weight.float(), weight.nbytes)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def qbits(
    weight: Tensor, format: str = "nf4", double_quant: bool = False, scale_dtype: torch.dtype | None = None
) -> Product:
    import qbits
    from qbits.functional import linear_4bit

    first = qbits.quantize(
        weight, format, block_size=BLOCK, double_quant=double_quant, scale_dtype=scale_dtype
    )
    weights = [first.clone() for _ in range(timing.copies(first.nbytes))]
    calls = [lambda x, w=w: linear_4bit(x, w) for w in weights]
    return Product(calls, first.dequantize(torch.float32), first.nbytes)


def bitsandbytes(weight: Tensor) -> Product:
    """matmul_4bit, which chooses among its kernels by M."""
    import bitsandbytes
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    dense = torch.ops.bitsandbytes.dequantize_4bit(
        packed, state.absmax, BLOCK, "nf4", weight.shape, torch.float32
    )
    size = packed.nbytes + state.absmax.nbytes
    calls = []
    for _ in range(timing.copies(size)):
        own, codes = copy.copy(state), packed.clone()
        own.absmax = state.absmax.clone()
        calls.append(lambda x, w=codes, s=own: bitsandbytes.matmul_4bit(x, w, s))
    return Product(calls, dense, size)


def humming(weight: Tensor, zero_point: bool = False) -> Product:
    """Unsigned 4-bit codes around 8 with a bfloat16 scale per 64: fewer bytes than nf4 with float32 scales.

    A zero point per group makes it a tenth slower, so it has none.
    """
    return _humming(weight, {"dtype": "uint4", "group_size": BLOCK, "has_zero_point": zero_point})


def humming_int8(weight: Tensor) -> Product:
    """Rows of 8-bit codes with a scale each, times x that it quantizes row by row."""
    return _humming(weight, {"dtype": "int8", "group_size": 0}, {"dtype": "int8"})


def _humming(weight: Tensor, config: dict[str, object], inputs: dict[str, object] | None = None) -> Product:
    """The schedule is the one humming itself chooses for M; only that one is compiled, not those of all M."""
    from humming.layer import HummingLayer
    from humming.schema import HummingWeightSchema
    from humming.tune import get_heuristics_config

    n, k = weight.shape
    layer = HummingLayer(
        shape_n=n, shape_k=k, weight_config=config, input_config=inputs, torch_dtype=weight.dtype
    ).cuda()
    tensors = HummingWeightSchema.quant_tensor(weight, layer.weight_schema, weight.dtype)
    dense = layer.weight_schema.dequant_tensors(tensors).float()
    layer.load_from_tensors(tensors)
    layer.transform()

    @functools.cache
    def schedule(m: int) -> str:
        return json.dumps(get_heuristics_config(layer.humming_config, shape_m=m))

    size = sum(t.nbytes for name, t in layer.named_parameters())
    layers = [layer] + [copy.deepcopy(layer) for _ in range(timing.copies(size) - 1)]
    calls = [lambda x, own=own: own(x, tuning_config=schedule(x.shape[0])) for own in layers]
    return Product(calls, dense, size)


def gemlite(weight: Tensor) -> Product:
    """A16W4, bfloat16 scale and zero per 64, with the schedules gemlite ships for the H100.

    Its tuner, which runs for any other, takes minutes a shape. Hence the kernel it ships a schedule for at M.
    """
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")  # what another process has timed need not be again
    import gemlite
    from gemlite.helper import A16W4_HQQ_INT

    n, k = weight.shape
    _load_schedules(Path(gemlite.__file__).parent / "configs" / "h100.json", n, k)
    codes, scales, zeros = _affine(weight)
    dense = ((codes.view(-1, BLOCK) - zeros.float()) * scales.float()).view(n, k)
    layer = A16W4_HQQ_INT(device="cuda", dtype=weight.dtype).from_weights(codes, scales, zeros)
    size = sum(t.nbytes for t in layer.get_tensor_args())
    layers = [layer] + [copy.deepcopy(layer) for _ in range(timing.copies(size) - 1)]
    calls = [lambda x, own=own: own.forward_manual(x, _gemlite_kernel(x.shape[0])) for own in layers]
    return Product(calls, dense, size)


def _gemlite_kernel(m: int) -> str:
    return "GEMV_REVSPLITK" if m == 1 else "GEMM_SPLITK" if m <= 64 else "GEMM"


# Shapes without one of their own take that of the nearest.
_NEAREST = {(28672, 8192): (28672, 4096), (8192, 8192): (5120, 5120)}


def _load_schedules(path: Path, n: int, k: int) -> None:
    from gemlite import core

    core.GemLiteLinear.load_config(str(path))
    near = _NEAREST.get((n, k), (n, k))
    for schedules in core.GEMLITE_TRITON_CONFIG_CACHE.values():
        for key, schedule in list(schedules.items()):
            m, *shape, group, packed, kind = json.loads(key.replace("(", "[").replace(")", "]"))
            if tuple(shape) == near:
                schedules.setdefault(str((m, n, k, group, packed, kind)), schedule)


def _affine(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes [N, K], scales and zeros [N K / 64, 1] in the weight's dtype, from min and max."""
    groups = weight.view(-1, BLOCK).float()
    low, high = groups.aminmax(dim=1, keepdim=True)
    scales = ((high - low) / 15).to(weight.dtype)
    zeros = (-low / scales.float()).to(weight.dtype)
    codes = (groups / scales.float() + zeros.float()).round_().clamp_(0, 15).to(torch.uint8)
    return codes.view(weight.shape), scales, zeros


CONTENDERS: dict[str, Callable[[Tensor], Product]] = {
    "qbits": qbits,
    "bf16": bf16,
    "bitsandbytes": bitsandbytes,
    "humming": humming,
    "gemlite": gemlite,
}
# They compile for each shape and M on first use, and keep that on disk.
COMPILED: dict[str, Callable[[Tensor], Product]] = {
    "humming": humming,
    "gemlite": gemlite,
    "humming_int8": humming_int8,
}
