"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.groups import at_least_0
from qbits.optim.optimizer import Optimizer, Options, Params


class AdamBase(Optimizer):
    """What Adam, AdamW and LAMB share."""

    ALGORITHM = "adam"

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        self._require_betas(group, 2)
        self._require(group, "eps", at_least_0, "at least 0 and finite")
        if "amsgrad" in group:
            self._require(group, "amsgrad", lambda amsgrad: not amsgrad, "False")

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        beta1, beta2 = group["betas"]
        return {"beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": group["weight_decay"]}


class Adam(AdamBase):
    """torch.optim.Adam (Kingma and Ba, arXiv 1412.6980): weight decay is added to the gradient.

    Args:
        params, lr, betas, eps, weight_decay: as for torch.optim.Adam.
        amsgrad: must be False.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    DECAY = "coupled"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, defaults, options)


class Adam8bit(Adam):
    """Adam with 8-bit state (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class Adam32bit(Adam):
    """Adam with 32-bit state."""

    BITS = 32


class PagedAdam(Adam):
    """Adam with paged state, see qbits.optim.Options."""

    PAGED = True


class PagedAdam8bit(Adam8bit):
    """Adam with paged 8-bit state."""

    PAGED = True


class PagedAdam32bit(Adam32bit):
    """Adam with paged 32-bit state."""

    PAGED = True


class AdamW(AdamBase):
    """torch.optim.AdamW (Loshchilov and Hutter, arXiv 1711.05101): parameters decay apart from the gradient.

    Args:
        params, lr, betas, eps, weight_decay: as for torch.optim.AdamW.
        amsgrad: must be False.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(params, defaults, options)


class AdamW8bit(AdamW):
    """AdamW with 8-bit state (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class AdamW32bit(AdamW):
    """AdamW with 32-bit state."""

    BITS = 32


class PagedAdamW(AdamW):
    """AdamW with paged state, see qbits.optim.Options."""

    PAGED = True


class PagedAdamW8bit(AdamW8bit):
    """AdamW with paged 8-bit state."""

    PAGED = True


class PagedAdamW32bit(AdamW32bit):
    """AdamW with paged 32-bit state."""

    PAGED = True
