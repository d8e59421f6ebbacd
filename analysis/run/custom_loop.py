"""Properties of a run of a custom training loop that its configuration does not give.

Such a run has no model that this project could build, and its datums may have numbers only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from analysis.run.scan import REMEDY, Shard, read_all
from capture.config.reading import make_config
from capture.config.settings import Config
from capture.errors import ConfigError, RunError, ShardError
from capture.format import checkpoint
from capture.format.markers import Marker
from capture.format.run_yaml import KEY
from capture.gradients.layout import Layout
from capture.optim.optimizer_config import OptimizerConfig
from capture.shards.schema import STEPS
from capture.store import Store

DATUMS = pa.schema([STEPS.field("datums")])


@dataclass(frozen=True)
class UnitSettings:
    """Settings of the optimizer for one unit."""

    optimizer: OptimizerConfig
    rate: float = 1.0
    """Learning rate, divided by the one that is recorded, of the first unit."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """All settings of an optimizer that ``OptimizerConfig`` does not describe."""


def read_layout(
    store: Store, config: Config, provenance: Mapping[str, Any], start: Marker
) -> Layout:
    """Return the units named in the configuration, with shapes from the first checkpoint.

    Raises ``ShardError`` for a unit that the checkpoint lacks.
    """
    weights = checkpoint.read_checkpoint(store, 0, start)
    unknown = [name for name in config.capture.units if name not in weights]
    if unknown:
        where = f"{store.uri}/{checkpoint.key_of(0)}"
        raise ShardError(where, f"lacks {unknown[0]}, which run.yaml names", REMEDY)
    transposed = provenance.get("transposed")
    known = map(str, transposed if isinstance(transposed, list) else ())
    return Layout.of({name: weights[name] for name in config.capture.units}, known)


def read_settings(uri: str, provenance: Mapping[str, Any]) -> dict[str, UnitSettings]:
    """Return the settings of units whose parameter group is not that of the first unit.

    Raises ``ShardError`` if ``run.yaml`` does not describe them as it should.
    """
    config, found = provenance["config"], {}
    where = f"{uri}/{KEY}"
    try:
        for group in provenance.get("parameter_groups", []):
            training = config["training"] | {"optimizer": group["optimizer"]}
            own = make_config(config | {"training": training}, where=where).training.optimizer
            options = dict(group.get("settings", {}))
            settings = UnitSettings(own, float(group["rate"]), options)
            found |= dict.fromkeys(map(str, group["units"]), settings)
    except (ConfigError, TypeError, KeyError, ValueError) as error:
        raise ShardError(where, "is not readable: its parameter_groups", REMEDY) from error
    return found


def count_datums(steps: list[Shard]) -> int:
    """Return one more than the largest datum number."""
    datums = read_all(steps, DATUMS)["datums"].combine_chunks().flatten()
    return 1 + max(datums.to_numpy(), default=-1)


def number_texts(count: int) -> pa.Array:
    """Return texts for datums that have none: their numbers."""
    return pa.array(list(map(str, range(count))), pa.string())


def no_model_error(uri: str) -> RunError:
    """The error of a question that a model passed by the user would answer."""
    problem = "was recorded in a custom training loop, and only its code can build the model"
    remedy = "Pass it: open_run(…, model=…), or --model MODULE:FUNCTION"
    return RunError(uri, problem, remedy)


def unbuilt_model_error(uri: str) -> RunError:
    """The error of a question that takes no model of the user."""
    problem = "was recorded in a custom training loop, and only its code can build the model"
    remedy = "This needs a run of ontogeny capture. A model of yours can be passed to ablate, "
    remedy += "activations, attribute, faithfulness, trajectory, quanta and run.parted"
    return RunError(uri, problem, remedy)


def instead_of_replay(*, recorded: bool) -> str:
    """Say what a run whose steps cannot be replayed can answer; ``recorded``: it has factors."""
    if recorded:
        remedy = "Its factors give gradients, lifetime shifts, spectra of gradients and path "
        remedy += "influence in the steps that have factors"
    else:
        remedy = "Record factors while it trains: ontogeny.record or ontogeny.Callback(…, factors="
        remedy += "ontogeny.FactorConfig(enabled=True)). They give gradients, lifetime shifts, "
        remedy += "spectra of gradients and path influence"
    return f"{remedy}. What replays steps needs a run of ontogeny capture"
