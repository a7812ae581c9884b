"""QuantizedTensor: a tensor with the shape and dtype of the dense one, stored in a format of the table."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qbits.codec import (
    FLOATS,
    TENSORS,
    check_format,
    check_options,
    decode,
    dtype_name,
    encode,
    first_bad_index,
)
from qbits.formats import FORMATS

IMPLEMENTATIONS: dict[Any, Callable[..., Any]] = {}
"""What an aten op does with a QuantizedTensor instead of dequantizing it; filled by tensor_ops.py."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""What a function of torch does instead of going down to aten ops; filled by tensor_ops.py."""

CALL: list[Callable[..., Any]] = []
"""How any other function of torch is called; one element, put there by tensor_ops.py."""

FALLBACK: list[Callable[..., Any]] = []
"""What any other op does; one element, put there by tensor_ops.py."""

_KINDS = ("is_4bit_matrix", "is_4bit_experts", "is_int8_matrix")
_ADOPTED = ("format", "block_size", "logical_dtype", "rows", "cols", *_KINDS, *TENSORS, "rows_of")
_ATTRIBUTES = {*_ADOPTED, "operands", "_is_param"}


class QuantizedTensor(Tensor):
    """A wrapper tensor with the logical shape and dtype of the dense tensor it stands for.

    `F.linear`, `F.embedding` and, for the experts of a 3-D one, `F.grouped_mm` read 4-bit weights in their
    packed form, the first two also those of int8 (products without outliers: these are for layers). Moving,
    copying, viewing and slicing along rows keep the tensor quantized; every other op works on its dequantized
    values. Ops that write into it, and assignment to `data`, quantize the result again in the same format.

    `qbits.quantize` makes one.

    Attributes:
        format: the name of its row in the format table.
        block_size: elements that share a scale; 0 means whole rows.
        rows, cols: the matrix that was quantized; `shape` is any view of it.
        codes: uint8, int8 for the format of that name, [rows, bytes of a row] where rows fall on bytes,
            else 1-D.
        absmax: codebook formats: float32 [blocks], or uint8 [blocks] if double-quantized.
        scales, zeros: affine formats: [rows, groups]. Format int8: scales float32 [rows], no zeros.
        nested_absmax, nested_code, offset: double quantization: absmax is
            nested_code[absmax] * nested_absmax[block // 256] + offset.
    """

    format: str
    block_size: int
    rows: int
    cols: int
    logical_dtype: torch.dtype
    is_4bit_matrix: bool
    is_4bit_experts: bool
    is_int8_matrix: bool
    codes: Tensor
    absmax: Tensor | None
    scales: Tensor | None
    zeros: Tensor | None
    nested_absmax: Tensor | None
    nested_code: Tensor | None
    offset: Tensor | None

    # Of some rows of a double-quantized matrix: the tensors of all its rows and which is the first of these;
    # no tensors once a graph has taken this one apart.
    rows_of: tuple[dict[str, Tensor], int] | None = None

    @staticmethod
    def __new__(
        cls: type[QuantizedTensor],
        tensors: Mapping[str, Tensor | None] | QuantizedTensor,
        format: str = "",
        block_size: int = 0,
        shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        matrix: tuple[int, int] | None = None,
        requires_grad: bool = False,
        **attributes: Any,
    ) -> QuantizedTensor:
        """Wraps the tensors of a format, or another QuantizedTensor, without copying.

        `matrix` is (rows, cols); by default the last size of `shape` is cols. `attributes` are those of the
        other one: accelerate makes a parameter anew as type(p)(p.to(device), **p.__dict__). Of them only
        what `p.to` has not kept counts, whether it is a parameter.
        """
        if attributes:
            known = _ATTRIBUTES if isinstance(tensors, QuantizedTensor) else ()
            if unknown := [name for name in attributes if name not in known]:
                raise TypeError(f"[QuantizedTensor] arguments: got {unknown}, want none but its attributes")
        if isinstance(tensors, QuantizedTensor):
            shape, dtype, device = tensors.shape, tensors.logical_dtype, tensors.codes.device
        elif isinstance(tensors, Mapping):
            device = tensors["codes"].device  # type: ignore[union-attr]
        else:
            want = "the tensors of a format or a QuantizedTensor, as qbits.quantize makes"
            raise TypeError(f"[QuantizedTensor] tensors: got {type(tensors).__name__}, want {want}")
        shell = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=device, requires_grad=requires_grad
        )
        # C++ that asks for the memory it does not have, torch.utils.dlpack.to_dlpack for one, gets an error
        # instead of a null pointer.
        torch._C._set_throw_on_mutable_data_ptr(shell)
        return shell

    def __init__(
        self,
        tensors: Mapping[str, Tensor | None] | QuantizedTensor,
        format: str = "",
        block_size: int = 0,
        shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        matrix: tuple[int, int] | None = None,
        requires_grad: bool = False,
        **attributes: Any,
    ) -> None:
        if isinstance(tensors, QuantizedTensor):
            self._adopt(tensors)
            if attributes.get("_is_param"):
                self._is_param = True
            return
        self.format, self.block_size, self.logical_dtype = format, block_size, dtype
        self.rows, self.cols = matrix_shape(shape) if matrix is None else matrix
        row, whole = FORMATS[format], len(shape) > 1 and shape[-1] == self.cols
        self.is_4bit_matrix = whole and row.bits == 4 and len(shape) == 2
        self.is_4bit_experts = whole and row.bits == 4 and len(shape) == 3
        self.is_int8_matrix = whole and row.coding == "symmetric" and len(shape) == 2
        for name in TENSORS:
            setattr(self, name, tensors.get(name))

    def _adopt(self, other: QuantizedTensor) -> None:
        for name in _ADOPTED:
            setattr(self, name, getattr(other, name))

    # An op is called once per layer and token: its arguments are gathered once.

    @functools.cached_property
    def operands(self) -> tuple[Any, ...] | None:
        """Of a 4-bit matrix, the above as the ops take them, in their order and up to the last there is."""
        if not self.is_4bit_matrix:
            return None
        scales = self.absmax if self.zeros is None else self.scales
        rest = [self.zeros, self.nested_absmax, self.nested_code, self.offset]
        while rest and rest[-1] is None:
            rest.pop()
        return (self.codes, scales, self.format, self.block_size, self.rows, self.cols, *rest)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop("operands", None)
        super().__setattr__(name, value)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors it consists of, by name; of rows that are a copy, taken anew."""
        if self.rows_of is not None:
            from qbits.rows import refresh

            refresh(self)
        return {name: t for name in TENSORS if (t := getattr(self, name)) is not None}

    @property
    def double_quant(self) -> bool:
        """Whether absmax itself is quantized."""
        return self.nested_absmax is not None

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes of codes and scales together."""
        return sum(t.nbytes for t in self.tensors().values())

    def like(
        self,
        tensors: Mapping[str, Tensor | None] | None = None,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        matrix: tuple[int, int] | None = None,
    ) -> QuantizedTensor:
        """A QuantizedTensor of the same format; what is not given is taken from this one."""
        result = QuantizedTensor(
            self.tensors() if tensors is None else tensors,
            self.format,
            self.block_size,
            self.shape if shape is None else shape,
            self.logical_dtype if dtype is None else dtype,
            (self.rows, self.cols) if matrix is None else matrix,
        )
        if tensors is None and self.rows_of is not None:
            result.rows_of = self.rows_of
        return result

    def map(self, function: Callable[[Tensor], Tensor]) -> QuantizedTensor:
        """A QuantizedTensor whose tensors are `function` of this one's."""
        return self.like({name: function(t) for name, t in self.tensors().items()})

    def encode(self, dense: Tensor) -> dict[str, Tensor]:
        """The tensors `dense`, of this one's shape, has in this one's format."""
        dense = dense.reshape(self.rows, self.cols)
        if dense.dtype not in FLOATS:
            dense = dense.to(torch.float32)
        scales = self.absmax if self.scales is None else self.scales
        assert scales is not None
        return encode(dense, self.format, self.block_size, self.double_quant, scales.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense tensor, in `dtype`: float32, bfloat16 or float16, by default the logical one.

        A constant to autograd; use the tensor itself in an expression to differentiate through it.
        """
        dtype = self.logical_dtype if dtype is None else dtype
        if dtype not in FLOATS:
            want = ", ".join(map(str, FLOATS))
            raise TypeError(f"[dequantize] dtype: got {dtype!r}, want {want}")
        dense = decode(self.tensors(), self.format, self.block_size, (self.rows, self.cols), dtype)
        return dense.reshape(self.shape)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        double = ", double_quant=True" if self.double_quant else ""
        return (
            f"QuantizedTensor({self.format}, {list(self.shape)}, {dtype_name(self.logical_dtype)}, "
            f"device={str(self.codes.device)!r}, block_size={self.block_size}{double})"
        )

    # What torch needs to trace through it.

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        facts = (self.format, self.block_size, self.logical_dtype, self.rows, self.cols)
        meta = (*facts, self.rows_of is not None)
        return [name for name in TENSORS if getattr(self, name) is not None], meta

    @classmethod
    def __tensor_unflatten__(
        cls, tensors: dict[str, Tensor], meta: tuple[Any, ...], outer_size: Any, outer_stride: Any
    ) -> QuantizedTensor:
        format, block_size, dtype, rows, cols, is_part = meta
        result = cls(tensors, format, block_size, outer_size, dtype, (rows, cols))
        if is_part:
            result.rows_of = ({}, 0)
        return result

    def _stable_hash_for_caching(self) -> str:
        return repr((self.__tensor_flatten__(), tuple(self.shape)))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in FUNCTIONS:
            return FUNCTIONS[func](*args, **kwargs)
        return CALL[0](func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        implementation = IMPLEMENTATIONS.get(func)
        if implementation is None and torch.is_inference_mode_enabled() and func._can_decompose():
            return func.decompose(*args, **kwargs)  # which torch then leaves to subclasses
        with outside_inference_mode(func, args):
            if implementation is not None:
                result = implementation(func, args, kwargs)
                if result is not NotImplemented:
                    return result
            return FALLBACK[0](func, args, kwargs)

    # Assignment. torch's own setter would swap the empty shell and leave codes and scales behind.

    @property
    def data(self) -> QuantizedTensor:
        """A detached QuantizedTensor that shares this one's tensors.

        Assigning a QuantizedTensor adopts its tensors, format and dtype; assigning a dense tensor
        quantizes it in this one's format.
        """
        return self.like()

    @data.setter
    def data(self, value: Tensor) -> None:
        if isinstance(value, QuantizedTensor):
            fresh = value.like()
        elif not isinstance(value, Tensor):
            raise TypeError(f"[QuantizedTensor.data] value: got {type(value).__name__}, want a tensor")
        else:
            dtype = value.dtype if value.dtype in FLOATS else self.logical_dtype
            shape = tuple(value.shape)
            target = self.like(shape=shape, matrix=matrix_shape(shape))
            fresh = target.like(target.encode(value), dtype=dtype)
        _set_shell(self, fresh)
        self._adopt(fresh)

    # Copies and serialization.

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedTensor:
        if id(self) in memo:
            return memo[id(self)]
        parts = self.like({name: copy.deepcopy(t, memo) for name, t in self.tensors().items()})
        result = _restore_parameter(parts, isinstance(self, torch.nn.Parameter), self.requires_grad)
        memo[id(self)] = result
        return result

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        meta = (self.format, self.block_size, tuple(self.shape), self.logical_dtype, (self.rows, self.cols))
        flags = (isinstance(self, torch.nn.Parameter), self.requires_grad)
        return rebuild_quantized_tensor, (self.tensors(), *meta, *flags)

    def share_memory_(self) -> QuantizedTensor:
        """Moves every tensor to shared memory, in place."""
        for tensor in self.tensors().values():
            tensor.share_memory_()
        return self

    def is_shared(self) -> bool:
        """Whether every tensor is in shared memory."""
        return all(t.is_shared() for t in self.tensors().values())

    # FSDP2: each rank holds the codes and scales of its rows; these two gather them.

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: torch.Size, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor, ...], Any]:
        """What this rank sends: contiguous tensors whose concatenation over ranks is the whole weight's."""
        from qbits.sharding import pre_all_gather

        return pre_all_gather(self, mesh, outer_size)

    def fsdp_post_all_gather(
        self,
        all_gather_outputs: tuple[Tensor, ...],
        metadata: Any,
        param_dtype: torch.dtype,
        *,
        out: Any = None,
    ) -> tuple[QuantizedTensor, tuple[Tensor, ...]] | None:
        """The whole weight, over the gathered memory itself."""
        from qbits.sharding import post_all_gather

        return post_all_gather(self, all_gather_outputs, metadata, param_dtype, out)


def quantize(
    tensor: Tensor,
    format: str = "nf4",
    *,
    block_size: int | None = None,
    double_quant: bool = False,
    scale_dtype: torch.dtype | None = None,
    name: str | None = None,
) -> QuantizedTensor:
    """Quantizes `tensor` to a format of the table.

    Args:
        tensor: float32, bfloat16 or float16, any shape. Affine groups and the rows of int8 run along its last
            dimension, codebook blocks over its elements in row-major order.
        format: "nf4", "fp4", "int4", "int8" (LLM.int8()), "int8_affine", or an 8-bit code map of the table.
        block_size: elements that share a scale: 16 to 4096, 64 by default; affine formats take 0 for
            whole rows, int8 has nothing else.
        double_quant: 4-bit codebook formats: quantize the scales too (arXiv 2305.14314, section 3).
        scale_dtype: affine formats: dtype of scales and zeros.
        name: if given, a NaN or infinity in `tensor` raises, with this name in the message. If not, its
            block dequantizes to NaN, and nothing synchronises.

    Raises:
        ValueError: an unknown format, a block size it does not have, or a NaN (see `name`).
        TypeError: a dtype that is not accepted.
    """
    row = check_format("quantize", format)
    block_size, scale_dtype = check_options("quantize", row, block_size, double_quant, scale_dtype)
    if isinstance(tensor, QuantizedTensor):
        tensor = tensor.dequantize()
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        got = tensor.layout if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"[quantize] tensor: got {got}, want a dense torch.Tensor")
    if tensor.dtype not in FLOATS:
        want = ", ".join(map(dtype_name, FLOATS))
        raise TypeError(f"[quantize] tensor: got {dtype_name(tensor.dtype)}, want {want}")
    matrix = tensor.detach().reshape(matrix_shape(tensor.shape))
    tensors = encode(matrix, format, block_size, double_quant, scale_dtype)
    if name is not None and (index := first_bad_index(tensor.detach(), tensors)) is not None:
        value = tensor.detach()[index].item()
        if math.isfinite(value):
            want = f"values whose range {dtype_name(scale_dtype)} scales can hold"
            raise ValueError(f"[quantize] {name}: got a scale that is not finite, want {want}")
        raise ValueError(f"[quantize] {name}: got {value} at index {list(index)}, want finite values")
    return QuantizedTensor(tensors, format, block_size, tensor.shape, tensor.dtype)


def outside_inference_mode(func: Any, args: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
    """What an op is called in: a view of a tensor that is not of inference mode must not be either."""
    if func.is_view and torch.is_inference_mode_enabled() and not args[0].is_inference():
        return torch.inference_mode(False)
    return contextlib.nullcontext()


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, cols) of a tensor of any shape: cols is the last size."""
    return (math.prod(shape[:-1]), shape[-1]) if len(shape) > 0 else (1, 1)


def rebuild_quantized_tensor(
    tensors: dict[str, Tensor],
    format: str,
    block_size: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    matrix: tuple[int, int],
    is_parameter: bool,
    requires_grad: bool,
) -> QuantizedTensor:
    """Unpickles a QuantizedTensor. Raises ValueError or TypeError for tensors its format does not have."""
    row = check_format("QuantizedTensor", format)
    extra = {*tensors} - {*row.tensors} if row.coding == "codebook" else set()
    nested = {"nested_absmax", "nested_code", "offset"} if extra else set()
    if {*tensors} != {*row.tensors} | nested or not all(isinstance(t, Tensor) for t in tensors.values()):
        want = f"the tensors of {format}"
        raise ValueError(f"[QuantizedTensor] tensors: got {sorted(map(str, tensors))}, want {want}")
    if min((*shape, *matrix), default=0) < 0 or math.prod(shape) != math.prod(matrix):
        raise ValueError(f"[QuantizedTensor] shape: got {shape}, want that of a matrix {matrix}")
    tensor = QuantizedTensor(tensors, format, block_size, shape, dtype, matrix)
    # The op checks every size and dtype against the table; on meta tensors it does only that.
    decode(tensor.map(lambda t: t.to("meta")).tensors(), format, block_size, matrix, dtype)
    return _restore_parameter(tensor, is_parameter, requires_grad)


def _restore_parameter(tensor: QuantizedTensor, is_parameter: bool, requires_grad: bool) -> QuantizedTensor:
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)  # type: ignore[return-value]
    tensor.requires_grad_(requires_grad)
    return tensor


def _set_shell(tensor: QuantizedTensor, fresh: QuantizedTensor) -> None:
    """Gives `tensor` the shape, dtype and device of `fresh`, keeping its identity and requires_grad."""
    with torch._C.DisableTorchFunctionSubclass():
        if torch._has_compatible_shallow_copy_type(tensor, fresh):
            Tensor.data.__set__(tensor, fresh)  # type: ignore[attr-defined]
            return
        # To another device: the empty shells change places. torch.utils.swap_tensors refuses tensors with
        # weak references, which torch.compile leaves; they refer to the Python object, which stays.
        fresh.requires_grad_(tensor.requires_grad)
        torch._C._swap_tensor_impl(tensor, fresh)


torch.serialization.add_safe_globals([QuantizedTensor, rebuild_quantized_tensor])
