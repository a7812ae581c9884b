"""Rows of a QuantizedTensor, still quantized, and what is written into them or into all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import ops
from qbits.formats import NESTED_BLOCK_SIZE
from qbits.tensor import QuantizedTensor


def slice_rows(self: QuantizedTensor, start: int, end: int) -> QuantizedTensor | None:
    """self[start:end] over the same memory, or None where blocks or bytes do not fall on these rows.

    Double-quantized rows whose scales do not begin and end with blocks of 256 are a copy, of the same values
    under plain scales. A write to it goes to `self` all the same, and `tensors` takes it anew.
    """
    size = self.shape[0]
    if size == 0 or self.rows % size or self.codes.dim() != 2:
        return None
    rows = self.rows // size  # matrix rows per index of dim 0
    first, matrix = start * rows, ((end - start) * rows, self.cols)
    blocks = None
    if self.scales is None:
        begin, stop = first * self.cols, (first + matrix[0]) * self.cols
        if begin % self.block_size or (stop % self.block_size and end != size):
            return None
        blocks = slice(begin // self.block_size, -(-stop // self.block_size))
    # Torch, which does not track views here below autograd, does so now: they share a count of writes with
    # what they are views of, by which autograd notices those to what it has saved.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        codes = self.codes[first : first + matrix[0]]
        tensors: dict[str, Tensor | None] = {"codes": codes}
        if blocks is None:
            assert self.scales is not None
            tensors["scales"] = self.scales[first : first + matrix[0]]
            tensors["zeros"] = None if self.zeros is None else self.zeros[first : first + matrix[0]]
        else:
            tensors.update(_slice_absmax(self, blocks, end == size))
    if self.double_quant and tensors.get("nested_absmax") is None:
        tensors["codes"] = codes.clone()  # which a write elsewhere would leave with scales it does not have
    result = self.like(tensors, (end - start, *self.shape[1:]), matrix=matrix)
    if self.rows_of is not None:
        whole, offset = self.rows_of
        result.rows_of = (whole, offset + first)
    elif self.double_quant and matrix[0] != self.rows:
        result.rows_of = (self.tensors(), first)
    return result


def _slice_absmax(self: QuantizedTensor, blocks: slice, to_end: bool) -> dict[str, Tensor | None]:
    assert self.absmax is not None
    if self.nested_absmax is None:
        return {"absmax": self.absmax[blocks]}
    first, last = blocks.start, blocks.stop
    nested = slice(first // NESTED_BLOCK_SIZE, -(-last // NESTED_BLOCK_SIZE))
    if first % NESTED_BLOCK_SIZE or (last % NESTED_BLOCK_SIZE and not to_end):
        begin = nested.start * NESTED_BLOCK_SIZE
        absmax, nested_absmax = self.absmax[begin:last], self.nested_absmax[nested]
        plain = ops.dequantize_absmax(absmax, nested_absmax, self.nested_code, self.offset)
        return {"absmax": plain[first - begin :]}
    return {
        "absmax": self.absmax[blocks],
        "nested_absmax": self.nested_absmax[nested],
        "nested_code": self.nested_code,
        "offset": self.offset,
    }


def plain_absmax(self: QuantizedTensor) -> Tensor:
    """float32 [blocks]: the scales of a codebook tensor, double-quantized or not."""
    assert self.absmax is not None
    if self.nested_absmax is None:
        return self.absmax
    return ops.dequantize_absmax(self.absmax, self.nested_absmax, self.nested_code, self.offset)


def store(self: QuantizedTensor, source: Tensor) -> None:
    """Writes `source`, dense or quantized and of the same shape, into the memory of `self`.

    Raises:
        RuntimeError: rows of a double-quantized tensor that a graph was given or has returned.
    """
    if self.rows_of is not None:
        _store_rows(self, *self.rows_of, source)
        return
    if not isinstance(source, QuantizedTensor):
        new = self.encode(source.to(self.codes.device))
    elif not _same_codes(self, source):
        new = self.encode(source.dequantize(torch.float32).to(self.codes.device))
    elif source.double_quant == self.double_quant:
        new = source.tensors()
    elif self.nested_code is not None:  # the same codes under scales that are quantized now
        absmax = plain_absmax(source).to(self.codes.device)
        values, nested_absmax, offset = ops.quantize_absmax(absmax, self.nested_code)
        new = {"codes": source.codes, "absmax": values, "nested_absmax": nested_absmax, "offset": offset}
        new["nested_code"] = self.nested_code
    else:
        new = {"codes": source.codes, "absmax": plain_absmax(source)}
    for name, tensor in self.tensors().items():
        tensor.copy_(new[name].reshape(tensor.shape))
        if not tensor.is_inference():  # below autograd, which has to notice what it has saved, nothing counts
            torch.autograd.graph.increment_version(tensor)


def _store_rows(self: QuantizedTensor, tensors: dict[str, Tensor], first: int, source: Tensor) -> None:
    """Writes rows from `first` on of a double-quantized matrix of `tensors`, whose scales change together.

    The other rows keep their codes; their scales are quantized again along with the new ones.
    """
    if not tensors:
        got = f"{self!r} that passed the border of a graph"
        want = "a write to the whole tensor, or to rows taken on the same side"
        raise RuntimeError(
            f"[QuantizedTensor] in-place write to rows of a double-quantized tensor: got {got}, want {want}"
        )
    if self.rows == 0:
        return
    whole = _whole(self, tensors)
    plain = whole.like({"codes": whole.codes.clone(), "absmax": plain_absmax(whole)})
    rows = slice_rows(plain, first, first + self.rows)
    assert rows is not None
    store(rows.like(shape=self.shape), source)
    store(whole, plain)
    if not self.double_quant and (fresh := slice_rows(whole, first, first + self.rows)) is not None:
        store(self.like({"codes": self.codes, "absmax": self.absmax}), fresh.like(shape=self.shape))


def refresh(self: QuantizedTensor) -> None:
    """Takes rows that are a copy anew, in tensors of their own: autograd may have saved those of before."""
    if self.rows_of is None or not self.rows_of[0] or self.double_quant:
        return
    tensors, first = self.rows_of
    fresh = slice_rows(_whole(self, tensors), first, first + self.rows)
    assert fresh is not None
    self.codes = fresh.codes.clone() if fresh.double_quant else fresh.codes
    self.absmax = plain_absmax(fresh)


def _whole(self: QuantizedTensor, tensors: dict[str, Tensor]) -> QuantizedTensor:
    size = (tensors["codes"].shape[0], self.cols)
    return self.like(tensors, size, matrix=size)


def _same_codes(self: QuantizedTensor, other: QuantizedTensor) -> bool:
    facts = [(t.format, t.block_size, t.rows, t.cols, t.codes.shape) for t in (self, other)]
    return facts[0] == facts[1]
