"""Registration of the saved form with transformers' Auto classes, without importing transformers."""

import importlib.util
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO = "transformers.models.auto.modeling_auto"
"""The module of the Auto classes, which must be imported before anything is registered."""


def register_saved_form() -> None:
    """Register now if the Auto classes are imported already, else right after their import."""
    if AUTO in sys.modules:
        import_module("toastlib.models.modeling_toast").register()
    else:
        sys.meta_path.insert(0, _AfterImport())  # Python has no callback for an import


class _AfterImport(MetaPathFinder):
    """Finds no module itself; registers after the import of `AUTO`, and removes itself."""

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
            register_saved_form()

        spec.loader.exec_module = execute_and_register
        return spec
