"""The state beside the codes of a block-wise quantized tensor, and its form in a state dict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qbits.codec import codebook, dtype_name
from qbits.formats import FORMATS, NESTED_BLOCK_SIZE

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FIELDS = ("quant_type", "blocksize", "dtype", "shape")
_NESTED_FIELDS = ("nested_blocksize", "nested_dtype", "nested_offset")


def pack_json(fields: Mapping[str, Any]) -> Tensor:
    """`fields` as the uint8 bytes of their JSON."""
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def unpack_json(packed: Tensor, where: str) -> dict[str, Any]:
    """The fields `pack_json` packed. Raises ValueError, naming `where`, if they are not a JSON object."""
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        got = dtype_name(packed.dtype) if isinstance(packed, Tensor) else type(packed).__name__
        raise ValueError(f"[quant_state] {where}: got {got}, want the uint8 bytes of a JSON object")
    try:
        fields = json.loads(bytes(packed.detach().cpu().flatten().tolist()))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"[quant_state] {where}: got bytes that are not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"[quant_state] {where}: got {fields!r}, want a JSON object")
    return fields


class QuantState:
    """What it takes to dequantize: the attributes, list layout and dict layout of bitsandbytes' class.

    Attributes:
        absmax: float32 [blocks], or uint8 [blocks] if `nested`.
        shape: of the dense tensor, or None for 8-bit block-wise codes, which carry it themselves.
        code: float32, the value of each code.
        blocksize: elements that share one absmax.
        quant_type: "nf4", "fp4", or None for 8-bit block-wise codes.
        dtype: of the dense tensor.
        offset: the mean absmax, a float32 scalar tensor; None unless `nested`.
        state2: the QuantState of absmax - offset; None unless `nested`.
        nested: whether absmax itself is quantized.
    """

    valid_quant_types = ("fp4", "nf4")
    valid_qs_type_keys = tuple(f"bitsandbytes__{name}" for name in valid_quant_types)

    def __init__(
        self,
        absmax: Tensor,
        shape: torch.Size | None = None,
        code: Tensor | None = None,
        blocksize: int | None = None,
        quant_type: str | None = None,
        dtype: torch.dtype | None = None,
        offset: Tensor | None = None,
        state2: QuantState | None = None,
    ) -> None:
        self.absmax = absmax
        self.shape = shape
        self.code = code
        self.blocksize = blocksize
        self.quant_type = quant_type
        self.dtype = dtype
        self.offset = offset
        self.state2 = state2

    @property
    def nested(self) -> bool:
        """Whether absmax itself is quantized."""
        return self.state2 is not None

    def __getattr__(self, name: str) -> Tensor:
        # torch walks the dotted keys of a state dict with getattr, "quant_state.bitsandbytes__nf4" included.
        key = f"quant_state.{name}"
        if name.startswith("bitsandbytes__") and key in (entries := self.as_dict(packed=True)):
            return entries[key]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, index: Any) -> Any:
        """The list layout: [absmax, shape, dtype, blocksize, [offset, state2] or None, quant_type]."""
        nested = [self.offset, self.state2] if self.nested else None
        return [self.absmax, self.shape, self.dtype, self.blocksize, nested, self.quant_type][index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantState):
            return NotImplemented
        plain = ("shape", "dtype", "blocksize", "quant_type", "state2")
        tensors = ("absmax", "code", "offset")
        return all(getattr(self, a) == getattr(other, a) for a in plain) and all(
            _close(getattr(self, a), getattr(other, a)) for a in tensors
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def to(self, device: torch.device | str) -> None:
        """Moves every tensor to `device`, in place."""
        self.absmax = self.absmax.to(device)
        self.code = None if self.code is None else self.code.to(device)
        self.offset = None if self.offset is None else self.offset.to(device)
        if self.state2 is not None:
            self.state2.to(device)

    def as_dict(self, packed: bool = False) -> dict[str, Any]:
        """The entries beside a weight in a state dict, keyed as bitsandbytes keys them.

        Reads the offset of a nested state, which synchronises.

        Args:
            packed: gather everything but tensors in one tensor of JSON, "quant_state.bitsandbytes__nf4", as
                safetensors needs it.
        """
        tensors = {"absmax": self.absmax, "quant_map": self.code}
        fields: dict[str, Any] = {
            "quant_type": self.quant_type,
            "blocksize": self.blocksize,
            "dtype": None if self.dtype is None else dtype_name(self.dtype),
            "shape": None if self.shape is None else tuple(self.shape),
        }
        if self.state2 is not None:
            # Each weight owns its map: safetensors drops all but one of tensors that share memory.
            code = self.state2.code
            tensors["nested_absmax"] = self.state2.absmax
            tensors["nested_quant_map"] = None if code is None else code.clone()
            fields["nested_blocksize"] = self.state2.blocksize
            fields["nested_dtype"] = dtype_name(self.state2.dtype or torch.float32)
            fields["nested_offset"] = None if self.offset is None else self.offset.item()
        if not packed or self.quant_type is None:
            return {**fields, **tensors}
        return {**tensors, f"quant_state.bitsandbytes__{self.quant_type}": pack_json(fields)}

    @classmethod
    def from_dict(cls, qs_dict: Mapping[str, Any], device: torch.device | str) -> QuantState:
        """The state `as_dict` made, packed or not, on `device`. Keys may carry any dotted prefix.

        Raises:
            ValueError: an entry is missing, unknown, or contradicts another.
        """
        entries = {key.rpartition(".")[2]: value for key, value in qs_dict.items()}
        packed = [key for key in entries if key.startswith("bitsandbytes__")]
        if len(packed) > 1 or (not packed and "quant_type" not in entries):
            known = ", ".join(cls.valid_qs_type_keys)
            raise ValueError(f"[quant_state] packed entries: got {packed or 'none'}, want one of {known}")
        for key in packed:
            fields = unpack_json(entries.pop(key), key)
            if key != f"bitsandbytes__{fields.get('quant_type')}":
                raise ValueError(
                    f"[quant_state] quant_type: got {fields.get('quant_type')!r} under key {key}"
                )
            if twice := sorted(set(fields) & set(entries)):
                raise ValueError(f"[quant_state] {key}: got {twice} in it and beside it, want them once")
            entries.update(fields)
        nested = "nested_absmax" in entries
        want = {"absmax", "quant_map", *_FIELDS}
        if nested:
            want |= {"nested_absmax", "nested_quant_map", *_NESTED_FIELDS}
        if set(entries) != want:
            raise ValueError(f"[quant_state] entries: got {sorted(entries)}, want {sorted(want)}")
        for name in ("absmax", "quant_map", *(("nested_absmax", "nested_quant_map") if nested else ())):
            if not isinstance(entries[name], Tensor):
                raise ValueError(f"[quant_state] {name}: got {entries[name]!r}, want a tensor")
        state = cls(
            absmax=entries["absmax"].to(device),
            shape=None if entries["shape"] is None else torch.Size(_shape(entries["shape"])),
            code=entries["quant_map"].to(device),
            blocksize=entries["blocksize"],
            quant_type=entries["quant_type"],
            dtype=_dtype(entries["dtype"], "dtype"),
        )
        if nested:
            offset = entries["nested_offset"]
            number = isinstance(offset, (int, float)) and not isinstance(offset, bool)
            if not number or 2**128 <= abs(offset) < math.inf:
                raise ValueError(f"[quant_state] nested_offset: got {offset!r}, want a float32 number")
            state.offset = torch.tensor(offset, dtype=torch.float32, device=device)
            state.state2 = cls(
                absmax=entries["nested_absmax"].to(device),
                code=entries["nested_quant_map"].to(device),
                blocksize=entries["nested_blocksize"],
                dtype=_dtype(entries["nested_dtype"], "nested_dtype"),
            )
        return state

    def validate(self, codes: Tensor) -> None:
        """Refuses a 4-bit state that does not describe `codes`. Reads the maps, which synchronises.

        Raises:
            ValueError: what does not fit, in words.
        """
        row = FORMATS.get(self.quant_type or "")
        if row is None or self.quant_type not in self.valid_quant_types:
            raise ValueError(f"[quant_state] quant_type: got {self.quant_type!r}, want nf4 or fp4")
        if type(self.blocksize) is not int or self.blocksize not in row.block_sizes:
            want = ", ".join(map(str, row.block_sizes))
            raise ValueError(f"[quant_state] blocksize: got {self.blocksize!r}, want {want}")
        if self.shape is None:
            raise ValueError("[quant_state] shape: got None, want a list of sizes")
        numel = math.prod(self.shape)
        blocks = row.num_scales(1, numel, self.blocksize)
        check_entry("codes", codes, torch.uint8, row.codes_size(numel))
        if self.code is None or self.code.dtype != torch.float32 or self.code.numel() != len(row.codebook):
            raise ValueError(f"[quant_state] quant_map: got {self.code!r}, want float32[{len(row.codebook)}]")
        if not self.code.is_meta and not torch.equal(
            self.code.cpu().flatten(), codebook(row.name, torch.device("cpu"))
        ):
            values = self.code.tolist()
            raise ValueError(f"[quant_state] quant_map: got {values}, want the values of {row.name}")
        if self.state2 is None:
            check_entry("absmax", self.absmax, torch.float32, blocks)
            return
        if self.state2.blocksize != NESTED_BLOCK_SIZE or self.state2.dtype != torch.float32:
            got = f"{self.state2.blocksize!r} and {self.state2.dtype}"
            want = f"{NESTED_BLOCK_SIZE} and torch.float32"
            raise ValueError(f"[quant_state] nested_blocksize and nested_dtype: got {got}, want {want}")
        nested_blocks = -(-blocks // NESTED_BLOCK_SIZE)
        check_entry("absmax", self.absmax, torch.uint8, blocks)
        check_entry("nested_absmax", self.state2.absmax, torch.float32, nested_blocks)
        code = self.state2.code
        if code is None:
            raise ValueError("[quant_state] nested_quant_map: got None, want float32[256]")
        check_entry("nested_quant_map", code, torch.float32, 256)
        if not code.is_meta and not bool((code.diff() >= 0).all()):
            raise ValueError("[quant_state] nested_quant_map: got values out of order, want them ascending")


def check_entry(name: str, tensor: object, dtype: torch.dtype, numel: int) -> None:
    """Raises ValueError unless `tensor` is a tensor of this dtype and number of elements."""
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.numel() != numel:
        got = (
            f"{dtype_name(tensor.dtype)}{list(tensor.shape)}" if isinstance(tensor, Tensor) else repr(tensor)
        )
        raise ValueError(f"[quant_state] {name}: got {got}, want {dtype_name(dtype)} of {numel} elements")


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, atol=1e-6, equal_nan=True)


def _shape(value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)) or not all(type(v) is int and 0 <= v < 2**63 for v in value):
        raise ValueError(f"[quant_state] shape: got {value!r}, want a list of sizes")
    if len(value) > 8 or math.prod(value) >= 2**63:
        raise ValueError(f"[quant_state] shape: got {value!r}, want at most 8 sizes and 2^63 elements")
    return list(value)


def _dtype(value: Any, name: str) -> torch.dtype:
    if not isinstance(value, str) or value not in _DTYPES:
        raise ValueError(f"[quant_state] {name}: got {value!r}, want {', '.join(_DTYPES)}")
    return _DTYPES[value]
