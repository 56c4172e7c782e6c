"""LLM-wrapper: adapt a detector that cannot be trained to expressions it does not understand."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_wrapper.detectors import ImageDetector, register_detector
    from llm_wrapper.recipe import Recipe, load_recipe
    from llm_wrapper.records import Box, Detection
    from llm_wrapper.wrapper import Result, Wrapper

__all__ = ["Box", "Detection", "ImageDetector", "Recipe", "Result", "Wrapper", "load_recipe", "register_detector"]

__version__ = "0.1.0"

_MODULES = {
    "Box": "records",
    "Detection": "records",
    "ImageDetector": "detectors",
    "Recipe": "recipe",
    "Result": "wrapper",
    "Wrapper": "wrapper",
    "load_recipe": "recipe",
    "register_detector": "detectors",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import llm_wrapper` is fast and loads no PyTorch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Name what is public."""
    return sorted({*globals(), *__all__})
