"""The format table of libqbits, with torch dtypes: the one place that says what a format is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from qbits import _C

NESTED_BLOCK_SIZE: int = _C.NESTED_BLOCK_SIZE
"""Scales that share one second-level absmax in double quantization (QLoRA, arXiv 2305.14314)."""


@dataclass(frozen=True)
class Format:
    """One row of the table; `core/include/qbits/format.h` explains each field."""

    name: str
    summary: str
    bits: int
    coding: str  # "codebook", "affine" or "symmetric"
    codebook: tuple[float, ...] = field(repr=False)
    ties: str  # "lower", "toward_zero" or "even"
    block_sizes: tuple[int, ...]
    whole_rows: bool
    scale_dtypes: tuple[torch.dtype, ...]
    tensors: tuple[str, ...]

    def codes_size(self, numel: int) -> int:
        """Bytes of codes for `numel` elements; `numel` may be symbolic."""
        return (numel + 1) // 2 if self.bits == 4 else numel

    @property
    def codes_dtype(self) -> torch.dtype:
        """int8 where codes are signed, else uint8."""
        return torch.int8 if self.coding == "symmetric" else torch.uint8

    @property
    def in_layers(self) -> bool:
        """Whether there are products that read it: 4-bit formats and int8."""
        return self.bits == 4 or self.coding == "symmetric"

    def describe_block_sizes(self) -> str:
        """ "16, 32, ... or 0 for whole rows", for messages."""
        sizes = ", ".join(map(str, self.block_sizes))
        whole = "0 for whole rows" if self.whole_rows else ""
        return " or ".join(filter(None, (sizes, whole)))

    def num_scales(self, rows: int, cols: int, block_size: int) -> int:
        """Number of scales of a tensor of `rows` x `cols` elements; the sizes may be symbolic.

        Codebook blocks run over the flattened tensor, affine groups stay inside a row, and symmetric formats
        have one scale for each row.
        """
        if self.coding == "codebook":
            return (rows * cols + block_size - 1) // block_size
        if self.coding == "symmetric":
            return rows
        return rows * self.groups(cols, block_size)

    def groups(self, cols: int, group_size: int) -> int:
        """Groups in a row of `cols` elements of an affine format; group size 0 means the whole row."""
        if group_size == 0:
            return 1 if cols > 0 else 0
        return (cols + group_size - 1) // group_size


def _row(row: _C.Format) -> Format:
    return Format(
        name=row.name,
        summary=row.summary,
        bits=row.bits,
        coding=row.coding,
        codebook=tuple(row.codebook),
        ties=row.ties,
        block_sizes=tuple(row.block_sizes),
        whole_rows=row.whole_rows,
        scale_dtypes=tuple(getattr(torch, dtype) for dtype in row.scale_dtypes),
        tensors=tuple(row.tensors),
    )


FORMATS: Mapping[str, Format] = MappingProxyType({row.name: _row(row) for row in _C.formats()})
"""Every format by name, in the order tables print them."""
