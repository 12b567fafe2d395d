"""``import toastlib`` makes transformers' Auto classes know the saved form, without importing transformers itself."""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO = "transformers.models.auto.modeling_auto"
"""Where the Auto classes of models are defined: what cannot be registered before it is imported."""


def register_saved_form() -> None:
    """Register now where the Auto classes are there already, else as soon as someone imports them.

    Python has no callback for that: a finder that waits for one module, and steps aside when it comes, is the smallest.
    """
    if AUTO in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    from toastlib.models import modeling_toast

    modeling_toast.register()


class _AfterImport(MetaPathFinder):
    """Finds nothing itself; lets `_register` follow the import of `AUTO`."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register
        return spec
