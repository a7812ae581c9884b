"""LARS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.optimizer import Options, Params
from qbits.optim.sgd import SGDBase


class LARS(SGDBase):
    """SGD whose gradients are scaled tensor by tensor (You et al., arXiv 1708.03888, algorithm 1).

    The gradient of a tensor p, weight decay included, is multiplied by `trust_coefficient` |p| / (|g| +
    weight_decay |p|), unless a norm is zero, and then enters the momentum.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov: as for torch.optim.SGD.
        trust_coefficient: above 0.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    SCALING = "trust_ratio"
    KIND = "lars"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        defaults |= {"nesterov": nesterov, "trust_coefficient": trust_coefficient}
        super().__init__(params, defaults, options)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        self._require(group, "trust_coefficient", lambda c: 0 < c < math.inf, "above 0 and finite")

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {**super()._hyperparameters(group), "scaling": group["trust_coefficient"]}


class LARS8bit(LARS):
    """LARS with 8-bit momentum (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class LARS32bit(LARS):
    """LARS with 32-bit momentum."""

    BITS = 32
