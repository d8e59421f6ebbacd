"""One training step: taken, observed, and audited against the applied change of the weights.

``Engine`` takes steps in plain torch, ``DeepSpeedEngine`` with DeepSpeed, and ``Observer`` computes
each step's records. Imports packages up to ``capture.format``. DeepSpeed is loaded with the first
step, never on import. The names exported here are resolved on first access, so that light modules
such as ``step_plan`` do not load the models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capture.engine.build import build_engine
    from capture.engine.engine import Engine
    from capture.engine.step import Step
    from capture.engine.step_plan import StepPlan

__all__ = ["Engine", "Step", "StepPlan", "build_engine"]

_HOMES = {
    "Engine": "engine",
    "Step": "step",
    "StepPlan": "step_plan",
    "build_engine": "build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
