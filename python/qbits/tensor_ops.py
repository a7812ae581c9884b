"""What aten ops do with a QuantizedTensor: a few keep it quantized, the rest see its dequantized values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

from qbits import dense_view
from qbits.codec import FLOATS, dynamic_map
from qbits.formats import FORMATS, NESTED_BLOCK_SIZE
from qbits.functional.int8_weight import embedding_int8, product_with_int8
from qbits.functional.linear import autocast_dtype, embedding_4bit, linear_4bit
from qbits.rows import slice_rows, store
from qbits.tensor import CALL, FALLBACK, FUNCTIONS, IMPLEMENTATIONS, QuantizedTensor

aten = torch.ops.aten


def _implements(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(implementation: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            IMPLEMENTATIONS[function] = implementation
        return implementation

    return register


@_implements(aten.detach.default, aten.alias.default, aten.lift_fresh.default)
def _alias(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0].like()


@_implements(aten.clone.default, aten._pin_memory.default)
def _each(func: Any, args: Any, kwargs: Any) -> Any:
    kwargs.pop("memory_format", None)  # each tensor keeps its own layout
    return args[0].map(lambda t: func(t, *args[1:], **kwargs))


@_implements(aten.empty_like.default)
def _empty_like(func: Any, args: Any, kwargs: Any) -> Any:
    """On another device one like this one, for Module.to_empty. Else dense."""
    self, device = args[0], kwargs.get("device")
    same = device is None or torch.device(device) == self.codes.device
    if same or kwargs.get("dtype") not in (None, self.logical_dtype):
        return NotImplemented
    return self.map(lambda t: torch.empty_like(t, device=device))


@_implements(aten.is_pinned.default)
def _is_pinned(func: Any, args: Any, kwargs: Any) -> bool:
    return all(func(t, *args[1:], **kwargs) for t in args[0].tensors().values())


@_implements(aten.record_stream.default)
def _record_stream(func: Any, args: Any, kwargs: Any) -> None:
    for tensor in args[0].tensors().values():
        func(tensor, *args[1:], **kwargs)


@_implements(aten._to_copy.default)
def _to_copy(func: Any, args: Any, kwargs: Any) -> Any:
    self = args[0]
    dtype = kwargs.get("dtype") or self.logical_dtype
    if dtype not in FLOATS:
        return NotImplemented
    moves = {
        key: kwargs[key] for key in ("device", "non_blocking", "pin_memory") if kwargs.get(key) is not None
    }
    # Only the logical dtype changes: codes and scales stay what they are, bit for bit.
    return self.map(lambda t: func(t, **moves)).like(dtype=dtype)


@_implements(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def _view(func: Any, args: Any, kwargs: Any) -> Any:
    self, size = args[0], list(args[1])
    numel = self.rows * self.cols
    known = math.prod(s for s in size if s != -1)
    if -1 in size and known > 0:
        size[size.index(-1)] = numel // known
    if math.prod(size) != numel or -1 in size:
        raise RuntimeError(f"shape '{list(args[1])}' is invalid for input of size {numel}")
    return self.like(shape=size)


@_implements(aten.as_strided.default)
def _as_strided(func: Any, args: Any, kwargs: Any) -> Any:
    self, size, stride = args[0], tuple(args[1]), tuple(args[2])
    same = size == tuple(self.shape) and stride == tuple(self.stride())
    return self.like() if same and not any(args[3:]) else NotImplemented


@_implements(aten.slice.Tensor)
def _slice(func: Any, args: Any, kwargs: Any) -> Any:
    self, dim, start, end, step = list(args) + [0, None, None, 1][len(args) - 1 :]
    if dim != 0 or step != 1:
        return NotImplemented
    start, end, _ = slice(start, end).indices(self.shape[0])
    rows = slice_rows(self, start, max(start, end))
    return NotImplemented if rows is None else rows


@_implements(aten.split.Tensor, aten.split_with_sizes.default)
def _split(func: Any, args: Any, kwargs: Any) -> Any:
    self, sizes = args[0], args[1]
    if (args[2] if len(args) > 2 else kwargs.get("dim", 0)) != 0 or self.shape[0] == 0:
        return NotImplemented
    if isinstance(sizes, int):
        if sizes <= 0:
            return NotImplemented
        sizes = [min(sizes, self.shape[0] - start) for start in range(0, self.shape[0], sizes)]
    elif sum(sizes) != self.shape[0] or min(sizes) < 0:
        return NotImplemented  # torch says what is wrong
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [slice_rows(self, start, start + size) for start, size in zip(starts, sizes, strict=True)]
    if any(part is None for part in parts):
        # A dense answer would let fully_shard and the like go on with unquantized weights unnoticed.
        want = "rows at which a block and a byte begin, or dequantize() first"
        raise ValueError(f"[QuantizedTensor.split] rows: got {starts} of {self!r}, want {want}")
    return parts


@_implements(aten.new_zeros.default)
def _new_zeros(func: Any, args: Any, kwargs: Any) -> Any:
    """Some of the rows of a matrix like this one: how FSDP2 makes the buffer of a shard. Else dense."""
    self, size = args[0], tuple(args[1])
    dtype = kwargs.get("dtype") or self.logical_dtype
    same = size[1:] == tuple(self.shape[1:]) and dtype == self.logical_dtype
    if not same or len(size) < 2 or self.rows % max(self.shape[0], 1) or self.codes.dim() != 2:
        return NotImplemented
    matrix = (size[0] * (self.rows // max(self.shape[0], 1)), self.cols)
    numel = matrix[0] * matrix[1]
    if self.scales is None and (numel % self.block_size or numel % 2):
        return NotImplemented
    device = kwargs.get("device") or self.codes.device
    whole = self.absmax if self.scales is None else self.scales
    assert whole is not None
    double_quant = self.double_quant and (
        size == tuple(self.shape) or numel // self.block_size % NESTED_BLOCK_SIZE == 0
    )
    tensors = zeros(self.format, self.block_size, matrix, double_quant, whole.dtype, device)
    return self.like(tensors, size, matrix=matrix)


def zeros(
    format: str,
    block_size: int,
    matrix: tuple[int, int],
    double_quant: bool,
    scale_dtype: torch.dtype,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """The tensors of a [rows, cols] matrix with every scale, and so every value, 0."""
    row, (rows, cols) = FORMATS[format], matrix
    codes = torch.zeros((rows, cols // 2 if row.bits == 4 else cols), dtype=row.codes_dtype, device=device)
    if row.coding == "symmetric":
        return {"codes": codes, "scales": torch.zeros(rows, dtype=scale_dtype, device=device)}
    if row.coding == "affine":
        groups = (rows, row.groups(cols, block_size))
        scales = torch.zeros(groups, dtype=scale_dtype, device=device)
        return {"codes": codes, "scales": scales, "zeros": torch.zeros_like(scales)}
    blocks = row.num_scales(rows, cols, block_size)
    if not double_quant:
        return {"codes": codes, "absmax": torch.zeros(blocks, dtype=torch.float32, device=device)}
    return {
        "codes": codes,
        "absmax": torch.zeros(blocks, dtype=torch.uint8, device=device),
        "nested_absmax": torch.zeros(-(-blocks // NESTED_BLOCK_SIZE), dtype=torch.float32, device=device),
        "nested_code": dynamic_map(torch.device(device)).clone(),
        "offset": torch.zeros((), dtype=torch.float32, device=device),
    }


@_implements(aten.copy_.default)
def _copy_(func: Any, args: Any, kwargs: Any) -> Any:
    self, source = args[0], args[1]
    if not isinstance(self, QuantizedTensor):
        return NotImplemented
    if source.shape != self.shape:
        source = source.expand(self.shape)
    store(self, source)
    return self


def _dense(value: Any) -> Any:
    return value.dequantize() if isinstance(value, QuantizedTensor) else value


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[QuantizedTensor]:
    """The QuantizedTensors `func` writes into, those in lists included."""
    targets: list[QuantizedTensor] = []
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            values = value if isinstance(value, (list, tuple)) else [value]
            targets += [v for v in values if isinstance(v, QuantizedTensor)]
    return targets


def _fallback(func: Any, args: Any, kwargs: Any) -> Any:
    if func.is_view and isinstance(args[0], QuantizedTensor):
        return dense_view.take(args[0], lambda dense: func(dense, *args[1:], **kwargs))
    if not func._schema.is_mutable:
        return func(*tree_map(_dense, args), **tree_map(_dense, kwargs))
    targets = _written(func, args, kwargs)
    dense = {id(t): t.dequantize() for t in targets}
    owner = {id(d): t for t, d in zip(targets, (dense[id(t)] for t in targets), strict=True)}

    def replace(value: Any) -> Any:
        return dense[id(value)] if id(value) in dense else _dense(value)

    result = func(*tree_map(replace, args), **tree_map(replace, kwargs))
    for target in targets:
        if dense[id(target)].shape != target.shape:
            want = f"{list(target.shape)}: an op in place that keeps the shape, or dequantize() first"
            raise ValueError(
                f"[QuantizedTensor] {func}: got shape {list(dense[id(target)].shape)}, want {want}"
            )
    for target in targets:
        store(target, dense[id(target)])
    return tree_map(lambda value: owner.get(id(value), value), result)


FALLBACK.append(_fallback)
CALL.append(dense_view.call)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    packed = (
        isinstance(weight, QuantizedTensor)
        and (weight.is_4bit_matrix or weight.is_int8_matrix)
        and not isinstance(input, QuantizedTensor)
        and not isinstance(bias, QuantizedTensor)
        and not (torch.is_grad_enabled() and weight.requires_grad)
    )
    if packed:
        if (dtype := autocast_dtype(input)) is not None:
            input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
        if input.dtype in FLOATS:
            product = linear_4bit if weight.is_4bit_matrix else product_with_int8  # type: ignore[attr-defined]
            return product(input, weight, bias)  # type: ignore[arg-type]
    with torch._C.DisableTorchFunctionSubclass():
        return F.linear(input, weight, bias)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    packed = (
        isinstance(weight, QuantizedTensor)
        and (weight.is_4bit_matrix or weight.is_int8_matrix)
        and max_norm is None
        and not (torch.is_grad_enabled() and weight.requires_grad)
    )
    if packed:
        lookup = embedding_4bit if weight.is_4bit_matrix else embedding_int8  # type: ignore[attr-defined]
        return lookup(input, weight)  # type: ignore[arg-type]
    with torch._C.DisableTorchFunctionSubclass():
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)


def _setitem(self: Tensor, index: Any, value: Any) -> None:
    # Most views of a QuantizedTensor are dense, so that writing to one would be lost.
    dense = _dense(self)
    dense[tree_map(_dense, index)] = _dense(value)
    if isinstance(self, QuantizedTensor):
        self.copy_(dense)


def _dlpack(self: QuantizedTensor, **kwargs: Any) -> Any:
    return self.dequantize().__dlpack__(**kwargs)  # its own memory is an empty shell


def _data_ptr(self: QuantizedTensor) -> int:
    return 0  # as for torch's own wrapper tensors


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function`, which writes to its first tensor through a pointer: an empty shell has none."""

    def on_values(self: Tensor, *args: Any) -> Tensor:
        dense = _dense(self)
        function(dense, *map(_dense, args))
        return self.copy_(dense) if isinstance(self, QuantizedTensor) else self

    return on_values


def _requires_grad_(stacklevel: int) -> Callable[..., Tensor]:
    def warn_and_set(self: Tensor, requires_grad: bool = True) -> Tensor:
        # Here, not in the layers' products, where asking a subclass for requires_grad takes a microsecond.
        if requires_grad and isinstance(self, torch.nn.Parameter):
            want = "False in the layers of qbits.nn: to them it is a constant, its grad stays None"
            warnings.warn(f"[QuantizedTensor] requires_grad: got True, want {want}", stacklevel=stacklevel)
        with torch._C.DisableTorchFunctionSubclass():
            return Tensor.requires_grad_(self, requires_grad)

    return warn_and_set


FUNCTIONS[Tensor.requires_grad_] = _requires_grad_(stacklevel=3)
FUNCTIONS[Tensor.requires_grad.__set__] = _requires_grad_(stacklevel=4)  # type: ignore[attr-defined]
FUNCTIONS[Tensor.apply_] = _elementwise(Tensor.apply_)
FUNCTIONS[Tensor.map_] = _elementwise(Tensor.map_)
FUNCTIONS[Tensor.map2_] = _elementwise(Tensor.map2_)
FUNCTIONS[Tensor.__setitem__] = _setitem
FUNCTIONS[Tensor.data_ptr] = _data_ptr
FUNCTIONS[Tensor.__dlpack__] = _dlpack
FUNCTIONS[F.linear] = _linear
FUNCTIONS[F.embedding] = _embedding
