"""Optimizers with hyperparameters, sizes and gradients that their tests share."""

import torch

from qbits import optim

SIZES = (1, 2, 7, 127, 128, 129, 255, 256, 257, 513, 1000, 4099, 8193)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HYPERPARAMETERS = {
    "Adam": {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1},
    "AdamW": {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1},
    "AdEMAMix": {
        "lr": 1e-2, "betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "t_alpha": 50, "t_beta3": 40, "eps": 1e-8,
        "weight_decay": 0.1,
    },
    "Lion": {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1},
    "RMSprop": {"lr": 1e-3, "alpha": 0.9, "eps": 1e-8, "weight_decay": 0.1},
    "Adagrad": {"lr": 1e-2, "lr_decay": 0.01, "eps": 1e-10, "weight_decay": 0.1},
    "SGD": {"lr": 1e-2, "momentum": 0.9, "dampening": 0.1, "nesterov": False, "weight_decay": 0.1},
}  # fmt: skip


def make(name, params, **changes):
    """The optimizer with the hyperparameters of its tests."""
    return getattr(optim, name)(params, **{**HYPERPARAMETERS[name], **changes})


def gradients(shape, steps, dtype=torch.float32, seed=0):
    """Normal numbers of mixed scale; some are zero, some elements stay so, and blocks differ in size."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(2 * torch.randn(shape, generator=generator))
    scale = scale.masked_fill(torch.rand(shape, generator=generator) < 0.05, 0.0)
    for _ in range(steps):
        grad = scale * torch.randn(shape, generator=generator)
        yield grad.masked_fill(torch.rand(shape, generator=generator) < 0.05, 0.0).to(dtype)


def parameter(shape, dtype=torch.float32, device="cpu", seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype).to(device))
