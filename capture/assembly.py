"""A run's model and optimizer: built from its plan, or put back to where a marker left them."""

from collections.abc import Collection

import torch

from capture import checkpoint
from capture.engine import Engine, choose_device
from capture.errors import ConfigError
from capture.factors import choose_units
from capture.gradients import Layout
from capture.markers import Marker
from capture.model import fresh_model
from capture.plan import Plan
from capture.records import RecordKind
from capture.schedule import require_fit
from capture.store import Store
from capture.tape import Tape


def build_engine(plan: Plan, kinds: Collection[RecordKind]) -> Engine:
    """A model with the run's initial weights, and what is captured of it to record these kinds."""
    config = plan.config
    model = fresh_model(
        config.model,
        vocabulary=len(plan.corpus.vocabulary.tokens),
        window=config.corpus.window,
        seed=config.run.seed,
    )
    model.to(choose_device(config.training.device))
    units = choose_units(model, config.capture.units)
    size, k = Layout.of(units).size, config.capture.outliers.k
    if k > size:
        problem = f"got {k}, must be at most {size}, the number of captured parameters"
        raise ConfigError("capture.outliers.k", problem)
    require_fit(config.training.schedule, plan.num_steps)
    units = units if kinds else {}
    return Engine(
        model,
        config.training,
        units=units,
        last_only=bool(units) and config.capture.loss_positions == "last",
        seed=config.run.seed,
        num_steps=plan.num_steps,
    )


def rehearse(engine: Engine, plan: Plan) -> None:
    """Send one datum through the model; raises ``UnitError`` if a unit cannot be captured."""
    token_1T = torch.from_numpy(plan.corpus.train.token_NT[:1]).long().to(engine.device)
    with Tape(choose_units(engine.model, plan.config.capture.units)) as tape:
        engine.model(token_1T)
    tape.factors()


def restore(engine: Engine, store: Store, marker: Marker) -> None:
    """Put the engine back to the end of a marker's steps: weights and optimizer."""
    tensors = checkpoint.read_checkpoint(store, marker.end_step, marker)
    engine.restore(tensors, marker.end_step, f"{store.uri}/{checkpoint.key_of(marker.end_step)}")
