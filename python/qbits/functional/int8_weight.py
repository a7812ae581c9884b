"""Products with and lookups in a QuantizedTensor of the format int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from qbits import ops
from qbits.functional.differentiation import refuse_compiled_transform
from qbits.functional.linear_int8 import linear_int8
from qbits.ops._library import FLOATS, MAX_DIMS, check, check_dtype, check_is_tensor, check_tensor

if TYPE_CHECKING:
    from qbits.tensor import QuantizedTensor


def product_with_int8(
    x: Tensor,
    weight: QuantizedTensor,
    bias: Tensor | None = None,
    threshold: float = 0.0,
    activation_bits: int = 8,
) -> Tensor:
    """linear_int8 with `weight`, a 2-D QuantizedTensor of the format int8."""
    if torch.compiler.is_dynamo_compiling():
        refuse_compiled_transform("linear_int8")
        return product_in_graph(x, weight.detach(), bias, threshold, activation_bits)  # type: ignore[arg-type]
    return linear_int8(x, weight.codes, weight.scales, bias, threshold, activation_bits)  # type: ignore[arg-type]


def product_in_graph(
    x: Tensor, weight: QuantizedTensor, bias: Tensor | None, threshold: float, activation_bits: int
) -> Tensor:
    """One node of the graph Dynamo makes (integrations/dynamo.py says so), traced when the graph is lowered.

    Dynamo itself would read codes and scales as they were before the graph's own writes to the weight.
    """
    codes, scales = weight.codes, weight.scales
    return linear_int8(x, codes, scales, bias, float(threshold), int(activation_bits))  # type: ignore[arg-type]


def embedding_int8(indices: Tensor, weight: QuantizedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """The rows `indices` of `weight`, dequantized; no others are read.

    Args:
        indices: int64 or int32, any shape. In eager mode on the CPU an index outside [0, N) raises;
            elsewhere its row is NaN.
        weight: a QuantizedTensor [N, K] in the format int8.
        dtype: of the result: float32, bfloat16 or float16; by default the weight's own.

    Returns:
        [*indices.shape, K].

    Raises:
        IndexError: an index does not fit.
        ValueError: a device or the number of dimensions does not fit, or the weight is not a matrix of int8.
        TypeError: a dtype does not fit, or an argument is no tensor.
    """
    op = "embedding_int8"
    if not getattr(weight, "is_int8_matrix", False):
        want = "a 2-D QuantizedTensor in the format int8"
        if hasattr(weight, "is_int8_matrix"):
            raise ValueError(f"[{op}] weight: got {weight!r}, want {want}")
        raise TypeError(f"[{op}] weight: got {type(weight).__name__}, want {want}")
    check_is_tensor(op, "indices", indices)
    if torch.compiler.is_dynamo_compiling() and dtype in (None, weight.logical_dtype):
        return torch.nn.functional.embedding(indices, weight.detach())  # as in product_in_graph
    codes, scales, dtype = weight.codes, weight.scales, weight.logical_dtype if dtype is None else dtype
    check_dtype(op, "dtype", dtype, FLOATS)
    check_tensor(op, "indices", indices, (torch.int64, torch.int32), codes.device)
    check(indices.dim() < MAX_DIMS, op, "indices", f"{indices.dim()} dimensions", f"at most {MAX_DIMS - 1}")
    n = codes.shape[0]
    flat = indices.reshape(-1)
    known = (flat >= 0) & (flat < n)
    if _has_values(indices) and not bool(known.all()):
        at = int(known.logical_not().to(torch.uint8).argmax())
        raise IndexError(f"[{op}] index: got {int(flat[at])} at {at}, want 0 to {n - 1}")
    if n == 0 and flat.numel() > 0:  # no row to take in place of the missing one
        return codes.new_full((*indices.shape, codes.shape[1]), torch.nan, dtype=dtype)
    flat = flat.clamp(0, max(n - 1, 0))
    picked = scales.index_select(0, flat).masked_fill(~known, torch.nan)  # type: ignore[union-attr]
    rows = ops.dequantize_int8_rowwise(codes.index_select(0, flat), picked, dtype)
    return rows.reshape(*indices.shape, codes.shape[1])


def _has_values(indices: Tensor) -> bool:
    """Whether looking at `indices` costs nothing: not on a GPU, which it would wait for, nor in a trace."""
    traced = torch.compiler.is_compiling() or detect_fake_mode(indices) is not None
    return indices.device.type == "cpu" and not traced and not torch._C._are_functorch_transforms_active()
