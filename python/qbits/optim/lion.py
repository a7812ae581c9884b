"""Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.optimizer import Optimizer, Options, Params


class Lion(Optimizer):
    """Steps by the sign of a mean of gradients (Chen et al., arXiv 2302.06675); weight decay is decoupled.

    Args:
        params, lr: as for torch's optimizers. Lion wants a third to a tenth of AdamW's learning rate.
        betas: decay of the mean within the step, and of the one that is kept.
        weight_decay: decoupled.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    ALGORITHM = "lion"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, options)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        self._require_betas(group, 2)

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        return {"beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"]}


class Lion8bit(Lion):
    """Lion with 8-bit state (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class Lion32bit(Lion):
    """Lion with 32-bit state."""

    BITS = 32


class PagedLion(Lion):
    """Lion with paged state, see qbits.optim.Options."""

    PAGED = True


class PagedLion8bit(Lion8bit):
    """Lion with paged 8-bit state."""

    PAGED = True


class PagedLion32bit(Lion32bit):
    """Lion with paged 32-bit state."""

    PAGED = True
