"""Configuration of a run: frozen dataclasses, read from YAML and ``key=value`` overrides.

Imports from ``capture`` everything up to ``capture.corpus``, because each setting stands beside the
code that it configures. The exported names load lazily: the settings need torch, but
``capture.config.records`` and ``capture.config.safe_yaml`` do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capture.config.reading import make_config, read_config
    from capture.config.settings import CaptureConfig, Config, RunConfig

__all__ = ["CaptureConfig", "Config", "RunConfig", "make_config", "read_config"]

_MODULES = dict.fromkeys(["CaptureConfig", "Config", "RunConfig"], "settings") | dict.fromkeys(
    ["make_config", "read_config"], "reading"
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
