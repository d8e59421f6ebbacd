"""Train one configuration with several seeds, each run in a process of its own."""

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from analysis.jobs.sweep import Sweep
from capture.config.reading import make_config
from capture.config.settings import Config, to_values
from capture.errors import ConfigError
from capture.training.loop import capture_run

Vary = Literal["seed", "weights", "order"]
VARY: tuple[Vary, ...] = get_args(Vary)
SETTINGS = {"seed": "run.seed", "weights": "model.seed", "order": "training.order_seed"}
"""The setting that takes the seed. run.seed also is that of dropout."""
Report = Callable[[int, int], None]
"""Called with runs finished and all runs."""


def along_axis(config: Config, axis: str) -> list[Config]:
    """Return a configuration for each value of ``KEY=V1,V2[,…]``, at ``URI-seeds/KEY-VALUE``.

    Raises ``ConfigError`` for another form, a seed as the key, and values that are named twice or
    have other characters than letters, digits, points, plus, minus and underscores.
    """
    key, _, text = axis.partition("=")
    words = text.split(",")
    plain = all(re.fullmatch(r"[\w.+-]+", word, re.ASCII) for word in words)
    if not plain or len(words) < 2 or len(set(words)) < len(words):
        example = "As in model.width=16,32,64"
        raise ConfigError("axis", f"got {axis!r}, must be KEY=VALUE,VALUE, each once", example)
    if key in ("run.uri", *SETTINGS.values()):
        raise ConfigError("axis", f"got {key}, which each run has for itself", "Choose another key")
    values = to_values(config)
    return [
        make_config(values, [f"{key}={word}", f"run.uri={config.run.uri}-seeds/{key}-{word}"])
        for word in words
    ]


def seeded_configs(
    config: Config, seeds: Sequence[int], vary: Vary, axis: str | None = None
) -> list[Config]:
    """Return a configuration for each seed, at ``URI-seeds/VARY-SEED``.

    With an ``axis`` (see ``along_axis``), a configuration for each of its values and each seed, at
    ``URI-seeds/KEY-VALUE/VARY-SEED``. Raises ``ConfigError`` for no seeds, seeds that are named
    twice, another kind of variation, and for a configuration that needs several workers.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds", f"got {list(seeds)}, must be one or more, each once")
    if vary not in VARY:
        raise ConfigError("vary", f"got {vary!r}, must be one of {', '.join(VARY)}")
    if config.workers.count > 1 or config.engine != "plain":
        problem = "asks for workers, but each seed is trained in one process"
        raise ConfigError("workers.count", problem, "Set workers.count=1 and engine=plain")
    if axis is not None:
        points = along_axis(config, axis)
        return [one for own in points for one in with_seeds(own, seeds, vary, own.run.uri)]
    return with_seeds(config, seeds, vary, f"{config.run.uri}-seeds")


def with_seeds(config: Config, seeds: Sequence[int], vary: Vary, place: str) -> list[Config]:
    """Return a configuration for each seed, at ``PLACE/VARY-SEED``."""
    kept = [] if vary == "seed" else apart(config)
    values = to_values(config)
    return [
        make_config(values, [*kept, f"{SETTINGS[vary]}={seed}", f"run.uri={place}/{vary}-{seed}"])
        for seed in seeds
    ]


def apart(config: Config) -> list[str]:
    """Return overrides that fix both seeds at what they are."""
    return [f"model.seed={config.weight_seed}", f"training.order_seed={config.order_seed}"]


def train_seeds(configs: Sequence[Config], report: Report, *, sweep: Sweep) -> list[str]:
    """Train each configuration and return where the runs are; raise what ``capture_run`` raises.

    ``sweep`` decides on which machines they train. A run that exists is resumed, and a finished one
    is left as it is.
    """
    found: list[str] = []
    for uri in sweep(Training(secrets.token_hex(8)), configs):
        found.append(uri)
        report(len(found), len(configs))
    return found


@dataclass(frozen=True)
class Training:
    """The work on each configuration, as ``Sweep`` takes it."""

    group: str
    """Name under which all attempts hold the runs' leases, so that one takes over a lost one's."""

    def to(self, device: str) -> "Training":
        """Ignores the device: the configuration chooses it."""
        return self

    def __call__(self, config: Config, /) -> str:
        owner = f"{self.group}.{secrets.token_hex(4)}"
        capture_run(config, lambda event: None, resume=True, owner=owner)
        return config.run.uri
