"""The product with a 4-bit weight in bitsandbytes' form: codes and a QuantState."""

from __future__ import annotations

import math

from torch import Tensor

from qbits import ops
from qbits.functional.quant_state import QuantState
from qbits.functional.quantize_4bit import nested_tensors, packed_bytes, written
from qbits.ops._library import as_block_size, check_is_tensor


def gemv_4bit(
    A: Tensor,
    B: Tensor,
    out: Tensor | None = None,
    transposed_A: bool = False,
    transposed_B: bool = False,
    state: QuantState | None = None,
) -> Tensor:
    """A W^T, W [N, K] being the weight of which `B` are the codes; accumulated in float32.

    The name is bitsandbytes'; A may have any number of rows. No gradients: `linear_4bit` has them, of a
    QuantizedTensor.

    Args:
        A: float32, bfloat16 or float16 [..., K].
        B: what quantize_4bit returned, in any shape (`B.t()` too) and storage dtype.
        out: a tensor that receives the result, or None.
        transposed_A, transposed_B: False; bitsandbytes has these arguments and does not look at them.
        state: that of quantize_4bit for a matrix.

    Returns:
        [..., N] in A's dtype; or `out`.

    Raises:
        ValueError: no state, one of no matrix, or a shape, device or flag that does not fit.
        TypeError: a dtype does not fit, or an argument is no tensor.
        RuntimeError: an argument requires a gradient.
    """
    op = "gemv_4bit"
    for what, tensor in (("A", A), ("B", B)):
        check_is_tensor(op, what, tensor)
    for what, flag in (("transposed_A", transposed_A), ("transposed_B", transposed_B)):
        if flag is not False:
            raise ValueError(f"[{op}] {what}: got {flag!r}, want False")
    if state is None:
        raise ValueError(f"[{op}] state: got None, want that of quantize_4bit")
    if state.quant_type is None or state.blocksize is None or state.shape is None or len(state.shape) != 2:
        got = f"{state.quant_type} {None if state.shape is None else list(state.shape)}"
        raise ValueError(f"[{op}] state: got {got}, want that of a matrix in nf4 or fp4")
    product = ops.linear_4bit(
        A,
        packed_bytes(B, math.prod(state.shape), op),
        state.absmax.reshape(-1),
        None,
        state.quant_type,
        as_block_size(op, state.blocksize),
        *state.shape,
        None,
        *nested_tensors(state),
    )
    return product if out is None else written(op, "out", out, product)
