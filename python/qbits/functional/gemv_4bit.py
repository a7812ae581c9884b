"""The product with a 4-bit weight in bitsandbytes' form: codes and a QuantState."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qbits import ops
from qbits.functional.quant_state import QuantState
from qbits.functional.quantize_4bit import FORMATS_4BIT, nested_tensors, packed_bytes, written
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
        TypeError: a dtype does not fit, or an argument or what is in the state is of another type.
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
    n, k = _matrix(op, state)
    product = ops.linear_4bit(
        A,
        packed_bytes(B, n * k, op),
        state.absmax.reshape(-1),
        None,
        state.quant_type,
        as_block_size(op, state.blocksize),
        n,
        k,
        None,
        *nested_tensors(state),
    )
    return product if out is None else written(op, "out", out, product)


def _matrix(op: str, state: Any) -> tuple[int, int]:
    """[N, K] of a state, which may be bitsandbytes' own. Raises ValueError or TypeError if it has no such."""
    if not all(hasattr(state, name) for name in ("quant_type", "blocksize", "shape", "absmax", "state2")):
        raise TypeError(f"[{op}] state: got {type(state).__name__}, want a QuantState")
    kind, shape, formats = state.quant_type, state.shape, " or ".join(FORMATS_4BIT)
    if shape is not None and not isinstance(shape, (tuple, list)):
        raise TypeError(f"[{op}] state.shape: got {shape!r}, want two sizes")
    if kind is None or state.blocksize is None or shape is None or len(shape) != 2:
        got = f"{kind} {None if shape is None else list(shape)}"
        raise ValueError(f"[{op}] state: got {got}, want that of a matrix in {formats}")
    if not all(isinstance(size, (int, torch.SymInt)) for size in shape):
        raise TypeError(f"[{op}] state.shape: got {list(shape)}, want two ints")
    if kind not in FORMATS_4BIT:
        raise ValueError(f"[{op}] state.quant_type: got {kind!r}, want {formats}")
    check_is_tensor(op, "state.absmax", state.absmax)
    if state.state2 is not None:
        check_is_tensor(op, "state.offset", state.offset)
        check_is_tensor(op, "state.state2.absmax", getattr(state.state2, "absmax", state.state2))
        check_is_tensor(op, "state.state2.code", getattr(state.state2, "code", None))
    return shape[0], shape[1]
