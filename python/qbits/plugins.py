"""Imports the plug-ins in `qbits.integrations`, each when the library it is for is imported."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

# When this module of another library has been imported, that plug-in registers itself with it.
PLUGINS = {
    "torch._dynamo": "qbits.integrations.dynamo",
    "accelerate.hooks": "qbits.integrations.accelerate",
    "transformers.integrations.moe": "qbits.integrations.transformers_experts",
    "transformers.modeling_utils": "qbits.integrations.transformers_saving",
    "transformers.quantizers.auto": "qbits.integrations.transformers",
}


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets the usual import of one module run, then imports its plug-in and is done."""

    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.library:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self.loader = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module(PLUGINS[module.__name__])


def register_on_import() -> None:
    """Makes `import qbits` enough for other libraries to know it, in whatever order they are imported.

    transformers has no entry points for quantizers: a checkpoint whose quantizer is not registered is
    loaded as if it were dense, with no more than a warning.
    """
    for library, plugin in PLUGINS.items():
        if library in sys.modules:
            importlib.import_module(plugin)
        else:
            sys.meta_path.insert(0, _AfterImport(library))
