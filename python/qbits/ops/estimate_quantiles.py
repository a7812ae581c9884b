"""Values of evenly spaced rank of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import FLOATS, check, check_tensor, define, refuse_grad

OP = "estimate_quantiles"
MAX_QUANTILES = 65536


def _output(x: Tensor, num_quantiles: int, offset: float) -> Tensor:
    check_tensor(OP, "x", x, FLOATS)
    check(x.numel() > 0, OP, "x", "0 elements", "at least 1")
    check(1 <= num_quantiles <= MAX_QUANTILES, OP, "num_quantiles", num_quantiles, f"1 to {MAX_QUANTILES}")
    check(0 <= offset < 0.5, OP, "offset", offset, "0 <= offset < 0.5")
    refuse_grad(OP, "x.detach()", x)
    return x.new_empty(num_quantiles, dtype=torch.float32)


def _kernel(x: Tensor, num_quantiles: int, offset: float) -> Tensor:
    out = _output(x, num_quantiles, offset)
    x = x.contiguous()
    workspace = x.new_empty(_C.estimate_quantiles_workspace(x), dtype=torch.uint8)
    _C.estimate_quantiles(x, offset, out, workspace)
    return out


estimate_quantiles = define(
    "estimate_quantiles(Tensor x, int num_quantiles, float offset) -> Tensor", _kernel, _output
)
