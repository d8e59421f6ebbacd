"""Builds a run's engine (model, optimizer, captured units) and restores it to a marker's step."""

from collections.abc import Collection
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from capture.config.records import RecordKind
from capture.config.settings import CaptureConfig, Config
from capture.corpus.config import WORDS
from capture.device import choose_device
from capture.engine.causality import require_causal, require_no_randomness
from capture.engine.deepspeed_engine import DeepSpeedEngine
from capture.engine.deepspeed_setup import require_installed
from capture.engine.engine import Engine
from capture.engine.step_plan import StepPlan
from capture.errors import ConfigError
from capture.format import checkpoint
from capture.format.markers import Marker
from capture.gradients.examination import Examination, examine_units
from capture.gradients.factors import choose_units
from capture.gradients.layout import Layout
from capture.gradients.vmap_fallback import unsplit_error
from capture.interventions.config import require_datums
from capture.interventions.suppression import find_suppression
from capture.models.huggingface import (
    HFModel,
    build_hf_model,
    layers_pattern,
    least_vocabulary,
    load_weights,
    resolve_config,
)
from capture.models.mlp import mlp_weights
from capture.models.transformer import ModelConfig, build_model
from capture.optim.schedule import require_fit
from capture.process_group import SINGLE_PROCESS, DistributedGroup, Group
from capture.store import Store


def complete_config(config: Config) -> Config:
    """Return the configuration with the values that depend on a Hugging Face model filled in.

    These are the model's family and settings, and the default units of capture and tallies.
    """
    if config.model.kind != "hf":
        return config
    hf = resolve_config(config.model.hf)
    if hf.path and config.corpus.tokenizer == WORDS:
        problem = f"got {WORDS}, but {hf.path} was trained with a tokenizer of its own"
        raise ConfigError("corpus.tokenizer", problem, f"Set corpus.tokenizer={hf.path}")
    config = replace(config, model=replace(config.model, hf=hf))
    capture, plain = config.capture, CaptureConfig()
    least = least_vocabulary(hf)
    model = build_hf_model(hf, vocabulary=least, window=config.corpus.window, seed=0, device="meta")
    units = [layers_pattern(model)] if capture.units == plain.units else capture.units
    capture = replace(capture, units=without_frozen(model, units))
    if capture.tally.units == plain.tally.units:
        capture = replace(capture, tally=replace(capture.tally, units=default_tally_units(model)))
    return replace(config, capture=capture)


def without_frozen(model: nn.Module, patterns: list[str]) -> list[str]:
    """Return the patterns, or the names of all trained units if they also match others.

    Some families hold parameters that are never trained, such as the biases of afmoe's router; they
    have no shifts. Raises ``ConfigError`` if no unit is trained.
    """
    units = choose_units(model, patterns)
    trained = [name for name, unit in units.items() if unit.requires_grad]
    if not trained:
        problem = f"match only parameters that are not trained ({next(iter(units))}, …)"
        raise ConfigError("capture.units", problem)
    return patterns if len(trained) == len(units) else trained


def default_tally_units(model: nn.Module) -> list[str]:
    """Return the patterns of units that have tallies unless the configuration names others."""
    named = "*.mlp.*.weight"
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if any(fnmatchcase(name, named) for name in shapes):
        return [named]
    return mlp_weights(shapes) or [named]


def build_engine(
    plan: StepPlan,
    kinds: Collection[RecordKind],
    group: Group = SINGLE_PROCESS,
    *,
    beginning: bool = False,
) -> Engine:
    """Return an engine with random weights of the run's seed that captures what ``kinds`` need.

    ``beginning``: load the pretrained weights that the run starts from, if any. This is not needed
    if a checkpoint is restored afterwards.

    A run with ``engine: deepspeed`` gets a DeepSpeed engine only within a process group; a single
    process replays its steps with the plain engine. Raises ``UnitError`` if a unit cannot be
    captured.
    """
    config = plan.config
    model = build_model(
        config.model,
        vocabulary=len(plan.corpus.vocabulary.tokens),
        window=config.corpus.window,
        seed=config.weight_seed,
        scored=config.corpus.scored,
    )
    require_known_targets(config.model, plan)
    if beginning and isinstance(model, HFModel):
        load_weights(model, config.model.hf)
    model.to(choose_device(config.training.device))
    if beginning and isinstance(model, HFModel):
        require_causal(model, first_datum(plan, model))
        require_no_randomness(model, first_datum(plan, model))
    require_fit(config.training.schedule, plan.num_steps)
    require_datums(config.intervention, len(plan.corpus.train))
    suppression = find_suppression(
        model, config.intervention, first_datum(plan, model), plan.num_steps
    )
    units, examined = choose_captured_units(model, plan)
    units = units if kinds else {}
    if config.engine == "deepspeed" and isinstance(group, DistributedGroup):
        require_installed()
        return DeepSpeedEngine(
            model,
            config.training,
            config.deepspeed,
            units=units,
            seed=config.run.seed,
            num_steps=plan.num_steps,
            window_axes=examined.window_axes,
            suppression=suppression,
            group=group,
        )
    return Engine(
        model,
        config.training,
        units=units,
        last_only=bool(units) and config.capture.loss_positions == "last",
        seed=config.run.seed,
        num_steps=plan.num_steps,
        vmap_units=examined.unsplit,
        window_axes=examined.window_axes,
        suppression=suppression,
        group=group,
    )


def require_known_targets(model: ModelConfig, plan: StepPlan) -> None:
    """Raise ``ConfigError`` if a perceptron has too few classes, or the corpus has no images."""
    if model.kind != "mlp":
        return
    if plan.config.corpus.kind not in ("digits", "mnist"):
        problem = f"got mlp, which classifies images, but corpus.kind is {plan.config.corpus.kind}"
        raise ConfigError("model.kind", problem, "Set model.kind=transformer")
    splits = (plan.corpus.train, plan.corpus.validation, plan.corpus.test)
    largest = max(int(datums.scored_NT.max()) for datums in splits if datums is not None)
    if largest >= model.classes:
        problem = f"got {model.classes}, but the images have labels up to {largest}"
        raise ConfigError("model.classes", problem, f"Set model.classes={largest + 1}")


def choose_captured_units(
    model: nn.Module, plan: StepPlan
) -> tuple[dict[str, nn.Parameter], Examination]:
    """Return the configured units, and how the model uses them.

    Runs one datum through the model. Raises ``ConfigError`` for impossible settings, and
    ``UnitError`` for a unit without factors unless capture.fallback is vmap.
    """
    config = plan.config.capture
    units = choose_units(model, config.units)
    config.outliers.require_available(Layout.of(units).sizes, "capture.outliers.k")
    examined = examine_units(model, units, first_datum(plan, model))
    if examined.unsplit and config.fallback == "none":
        raise unsplit_error(model, examined.unsplit)
    return units, examined


def first_datum(plan: StepPlan, model: nn.Module) -> Tensor:
    """Return the tokens of the first datum on the model's device, [1, T]."""
    token_1T = torch.from_numpy(plan.corpus.train.token_NT[:1]).long()
    return token_1T.to(next(model.parameters()).device)


def restore(engine: Engine, store: Store, marker: Marker) -> None:
    """Restore the engine's weights and optimizer state at the end of a marker's steps."""
    tensors = checkpoint.read_checkpoint(store, marker.end_step, marker)
    engine.restore(tensors, marker.end_step, f"{store.uri}/{checkpoint.key_of(marker.end_step)}")
