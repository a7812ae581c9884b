"""SGD, with or without momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from qbits.optim.groups import at_least_0
from qbits.optim.optimizer import Optimizer, Options, Params


class SGDBase(Optimizer):
    """What SGD and LARS share."""

    ALGORITHM = "momentum"
    DECAY = "coupled"

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        self._require(group, "momentum", at_least_0, "at least 0 and finite")
        self._require(group, "dampening", math.isfinite, "a finite number")
        self._require_flags(group, "nesterov")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                f"[{type(self).__name__}] nesterov: got True, want momentum above 0, dampening 0"
            )

    def _hyperparameters(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {
            "beta1": group["momentum"],
            "dampening": group["dampening"],
            "nesterov": group["nesterov"],
            "weight_decay": group["weight_decay"],
        }


class SGD(SGDBase):
    """torch.optim.SGD: weight decay joins the gradient. Without momentum in any group there is no state.

    The first gradient with momentum is not dampened, and `step` counts from there, also where momentum is
    switched on later. Beside groups with momentum those without it keep their last gradient as state, from
    which momentum goes on when it is switched on; torch's begins with the next one.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov: as for torch.optim.SGD.
        options: see qbits.optim.Options.

    Raises:
        ValueError, TypeError: a hyperparameter without sense.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "nesterov": nesterov}, options)

    def _init_state(self, group: Mapping[str, Any], param: Tensor) -> None:
        own = self.state[param]
        is_late = "step" in own and "state1" not in own and self._algorithm() == "momentum"
        super()._init_state(group, param)
        if is_late:
            own["step"].zero_()

    def _algorithm(self) -> str:
        return "momentum" if any(group["momentum"] for group in self._all_groups()) else "gradient_descent"


class SGD8bit(SGD):
    """SGD with 8-bit momentum (Dettmers et al., arXiv 2110.02861)."""

    BITS = 8


class SGD32bit(SGD):
    """SGD with 32-bit momentum."""

    BITS = 32
