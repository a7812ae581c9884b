"""What cases are made of: dtypes, shapes, memory layouts and random tensors."""

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = (
    (), (0,), (1,), (2,), (63,), (64,), (65,), (4097,),
    (0, 64), (5, 0), (1, 1), (3, 33), (7, 128), (96, 64), (1, 1000),
    (2, 3, 65), (2, 0, 3), (2, 2, 3, 17),
)  # fmt: skip
# How the elements lie in memory: next to each other, as columns, or every other one.
LAYOUTS = ("contiguous", "transposed", "gaps")
WEIGHTS = ((1, 1), (7, 33), (96, 64), (33, 257), (64, 512), (0, 16), (5, 0))
LEADS = ((), (0,), (1,), (4,), (2, 3), (2, 1, 3))
THRESHOLDS = (0.0, 6.0)


def move(tensor, device):
    """The tensor on another device, its strides kept."""
    if tensor.device == torch.device(device):
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)


def random(shape, dtype, generator, layout="contiguous"):
    """Normal values of mixed scale with exact zeros among them, in the given memory layout."""
    if layout == "transposed":
        return random(tuple(reversed(shape)), dtype, generator).permute(tuple(reversed(range(len(shape)))))
    if layout == "gaps":
        return random((*shape, 2), dtype, generator)[..., 0]
    x = torch.randn(shape, generator=generator)
    if shape:  # rows of different scale
        x = x * torch.exp(torch.randn((shape[0], *[1] * (len(shape) - 1)), generator=generator))
    return x.masked_fill(torch.rand(shape, generator=generator) < 0.05, 0.0).to(dtype)
