"""Does this build compute right on this machine? Every format of layers against float64, in a moment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbits import ops
from qbits.formats import FORMATS, Format

# float32 sums over K = 256 products stay far below this; a wrong code, scale or kernel is far above.
LIMIT = 1e-5
_N, _K, _M, _BLOCK = 96, 256, 3, 64


@dataclass(frozen=True)
class SelfTest:
    """The outcome on one device: the largest relative error of a linear layer over the formats."""

    device: str
    formats: tuple[str, ...]
    error: float
    wrong_codes: int

    @property
    def passed(self) -> bool:
        """Whether no code was wrong and the error stayed below the limit; a NaN error fails."""
        return self.wrong_codes == 0 and self.error < LIMIT

    def __str__(self) -> str:
        codes = "no wrong code" if self.wrong_codes == 0 else f"{self.wrong_codes} wrong codes"
        return (
            f"{'passed' if self.passed else 'FAILED'} on {self.device}: quantize and linear in "
            f"{', '.join(self.formats)} against float64: {codes}, relative error {self.error:.1e} "
            f"(limit {LIMIT:.0e})"
        )


def self_test(device: str) -> SelfTest:
    """Quantizes a small random weight in each format of layers and multiplies by it, on `device`."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_N, _K, generator=generator)
    x = torch.randn(_M, _K, generator=generator)
    rows = [row for row in FORMATS.values() if row.in_layers]
    results = [_run(row, weight, x, device) for row in rows]
    error = max((error for error, _ in results), key=lambda e: (e != e, e))
    return SelfTest(device, tuple(row.name for row in rows), error, sum(wrong for _, wrong in results))


def _run(row: Format, weight: Tensor, x: Tensor, device: str) -> tuple[float, int]:
    """The relative error of the linear layer and the number of codes further off than the nearest."""
    if row.coding == "symmetric":
        return _run_int8(weight, x, device)
    zeros = None
    if row.coding == "codebook":
        codes, scales = ops.quantize_4bit(weight.to(device), row.name, _BLOCK)
    else:
        dtype = row.scale_dtypes[0]
        codes, scales, zeros = ops.quantize_affine(weight.to(device), row.name, _BLOCK, dtype)
    y = ops.linear_4bit(x.to(device), codes, scales, None, row.name, _BLOCK, _N, _K, zeros)
    candidates = _candidates(row, scales.cpu(), None if zeros is None else zeros.cpu())
    packed = codes.cpu().long()
    chosen = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(-1, _BLOCK)
    values = candidates.gather(1, chosen)
    blocks = weight.double().reshape(-1, _BLOCK)
    nearest = (blocks.unsqueeze(-1) - candidates.unsqueeze(1)).abs().amin(dim=-1)
    # One part in a million of the block's range covers the rounding of x / scale to float32.
    slack = 1e-6 * candidates.abs().amax(dim=1, keepdim=True)
    wrong = int(((blocks - values).abs() > nearest + slack).sum())
    return _error(y, x.double() @ values.reshape(_N, _K).T), wrong


def _run_int8(weight: Tensor, x: Tensor, device: str) -> tuple[float, int]:
    """The same for LLM.int8(), of whose product that with x in rows of 8 bits is the exact value."""
    codes, scales, *_ = ops.quantize_int8_rowwise(weight.to(device))
    y = ops.linear_int8(x.to(device), codes, scales)
    step = scales.cpu().double()[:, None] / 127
    # As above: codes further off than the nearest, which is half a step away at most.
    wrong = int(((weight.double() / step - codes.cpu()).abs() > 0.5 + 127e-6).sum())
    x_step = x.double().abs().amax(dim=1, keepdim=True) / 127
    rounded = (x.double() / x_step).round() * x_step
    return _error(y, rounded @ (codes.cpu() * step).T), wrong


def _error(y: Tensor, expected: Tensor) -> float:
    return ((y.cpu().double() - expected).abs().max() / expected.abs().max()).item()


def _candidates(row: Format, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """[blocks, 16] in float64: what each code stands for in each block."""
    column = scales.double().reshape(-1, 1)
    if zeros is None:
        return torch.tensor(row.codebook, dtype=torch.float64) * column
    return (torch.arange(16, dtype=torch.float64) - zeros.double().reshape(-1, 1)) * column
