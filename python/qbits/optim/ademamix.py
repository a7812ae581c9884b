"""AdEMAMix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.groups import at_least_0
from qbits.optim.optimizer import Optimizer, Options, Params


class AdEMAMix(Optimizer):
    """AdamW with a second, slower mean of gradients in its update (Pagliardini et al., arXiv 2409.03137).

    Args:
        params, lr, eps, weight_decay: as for AdamW.
        betas: of the fast mean, of the mean square, of the slow mean.
        alpha: weight of the slow mean.
        t_alpha: steps in which alpha grows from 0, linearly; None for none.
        t_beta3: steps in which the third beta grows from the first, its half-life linearly; None for none.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    ALGORITHM = "ademamix"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3}
        super().__init__(params, {**defaults, "eps": eps, "weight_decay": weight_decay}, options)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        self._require_betas(group, 3)
        for key in ("alpha", "eps"):
            self._require(group, key, at_least_0, "at least 0 and finite")
        for key in ("t_alpha", "t_beta3"):
            self._require(
                group, key, lambda steps: steps is None or 1 <= steps < math.inf, "None or at least 1"
            )

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2, beta3 = group["betas"]
        return {
            "beta1": beta1,
            "beta2": beta2,
            "beta3": beta3,
            "alpha": group["alpha"],
            "alpha_steps": group["t_alpha"] or 0,
            "beta3_steps": group["t_beta3"] or 0,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
        }


class AdEMAMix8bit(AdEMAMix):
    """AdEMAMix with 8-bit state (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class AdEMAMix32bit(AdEMAMix):
    """AdEMAMix with 32-bit state."""

    BITS = 32


class PagedAdEMAMix(AdEMAMix):
    """AdEMAMix with paged state, see qbits.optim.Options."""

    PAGED = True


class PagedAdEMAMix8bit(AdEMAMix8bit):
    """AdEMAMix with paged 8-bit state."""

    PAGED = True


class PagedAdEMAMix32bit(AdEMAMix32bit):
    """AdEMAMix with paged 32-bit state."""

    PAGED = True
