"""Options of ``ontogeny attribute``, and the settings that they choose."""

import argparse
import re
from typing import TYPE_CHECKING, Any

from capture.errors import ConfigError
from cluster.options.choices import (
    ATTRIBUTION_BACKGROUNDS,
    ATTRIBUTION_EVIDENCE,
    ATTRIBUTION_FORMER_EVIDENCE,
    ATTRIBUTION_LEVELS,
    ATTRIBUTION_OUTLIERS,
    ATTRIBUTION_SELECT,
    ATTRIBUTION_WEIGHTS,
)
from cluster.options.ranges import parse_steps

if TYPE_CHECKING:
    from analysis.attribution.config import AttributionConfig
    from analysis.measures.selection import SelectionConfig
    from analysis.parameters.config import ParameterConfig

CHOICES = {
    "level": (ATTRIBUTION_LEVELS, "neuron"),
    "evidence": (ATTRIBUTION_EVIDENCE, "geometric-mean, or target"),
    "weight": (ATTRIBUTION_WEIGHTS, "count"),
    "background": (ATTRIBUTION_BACKGROUNDS, "train"),
    "select": (ATTRIBUTION_SELECT, "rate"),
    "outliers": (ATTRIBUTION_OUTLIERS, "absolute"),
}
"""Option → allowed values and the default that help shows."""
SELECTION = {"tokens": 10, "max-q": 0.05, "min-count": 20, "most-frequent": 200, "most-counted": 5}
"""Options of ``SelectionConfig`` and their defaults."""
NOT_OF_ONE_PARAMETER = (
    *("weight", "background", "outliers", "keep", "windows", "parameters", "datums", "token"),
    *("confirm", "confirm_datums"),
)
"""Options that do not go with one parameter."""
LONGEST_NAME = 64


def evidence_name(text: str) -> str:
    """Refuse a name of earlier versions with a line that gives the current one."""
    if text in ATTRIBUTION_FORMER_EVIDENCE:
        new = ATTRIBUTION_FORMER_EVIDENCE[text]
        raise argparse.ArgumentTypeError(f"{text!r} is now called {new}")
    return text


def focused_group(arguments: argparse.Namespace) -> tuple[str | None, int | None]:
    """Unit and number of ``--neuron``, or the unit of ``--unit`` alone; None for all."""
    return arguments.neuron or (arguments.unit, None)


def config_of(arguments: argparse.Namespace, *, tallies: bool) -> "AttributionConfig":
    """The settings; options that are not given take the best defaults (--study: the study's)."""
    from analysis.attribution.config import AttributionConfig

    asked = vars(arguments)
    names = {
        **{name: name for name in CHOICES},
        **{name: name for name in ("keep", "windows")},
        "max_parameters": "parameters",
        "max_datums": "datums",
    }
    values: dict[str, Any] = {ours: asked[theirs] for ours, theirs in names.items()}
    values["first_step"], values["end_step"] = parse_steps(asked["steps"])
    values["selection"] = selection_of(arguments)
    values["lifetime"] = asked["lifetime"]
    given = {name: value for name, value in values.items() if value is not None}
    if asked["study"]:
        return AttributionConfig.study(**given)
    return AttributionConfig.recommended(tallies=tallies, **given)


def selection_of(arguments: argparse.Namespace) -> "SelectionConfig":
    from analysis.measures.selection import SelectionConfig

    options = {"most" if name == "tokens" else name.replace("-", "_"): name for name in SELECTION}
    asked = {own: vars(arguments)[name.replace("-", "_")] for own, name in options.items()}
    return SelectionConfig(**{name: value for name, value in asked.items() if value is not None})


# --- one parameter --------------------------------------------------------------------------------


def asks_one_parameter(arguments: argparse.Namespace) -> bool:
    """Whether ``--level parameter`` is given with a parameter."""
    return arguments.level == "parameter" and arguments.neuron is not None


def parameter_config(arguments: argparse.Namespace) -> "ParameterConfig":
    """The settings of the question about one parameter; the defaults are the study's.

    Raises ``ConfigError`` without a unit, or for options that have no meaning here.
    """
    from analysis.parameters.config import ParameterConfig

    asked, (unit, index) = vars(arguments), arguments.neuron
    for name in NOT_OF_ONE_PARAMETER:
        if asked[name] not in (None, False):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, "does not go with one parameter", "Leave it out")
    first, end = parse_steps(asked["steps"])
    chosen = {name: asked[name] for name in ("evidence", "select") if asked[name] is not None}
    return ParameterConfig(
        unit=unit,
        index=index,
        first_step=first,
        end_step=end,
        selection=selection_of(arguments),
        lifetime=asked["lifetime"],
        **chosen,
    )


def parameter_set(config: "ParameterConfig") -> str:
    """The name of the set of tables about a parameter, unless ``--name`` gives another."""
    return re.sub("[^A-Za-z0-9_-]+", "-", f"{config.unit}-{config.index}")[-LONGEST_NAME:]
