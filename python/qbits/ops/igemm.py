"""The product of two int8 matrices, or of a batch of them, in int32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import LIBRARY, check, check_int8_sizes, check_tensor, define, describe

OP = "igemm"


def _output(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    for what, tensor in (("a", a), ("b", b)):
        check_tensor(OP, what, tensor, (torch.int8,), a.device)
        check(tensor.dim() in (2, 3), OP, what, describe(tensor), "2 dimensions, or 3 with a batch")
    check(a.dim() == b.dim(), OP, "b", describe(b), f"{a.dim()} dimensions")
    k, m = a.shape[-2:] if transpose_a else reversed(a.shape[-2:])
    n, depth = b.shape[-2:] if transpose_b else reversed(b.shape[-2:])
    batch = a.shape[:-2]
    transposed = ", transposed" if transpose_b else ""
    check(depth == k, OP, "b", describe(b) + transposed, f"a depth of {k}")
    check(b.shape[:-2] == batch, OP, "b", describe(b), f"a batch of {list(batch)}")
    matrices = batch[0] if batch else 1
    for rows, cols in ((m, k), (n, k), (m, n), (k, m)):
        check_int8_sizes(OP, matrices * rows, cols)
    return a.new_empty((*batch, m, n), dtype=torch.int32)


def _in_place(operand: Tensor, transposed: bool) -> tuple[Tensor, bool]:
    """The operand as libqbits reads it: where it lies, if need be by the other flag, else in a copy."""
    if not operand.is_contiguous() and operand.mT.is_contiguous():
        return operand.mT, not transposed
    return operand.contiguous(), transposed


def _kernel(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    out = _output(a, b, transpose_a, transpose_b)
    _C.igemm(*_in_place(a, transpose_a), *_in_place(b, transpose_b), out)
    return out


igemm = define(
    "igemm(Tensor a, Tensor b, bool transpose_a=False, bool transpose_b=False) -> Tensor", _kernel, _output
)


def _vmap(
    info: Any,
    in_dims: Sequence[int | None],
    a: Tensor,
    b: Tensor,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> tuple[Tensor, int]:
    """One call: a larger batch, or more rows where b is one matrix."""
    if in_dims[0] is not None and in_dims[1] is None and b.dim() == 2 and not transpose_a:
        a = a.movedim(in_dims[0], 0)
        out = igemm(a.flatten(0, 1), b, False, transpose_b)
        return out.view(*a.shape[:2], out.shape[-1]), 0
    operands = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in ((a, in_dims[0]), (b, in_dims[1]))
    ]
    batch = operands[0].shape[:-2]
    out = igemm(*(t.flatten(0, 1) if len(batch) == 2 else t for t in operands), transpose_a, transpose_b)
    return out.view(*batch, *out.shape[-2:]), 0


torch.library.register_vmap(f"qbits::{OP}", _vmap, lib=LIBRARY)
