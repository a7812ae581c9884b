"""Weights of a mixture of experts, [E, N, K] in one QuantizedTensor: torch's grouped products read them.

Transformers multiplies by their transpose, `torch._grouped_mm(x, weight.transpose(1, 2), offs)`, or by each
expert's own matrix, `F.linear(x, weight[e])`. Both see the packed weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from qbits import dense_view, ops
from qbits.codec import FLOATS
from qbits.rows import slice_rows
from qbits.tensor import IMPLEMENTATIONS, QuantizedTensor, outside_inference_mode

aten = torch.ops.aten


class TransposedExperts(Tensor):
    """The transpose [E, K, N] of a QuantizedTensor [E, N, K], still packed.

    The right side of a grouped product and whatever else leaves it as it is use the packed weight. Anything
    else sees its values, as any other view of a QuantizedTensor, and writes through to it.
    """

    owner: QuantizedTensor

    @staticmethod
    def __new__(cls: type[TransposedExperts], owner: QuantizedTensor) -> TransposedExperts:
        experts, n, k = owner.shape
        shell = torch.Tensor._make_wrapper_subclass(
            cls,
            (experts, k, n),
            strides=(n * k, 1, k),
            dtype=owner.logical_dtype,
            device=owner.codes.device,
        )
        torch._C._set_throw_on_mutable_data_ptr(shell)
        return shell

    def __init__(self, owner: QuantizedTensor) -> None:
        self.owner = owner

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"TransposedExperts({self.owner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return memo.setdefault(id(self), self.dense().clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    def dense(self) -> Tensor:
        """Its values."""
        return self.owner.dequantize().transpose(1, 2)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["owner"], None

    @classmethod
    def __tensor_unflatten__(
        cls, tensors: dict[str, Any], meta: None, outer_size: Any, outer_stride: Any
    ) -> TransposedExperts:
        return cls(tensors["owner"])

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.data_ptr:
            return 0  # as for torch's own wrapper tensors
        return dense_view.call(func, types, args, dict(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten._grouped_mm.default:
            return _grouped_mm(func, args, kwargs)
        with outside_inference_mode(func, args):
            return cls._dispatch(func, args, kwargs)

    @staticmethod
    def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self = args[0] if args else None
        if isinstance(self, TransposedExperts):
            if func in (aten.detach.default, aten.alias.default):
                return TransposedExperts(self.owner.like())
            if func is aten.transpose.int and _swaps_matrices(args[1], args[2]):
                return self.owner.like()
        # What any view of the owner does: one of its values, that writes through.
        views = {id(v): v for v in tree_leaves((args, kwargs)) if isinstance(v, TransposedExperts)}
        dense = {key: dense_view.take(v.owner, lambda d: d.transpose(1, 2)) for key, v in views.items()}
        dense_args, dense_kwargs = tree_map(lambda v: dense.get(id(v), v), (args, kwargs))
        result = func(*dense_args, **dense_kwargs)
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for value in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name)):
                    if id(value) in views:
                        views[id(value)].owner.copy_(dense[id(value)].transpose(1, 2))
        of_dense = {id(dense[key]): view for key, view in views.items()}
        return tree_map(lambda value: of_dense.get(id(value), value), result)


def _swaps_matrices(first: int, second: int) -> bool:
    return {first, second} in ({1, 2}, {-2, -1}, {1, -1}, {-2, 2})


def _transpose(func: Any, args: Any, kwargs: Any) -> Any:
    self = args[0]
    if self.is_4bit_experts and _swaps_matrices(*args[1:]):
        return TransposedExperts(self)
    return NotImplemented


def _grouped_mm(func: Any, args: Any, kwargs: Any) -> Any:
    """x [T, K] by each expert's W^T, or x [T, N] by its W; what there is no kernel for on dense values."""
    x, weight = args[:2]
    named = {**dict(zip(("offs", "bias", "out_dtype"), args[2:], strict=False)), **kwargs}
    offs, bias, out_dtype = (named.get(name) for name in ("offs", "bias", "out_dtype"))
    owner: Any = weight.owner if isinstance(weight, TransposedExperts) else weight
    packed = (
        isinstance(owner, QuantizedTensor)
        and owner.is_4bit_experts
        and type(x) not in (QuantizedTensor, TransposedExperts)
        and x.dim() == 2
        and x.dtype in FLOATS
        and out_dtype in (None, x.dtype)
        and offs is not None
        and bias is None
    )
    if not packed:
        dense = [a.dense() if isinstance(a, TransposedExperts) else a for a in args]
        dense = [a.dequantize() if isinstance(a, QuantizedTensor) else a for a in dense]
        return func(*dense, **kwargs)
    _, n, k = owner.shape
    scales = owner.absmax if owner.zeros is None else owner.scales
    weight_tensors = (owner.codes, scales, owner.format, owner.block_size, n, k)
    rest = (owner.zeros, owner.nested_absmax, owner.nested_code, owner.offset)
    assert offs is not None
    offsets = F.pad(offs, (1, 0))
    with torch.no_grad():  # autograd has recorded the product already
        if isinstance(weight, TransposedExperts):
            return ops.grouped_linear_4bit(x, offsets, *weight_tensors, None, *rest)
        return ops.grouped_linear_4bit_grad_x(x, offsets, *weight_tensors, *rest)


def _select(func: Any, args: Any, kwargs: Any) -> Any:
    """One expert's weight, over the same memory."""
    self, dim, index = args
    if not self.is_4bit_experts or dim not in (0, -3) or not -self.shape[0] <= index < self.shape[0]:
        return NotImplemented
    index %= self.shape[0]
    one = slice_rows(self, index, index + 1)
    return NotImplemented if one is None else one.like(shape=one.shape[1:])


def _unbind(func: Any, args: Any, kwargs: Any) -> Any:
    self: Any = args[0]
    dim = args[1] if len(args) > 1 else 0
    if not self.is_4bit_experts or dim not in (0, -3):
        return NotImplemented
    parts = [_select(func, (self, 0, i), {}) for i in range(self.shape[0])]
    return NotImplemented if any(part is NotImplemented for part in parts) else parts


IMPLEMENTATIONS[aten.transpose.int] = _transpose
IMPLEMENTATIONS[aten._grouped_mm.default] = _grouped_mm
IMPLEMENTATIONS[aten.select.int] = _select
IMPLEMENTATIONS[aten.unbind.int] = _unbind
