"""Ontogeny: record what each training datum did to each parameter, and ask questions of the record.

This package is the public Python API. All names are imported on first use, so ``import ontogeny``
costs nothing. Everything else in ``capture``, ``analysis`` and ``cluster`` is private.

    import ontogeny

    run = ontogeny.capture("demo")            # or ontogeny.open_run("s3://bucket/run")
    run.shifts(unit="layers.2.linear2.weight", steps=range(100))
    ontogeny.attribute(run).tokens            # which tokens moved which neuron
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ontogeny.packages import load_packages

if TYPE_CHECKING:
    from analysis.ablation.config import AblationConfig
    from analysis.activations.config import ActivationConfig
    from analysis.attribution.config import AttributionConfig
    from analysis.behaviour.behaviour import BehaviourConfig
    from analysis.behaviour.predicates import Predicate
    from analysis.bigrams.bigrams import BigramConfig
    from analysis.faithfulness.confirm import ConfirmConfig
    from analysis.faithfulness.ground_truth import FaithfulnessConfig
    from analysis.influence.config import InfluenceConfig
    from analysis.influence.directions.along import DirectionsConfig
    from analysis.influence.drift.along import DriftConfig
    from analysis.influence.judge.judge import JudgeConfig
    from analysis.influence.silencing.silencing import SilenceConfig
    from analysis.influence.suspects.suspects import SuspectsConfig
    from analysis.measures.selection import SelectionConfig
    from analysis.neurons.grouping import NeuronsConfig
    from analysis.parameters.config import ParameterConfig
    from analysis.run.tallies import neuron_history, tally_windows, token_history
    from analysis.spectra.config import SpectrumConfig
    from analysis.trajectory.config import TrajectoryConfig
    from analysis.transitions.config import TransitionsConfig
    from analysis.transitions.quanta.config import QuantaConfig
    from analysis.transitions.runs.compare import CompareConfig
    from capture import __version__
    from capture.config.reading import read_config
    from capture.config.records import FactorConfig
    from capture.config.settings import Config
    from capture.custom_loop.record import record
    from capture.errors import CaptureError
    from capture.optim.rules import UnitUpdate
    from capture.parts.model_parts import ModelParts
    from capture.shifts.outliers import OutlierConfig
    from capture.store.config import StoreConfig
    from ontogeny.analyses import (
        ablate,
        activations,
        attribute,
        faithfulness,
    )
    from ontogeny.data import behaviour, bigrams, neurons
    from ontogeny.directions import directions
    from ontogeny.dynamics.quanta import quanta
    from ontogeny.dynamics.runs import compare, describe_comparison, seeds
    from ontogeny.dynamics.trajectory import trajectory
    from ontogeny.dynamics.transitions import describe_transitions, transitions
    from ontogeny.influence import influence
    from ontogeny.judging import drift, lds, suspects
    from ontogeny.neuron import Neuron
    from ontogeny.pages import report
    from ontogeny.parameters import parameter
    from ontogeny.retraining import retrain, smoothness
    from ontogeny.run import Run, open_run
    from ontogeny.silencing import silence
    from ontogeny.spectrum import spectrum
    from ontogeny.trainers.hugging_face import Callback
    from ontogeny.trainers.lightning import LightningCallback
    from ontogeny.training import capture, replay, selfcheck, verify

__all__ = [
    "AblationConfig",
    "ActivationConfig",
    "AttributionConfig",
    "BehaviourConfig",
    "BigramConfig",
    "Callback",
    "CaptureError",
    "CompareConfig",
    "Config",
    "ConfirmConfig",
    "DirectionsConfig",
    "DriftConfig",
    "FactorConfig",
    "FaithfulnessConfig",
    "InfluenceConfig",
    "JudgeConfig",
    "LightningCallback",
    "ModelParts",
    "Neuron",
    "NeuronsConfig",
    "OutlierConfig",
    "ParameterConfig",
    "Predicate",
    "QuantaConfig",
    "Run",
    "SelectionConfig",
    "SilenceConfig",
    "SpectrumConfig",
    "StoreConfig",
    "SuspectsConfig",
    "TrajectoryConfig",
    "TransitionsConfig",
    "UnitUpdate",
    "__version__",
    "ablate",
    "activations",
    "attribute",
    "behaviour",
    "bigrams",
    "capture",
    "compare",
    "describe_comparison",
    "describe_transitions",
    "directions",
    "drift",
    "faithfulness",
    "influence",
    "lds",
    "neuron_history",
    "neurons",
    "open_run",
    "parameter",
    "quanta",
    "read_config",
    "record",
    "replay",
    "report",
    "retrain",
    "seeds",
    "selfcheck",
    "silence",
    "smoothness",
    "spectrum",
    "suspects",
    "tally_windows",
    "token_history",
    "trajectory",
    "transitions",
    "verify",
]

_HOMES = {
    "analysis.ablation.config": ("AblationConfig",),
    "analysis.activations.config": ("ActivationConfig",),
    "analysis.attribution.config": ("AttributionConfig",),
    "analysis.behaviour.behaviour": ("BehaviourConfig",),
    "analysis.behaviour.predicates": ("Predicate",),
    "analysis.bigrams.bigrams": ("BigramConfig",),
    "analysis.faithfulness.confirm": ("ConfirmConfig",),
    "analysis.faithfulness.ground_truth": ("FaithfulnessConfig",),
    "analysis.influence.config": ("InfluenceConfig",),
    "analysis.influence.directions.along": ("DirectionsConfig",),
    "analysis.influence.drift.along": ("DriftConfig",),
    "analysis.influence.judge.judge": ("JudgeConfig",),
    "analysis.influence.silencing.silencing": ("SilenceConfig",),
    "analysis.influence.suspects.suspects": ("SuspectsConfig",),
    "analysis.measures.selection": ("SelectionConfig",),
    "analysis.neurons.grouping": ("NeuronsConfig",),
    "analysis.parameters.config": ("ParameterConfig",),
    "analysis.run.tallies": ("neuron_history", "tally_windows", "token_history"),
    "analysis.spectra.config": ("SpectrumConfig",),
    "analysis.trajectory.config": ("TrajectoryConfig",),
    "analysis.transitions.config": ("TransitionsConfig",),
    "analysis.transitions.quanta.config": ("QuantaConfig",),
    "analysis.transitions.runs.compare": ("CompareConfig",),
    "capture": ("__version__",),
    "capture.config.reading": ("read_config",),
    "capture.config.records": ("FactorConfig",),
    "capture.config.settings": ("Config",),
    "capture.custom_loop.record": ("record",),
    "capture.errors": ("CaptureError",),
    "capture.parts.model_parts": ("ModelParts",),
    "capture.optim.rules": ("UnitUpdate",),
    "capture.shifts.outliers": ("OutlierConfig",),
    "capture.store.config": ("StoreConfig",),
    "ontogeny.analyses": ("ablate", "activations", "attribute", "faithfulness"),
    "ontogeny.data": ("behaviour", "bigrams", "neurons"),
    "ontogeny.dynamics.quanta": ("quanta",),
    "ontogeny.dynamics.runs": ("compare", "describe_comparison", "seeds"),
    "ontogeny.dynamics.trajectory": ("trajectory",),
    "ontogeny.dynamics.transitions": ("describe_transitions", "transitions"),
    "ontogeny.directions": ("directions",),
    "ontogeny.influence": ("influence",),
    "ontogeny.judging": ("drift", "lds", "suspects"),
    "ontogeny.neuron": ("Neuron",),
    "ontogeny.pages": ("report",),
    "ontogeny.parameters": ("parameter",),
    "ontogeny.retraining": ("retrain", "smoothness"),
    "ontogeny.run": ("Run", "open_run"),
    "ontogeny.silencing": ("silence",),
    "ontogeny.spectrum": ("spectrum",),
    "ontogeny.trainers.hugging_face": ("Callback",),
    "ontogeny.trainers.lightning": ("LightningCallback",),
    "ontogeny.training": ("capture", "replay", "selfcheck", "verify"),
}
"""Module → the public names that it defines."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ontogeny' has no attribute {name!r}")
    load_packages()
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
