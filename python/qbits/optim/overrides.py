"""Hyperparameters of single parameters, whatever group they are in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# Of each parameter, for as long as it lives.
OVERRIDES: Any = WeakTensorKeyDictionary()
# Of parameters by module and name: sharding puts other parameters in the place of a module's.
_OF_MODULES: WeakKeyDictionary[nn.Module, dict[str, dict[str, Any]]] = WeakKeyDictionary()


def override(params: Tensor | Iterable[Tensor], **hyperparameters: Any) -> None:
    """Gives parameters hyperparameters of their own, in place of their group's, in every optimizer of qbits.

    `optim_bits` and `min_8bit_size` count when an optimizer makes a parameter's state, with its first step;
    others (`lr`, `weight_decay`, `betas`, ...) at each step, if there were any by the first one. Learning
    rate schedulers do not see them.

    Args:
        params: a parameter, or several.
        hyperparameters: by the names they have in parameter groups.
    """
    for param in (params,) if isinstance(params, Tensor) else params:
        OVERRIDES[param] = {**OVERRIDES.get(param, {}), **hyperparameters}


def override_of_module(module: nn.Module, name: str, **hyperparameters: Any) -> None:
    """`override` of whatever is `module.<name>` when an optimizer takes its first step."""
    override(getattr(module, name), **hyperparameters)
    own = _OF_MODULES.setdefault(module, {})
    own[name] = {**own.get(name, {}), **hyperparameters}


def refresh_overrides() -> None:
    """Finds the parameters that modules have now."""
    for module, names in list(_OF_MODULES.items()):
        for name, hyperparameters in names.items():
            param = getattr(module, name, None)
            if isinstance(param, Tensor):
                OVERRIDES[param] = {**hyperparameters, **OVERRIDES.get(param, {})}


class GlobalOptimManager:
    """bitsandbytes' name for the same: `get_instance()` gives the one there is."""

    _instance: ClassVar[GlobalOptimManager | None] = None

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """The manager, always the same."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def register_parameters(self, params: Iterable[Any]) -> None:
        """Taken and not needed: parameters are known by themselves."""

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: Any = None,
        key_value_dict: Mapping[str, Any] | None = None,
    ) -> None:
        """`override(parameters, key=value)`, or with each item of `key_value_dict`."""
        own = dict(key_value_dict or {})
        if key is not None:
            own[key] = value
        override(parameters, **own)

    def register_module_override(self, module: nn.Module, param_name: str, config: Mapping[str, Any]) -> None:
        """`override(module.<param_name>, **config)`, also for the parameter that sharding puts there."""
        override_of_module(module, param_name, **config)
