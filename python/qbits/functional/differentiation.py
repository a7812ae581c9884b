"""What the autograd functions of products share: which form of one a call needs, and the part of the bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def apply_of(function: Any, with_jvp: Mapping[Any, Any]) -> Any:
    """The `apply` of an autograd function, or that of its subclass in `with_jvp` where a jvp may be wanted.

    torch.compile does not trace a function that has a jvp.
    """
    if torch.compiler.is_compiling():
        return function.apply
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return with_jvp[function].apply
    # torch's `apply` looks at the signature of `forward` in each call, which takes longer than the product of
    # a small layer; what it adds to this one matters only to torch.func and torch.compile.
    return super(torch.autograd.Function, function).apply


def refuse_compiled_transform(op: str) -> None:
    """Raises RuntimeError for a transform of torch.func that torch.compile traces.

    Dynamo hides from the product that anything is differentiated, and its derivatives would be zeros. Where
    graph breaks are allowed, the function then runs in eager mode.
    """
    if torch.compiler.is_dynamo_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(f"[{op}] torch.func inside torch.compile: got a transform, want eager mode")


def is_differentiated(x: Tensor, bias: Tensor | None) -> bool:
    """Whether a product takes part in autograd, or may do so for all that a transform of torch.func shows."""
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    return torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))


def grad_of_bias(grad: Tensor) -> Tensor:
    """The gradient of a bias that was added to each row."""
    return grad.sum_to_size(grad.shape[-1:])


def tangent_of_product(out: Tensor | None, bias: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The tangent of a product of this shape, from those of x W^T and the bias; one of them may be None."""
    if bias is None:
        assert out is not None
        return out
    return bias.expand(shape) if out is None else out + bias
