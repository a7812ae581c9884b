"""Hyperparameters of single parameters, whatever group they are in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# Of each parameter, for as long as it lives.
_OF_PARAMS: Any = WeakTensorKeyDictionary()
# Of parameters by module and name: sharding puts other parameters in the place of a module's.
_OF_MODULES: WeakKeyDictionary[nn.Module, dict[str, dict[str, Any]]] = WeakKeyDictionary()
_changes = 0  # so far, to both


def override(params: Tensor | Iterable[Tensor], /, **hyperparameters: Any) -> None:
    """Gives parameters hyperparameters of their own, in place of their group's, in every optimizer of qbits.

    `optim_bits` and `min_8bit_size` count when an optimizer makes a parameter's state, with its first step;
    others (`lr`, `weight_decay`, `betas`, ...) from the next step on. Graphs that were captured before the
    first override of a parameter do not see it, nor do learning rate schedulers.

    The step checks them as it checks groups: names and values that its optimizer would not take in a group
    raise TypeError or ValueError there. `optim_bits` may be 32 in classes of 8 bits too, for embeddings for
    instance, but not 8 in those of 32.

    Copies and pickles of an optimizer keep the overrides of its parameters. Copies of a parameter, or of a
    module, and state dicts do not have them.

    Args:
        params: a parameter, or several.
        hyperparameters: by the names they have in parameter groups; none to take back what there was.

    Raises:
        TypeError: what is no tensor.
    """
    global _changes
    _changes += 1
    several = isinstance(params, Iterable) and not isinstance(params, Tensor)
    for param in tuple(params) if several else (params,):
        if not isinstance(param, Tensor):
            raise TypeError(f"[override] params: got {type(param).__name__}, want tensors")
        if hyperparameters:
            _OF_PARAMS[param] = {**of(param), **hyperparameters}
        else:
            _OF_PARAMS.pop(param, None)


def of(param: Tensor) -> dict[str, Any]:
    """The overrides of a parameter."""
    return _OF_PARAMS.get(param, {})


def changes() -> int:
    """How often there have been new ones."""
    return _changes


def of_groups(groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, dict[str, Any]]:
    """Those of the parameters of groups that have any, after a look at what modules have now."""
    _refresh()
    return {param: own for group in groups for param in group["params"] if (own := of(param))}


def override_of_module(module: nn.Module, name: str, **hyperparameters: Any) -> None:
    """`override` of whatever is `module.<name>` when an optimizer takes its first step."""
    override(getattr(module, name), **hyperparameters)
    own = _OF_MODULES.setdefault(module, {})
    own[name] = {**own.get(name, {}), **hyperparameters}


def _refresh() -> None:
    for module, names in list(_OF_MODULES.items()):
        for name, hyperparameters in names.items():
            param = getattr(module, name, None)
            if isinstance(param, Tensor):
                _OF_PARAMS[param] = {**hyperparameters, **of(param)}


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
        if own:
            override(parameters, **own)

    def register_module_override(self, module: nn.Module, param_name: str, config: Mapping[str, Any]) -> None:
        """`override(module.<param_name>, **config)`, also for the parameter that sharding puts there."""
        override_of_module(module, param_name, **config)
