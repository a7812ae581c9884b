"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.groups import at_least_0
from qbits.optim.optimizer import Optimizer, Options, Params


class RMSprop(Optimizer):
    """torch.optim.RMSprop (Tieleman and Hinton, 2012) without momentum; weight decay joins the gradient.

    Args:
        params, lr, alpha, eps, weight_decay: as for torch.optim.RMSprop.
        momentum: must be 0.
        centered: must be False.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    ALGORITHM = "rmsprop"
    DECAY = "coupled"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "momentum": momentum, "centered": centered}, options)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        self._require(group, "alpha", lambda alpha: 0 <= alpha < 1, "at least 0 and below 1")
        self._require(group, "eps", at_least_0, "at least 0 and finite")
        self._require(group, "momentum", lambda momentum: momentum == 0, "0")
        self._require(group, "centered", lambda centered: not centered, "False")

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"beta1": group["alpha"], "eps": group["eps"], "weight_decay": group["weight_decay"]}


class RMSprop8bit(RMSprop):
    """RMSprop with 8-bit state (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class RMSprop32bit(RMSprop):
    """RMSprop with 32-bit state."""

    BITS = 32
