"""Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.groups import at_least_0
from qbits.optim.optimizer import Optimizer, Options, Params

_ONE_CODE = 255  # of 1 in the map of state1


class Adagrad(Optimizer):
    """torch.optim.Adagrad (Duchi et al., JMLR 12, 2011): weight decay is added to the gradient.

    Args:
        params, lr, lr_decay, weight_decay, initial_accumulator_value, eps: as for torch.optim.Adagrad.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    ALGORITHM = "adagrad"
    DECAY = "coupled"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        defaults["initial_accumulator_value"] = initial_accumulator_value
        super().__init__(params, defaults, options)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        for key in ("lr_decay", "initial_accumulator_value", "eps"):
            self._require(group, key, at_least_0, "at least 0 and finite")

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"lr_decay": group["lr_decay"], "eps": group["eps"], "weight_decay": group["weight_decay"]}

    def _init_state(self, group: Mapping[str, Any], param: Tensor) -> None:
        is_new = "state1" not in self.state[param]
        super()._init_state(group, param)
        state, value = self.state[param], group["initial_accumulator_value"]
        if is_new and value > 0:
            is_8bit = state["state1"].dtype == torch.uint8
            state["state1"].fill_(_ONE_CODE if is_8bit else value)
            if is_8bit:
                state["absmax1"].fill_(value)


class Adagrad8bit(Adagrad):
    """Adagrad with 8-bit state (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class Adagrad32bit(Adagrad):
    """Adagrad with 32-bit state."""

    BITS = 32
