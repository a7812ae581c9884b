"""LAMB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.adam import AdamBase
from qbits.optim.optimizer import Options, Params


class LAMB(AdamBase):
    """AdamW with a step of each tensor in proportion to its norm (You et al., arXiv 1904.00962, algorithm 2).

    The step of a tensor, weight decay included, is scaled to `lr` times the norm of the tensor, unless a norm
    is zero.

    Args:
        params, lr, betas, eps, weight_decay: as for AdamW.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    SCALING = "trust_ratio"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, options)

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {**super()._hyperparameters(group), "scaling": 1.0}


class LAMB8bit(LAMB):
    """LAMB with 8-bit state (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class LAMB32bit(LAMB):
    """LAMB with 32-bit state."""

    BITS = 32
