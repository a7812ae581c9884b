"""A quantized weight as entries of a state dict, and back.

nf4, fp4 and int8 use bitsandbytes' keys and bytes, so that checkpoints load and save both ways: int8 those of
Linear8bitLt, `weight`, `SCB` and `weight_format`. Affine formats use the scheme of the 4-bit ones: `weight`,
`weight.scales`, `weight.zeros`, `weight.quant_state.qbits__int4`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qbits.codec import check_options, codebook, dtype_name, shape_codes
from qbits.formats import FORMATS, NESTED_BLOCK_SIZE
from qbits.functional.quant_state import _DTYPES, QuantState, _shape, check_entry, pack_json, unpack_json
from qbits.functional.quantize_4bit import nested_tensors, packed_bytes
from qbits.ops._library import describe
from qbits.tensor import QuantizedTensor, matrix_shape

_BITSANDBYTES = "quant_state.bitsandbytes__"
_QBITS = "quant_state.qbits__"

WEIGHT_SUFFIXES = (
    *("absmax", "quant_map", "nested_absmax", "nested_quant_map"),
    *(_BITSANDBYTES + name for name in QuantState.valid_quant_types),
    *("scales", "zeros"),
    *(_QBITS + name for name, row in FORMATS.items() if row.coding == "affine"),
)
"""What may follow `weight.` in the keys of a quantized weight."""

_SIBLINGS = ("SCB", "weight_format")

WEIGHT_KEYS = {
    "weight": "",
    **{f"weight.{suffix}": suffix for suffix in WEIGHT_SUFFIXES},
    **{suffix: suffix for suffix in _SIBLINGS},
}
"""The keys of a module whose `weight` is quantized, and the suffix of each entry."""

_LAYOUTS = {1: "col32", 2: "col_turing", 3: "col_ampere"}  # of bitsandbytes before 0.45


def key_of(name: str, suffix: str) -> str:
    """The key of the entry `suffix` of the weight `name`: below it, or for int8's beside it."""
    if suffix in _SIBLINGS:
        return name.rpartition(".")[0] + "." * ("." in name) + suffix
    return f"{name}.{suffix}" if suffix else name


def quant_state(weight: QuantizedTensor) -> QuantState:
    """The QuantState of an nf4 or fp4 tensor, over the same memory."""
    assert weight.absmax is not None
    state = QuantState(
        absmax=weight.absmax,
        shape=weight.shape,
        code=codebook(weight.format, weight.codes.device).clone(),
        blocksize=weight.block_size,
        quant_type=weight.format,
        dtype=weight.logical_dtype,
        offset=weight.offset,
    )
    if weight.nested_absmax is not None:
        state.state2 = QuantState(
            absmax=weight.nested_absmax,
            code=weight.nested_code,
            blocksize=NESTED_BLOCK_SIZE,
            dtype=torch.float32,
        )
    return state


def weight_entries(weight: QuantizedTensor) -> dict[str, Tensor]:
    """The entries of `weight` by suffix: "" for the codes, "absmax", "quant_state.bitsandbytes__nf4", ...

    Reads the offset of double quantization, which synchronises.

    Raises:
        ValueError: a meta tensor, or an 8-bit code map.
    """
    if weight.codes.is_meta:
        raise ValueError("[state_dict] weight: got a quantized weight without data on the meta device")
    if FORMATS[weight.format].coding == "symmetric":
        assert weight.scales is not None
        row_major = torch.tensor(0, dtype=torch.uint8)
        return {"": weight.codes.reshape(weight.shape), "SCB": weight.scales, "weight_format": row_major}
    codes = weight.codes.reshape(-1, 1)
    if weight.format in QuantState.valid_quant_types:
        return {"": codes, **quant_state(weight).as_dict(packed=True)}
    if weight.scales is None or weight.zeros is None:
        raise ValueError(f"[state_dict] format: got {weight.format}, want a 4-bit, affine or int8 format")
    fields = {
        "quant_type": weight.format,
        "blocksize": weight.block_size,
        "dtype": dtype_name(weight.logical_dtype),
        "shape": list(weight.shape),
    }
    packed = pack_json(fields)
    return {"": codes, "scales": weight.scales, "zeros": weight.zeros, _QBITS + weight.format: packed}


def is_quantized(entries: Mapping[str, Tensor]) -> bool:
    """Whether `entries`, keyed by suffix, are those of a quantized weight rather than of a dense one."""
    codes = entries.get("")
    return len(entries) > 1 or (isinstance(codes, Tensor) and not codes.is_floating_point())


def weight_from_entries(
    entries: Mapping[str, Tensor],
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float16,
) -> QuantizedTensor:
    """The tensor `weight_entries` took apart, on `device` (by default where the codes are).

    Its dtype is the one it had, or `dtype` for int8, whose entries do not tell.

    Raises:
        ValueError: an entry is missing, unknown, of the wrong size, or contradicts another.
    """
    codes = entries.get("")
    rest = {key: value for key, value in entries.items() if key}
    if codes is None or not rest:
        missing = "the codes" if codes is None else "the quantization state"
        raise ValueError(f"[load_state_dict] entries: got {sorted(entries)}, which lack {missing}")
    if not all(isinstance(value, Tensor) for value in entries.values()):
        raise ValueError("[load_state_dict] entries: got values that are not tensors")
    device = codes.device if device is None else device
    for key, value in entries.items():
        if value.layout != torch.strided or (value.is_meta and device.type != "meta"):
            want = f"a dense tensor with data, to load on {device}"
            raise ValueError(f"[load_state_dict] {key or 'codes'}: got {describe(value)}, want {want}")
    if not rest.keys().isdisjoint(_SIBLINGS):
        return _int8_from_entries(codes, rest, device, dtype)
    if any(key.startswith(_QBITS) for key in rest):
        return _affine_from_entries(codes, rest, device)
    state = QuantState.from_dict(rest, device)
    codes = codes.to(device)
    if codes.dtype != torch.uint8 and state.shape is not None:  # bitsandbytes' quant_storage
        codes = packed_bytes(codes, math.prod(state.shape))
    state.validate(codes)
    assert state.shape is not None and state.quant_type is not None
    assert state.blocksize is not None and state.dtype is not None
    rows, cols = matrix_shape(state.shape)
    nested = dict(zip(("nested_absmax", "nested_code", "offset"), nested_tensors(state), strict=False))
    tensors = {
        "codes": shape_codes(codes, FORMATS[state.quant_type], rows, cols),
        "absmax": state.absmax.reshape(-1),
        **nested,
    }
    return QuantizedTensor(tensors, state.quant_type, state.blocksize, state.shape, state.dtype)


def _int8_from_entries(
    codes: Tensor, rest: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> QuantizedTensor:
    if not {"SCB"} <= set(rest) <= {"SCB", "weight_format"}:
        got = ["weight", *sorted(rest)]
        raise ValueError(f"[load_state_dict] entries: got {got}, want weight, SCB and weight_format")
    scales, layout = rest["SCB"], rest.get("weight_format")  # which old checkpoints of these rows lack
    if layout is not None:
        if layout.numel() != 1 or layout.is_floating_point() or layout.is_complex():
            raise ValueError(f"[load_state_dict] weight_format: got {describe(layout)}, want one uint8")
        if not layout.is_meta and (number := int(layout)) != 0:
            layout_name = f"{number} ({_LAYOUTS.get(number, 'unknown')})"
            raise ValueError(f"[load_state_dict] weight_format: got {layout_name}, want 0: rows as they are")
    if codes.dim() != 2:
        raise ValueError(f"[load_state_dict] codes: got {describe(codes)}, want 2 dimensions")
    check_entry("codes", codes, torch.int8, codes.numel())
    check_entry("SCB", scales, torch.float32, codes.shape[0])
    if not scales.is_meta and not bool((scales >= 0).all()):
        raise ValueError("[load_state_dict] SCB: got a negative number or a NaN, want numbers of at least 0")
    tensors = {"codes": codes.to(device), "scales": scales.to(device).reshape(-1)}
    return QuantizedTensor(tensors, "int8", 0, codes.shape, dtype)


def _affine_from_entries(codes: Tensor, rest: Mapping[str, Tensor], device: torch.device) -> QuantizedTensor:
    (key,) = [key for key in rest if key.startswith(_QBITS)][:1]
    fields = unpack_json(rest[key], key)
    if set(rest) != {"scales", "zeros", key}:
        raise ValueError(f"[load_state_dict] entries: got {sorted(rest)}, want scales, zeros and {key}")
    format = key.removeprefix(_QBITS)
    row = FORMATS.get(format)
    if set(fields) != {"quant_type", "blocksize", "dtype", "shape"} or fields["quant_type"] != format:
        want = f"quant_type {format!r}, blocksize, dtype and shape"
        raise ValueError(f"[load_state_dict] {key}: got {fields}, want {want}")
    if type(fields["blocksize"]) is not int:
        raise ValueError(f"[load_state_dict] {key}: got block size {fields['blocksize']!r}, want an int")
    if row is None or row.coding != "affine":
        raise ValueError(f"[load_state_dict] {key}: got format {format!r}, want an affine format")
    shape, dtype = _shape(fields["shape"]), _DTYPES.get(str(fields["dtype"]))
    if dtype is None or not shape:
        raise ValueError(f"[load_state_dict] {key}: got {fields}, want a float dtype and at least one size")
    rows, cols = matrix_shape(shape)
    check_options("load_state_dict", row, fields["blocksize"], False, rest["scales"].dtype)
    groups = (rows, row.groups(cols, fields["blocksize"]))
    check_entry("codes", codes, torch.uint8, row.codes_size(rows * cols))
    check_entry("scales", rest["scales"], rest["scales"].dtype, groups[0] * groups[1])
    check_entry("zeros", rest["zeros"], rest["scales"].dtype, groups[0] * groups[1])
    tensors = {
        "codes": shape_codes(codes.to(device), row, rows, cols),
        "scales": rest["scales"].to(device).reshape(groups),
        "zeros": rest["zeros"].to(device).reshape(groups),
    }
    return QuantizedTensor(tensors, format, fields["blocksize"], shape, dtype)


def entries_of(state_dict: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The entries of the weight `name` in `state_dict`, keyed by suffix."""
    prefix = f"{name}."
    entries = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    for suffix in ("", *(_SIBLINGS if name.rpartition(".")[2] == "weight" else ())):
        if (key := key_of(name, suffix)) in state_dict:
            entries[suffix] = state_dict[key]
    return entries
