"""Choose metrics by name, among those that the model and the text can give.

``module:function`` names a metric of the user's own.
"""

import importlib
import sys
from collections.abc import Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from analysis.trajectory.components.measured import OUTPUTS
from analysis.trajectory.metrics.catalogue import CATALOGUE
from analysis.trajectory.metrics.fourier import LEAST_MODULUS
from analysis.trajectory.metrics.heads.paths import MOST_PAIRS, all_paths
from analysis.trajectory.metrics.metric import Described, Metric, Need
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import LEAST_REPEATED_WINDOW, Text
from capture.errors import ConfigError

NOT_ASKED = "takes long; name it"


@dataclass(frozen=True)
class Chosen:
    """Metrics to measure, the names of rows to keep, and what was left out for lack of a need."""

    metrics: tuple[Metric, ...]
    names: frozenset[str]
    omitted: dict[str, str]
    """Name → why it cannot be measured."""


def choose(wanted: Sequence[str], model: Observed, text: Text) -> Chosen:
    """Return the metrics of these names; all that the model and the text can give if empty.

    Raises ``ConfigError`` for an unknown name, and for a named metric that cannot be measured.
    """
    own = [own_metric(name) for name in wanted if ":" in name]
    has = available(model, text)
    lacking = {
        name: f"needs {', '.join(described(metric.needs - has))}"
        for metric in CATALOGUE
        if metric.needs - has
        for name in metric.names
    }
    known = [name for metric in CATALOGUE for name in metric.names]
    able = [name for name in known if name not in lacking]
    slow = {name for metric in CATALOGUE if metric.asked for name in metric.names}
    if text.paths:
        slow.discard("path_patching")
    for name in wanted:
        require_known(name, known)
        if name in lacking:
            problem = f"{lacking[name]}, which this model or text does not have"
            raise ConfigError(f"metric {name}", problem, f"It can give: {', '.join(able)}")
    names = {name for name in wanted if ":" not in name} if wanted else {*able} - slow
    if not names and not own:
        raise ConfigError("--metrics", "none can be measured on this model without text")
    metrics = [metric for metric in CATALOGUE if names & set(metric.names)]
    unasked = {name: NOT_ASKED for name in able if name in slow}
    omitted = {} if wanted else lacking | unasked
    return Chosen((*metrics, *own), frozenset(names), omitted)


def available(model: Observed, text: Text) -> frozenset[Need]:
    """Return what metrics can use."""
    found: set[Need] = set(model.parts)
    if text.held_out:
        found.add("held-out text")
    if text.training:
        found.add("training text")
    if text.window >= LEAST_REPEATED_WINDOW and text.num_tokens >= 4:
        found.add("repeated tokens")
    if text.modulus and text.modulus >= LEAST_MODULUS:
        found.add("modular addition")
    if text.concept.completions:
        found.add("prompts with completions (--concept)")
    if text.concept.texts:
        found.add("texts with labels (--concept)")
    if text.window >= 20:
        found.add("windows of 20 tokens")
    if text.sentences:
        found.add("sentences with dependencies (--dependencies)")
    if text.paths or (model.parted and len(all_paths(model.parted)) <= MOST_PAIRS):
        found.add("64 pairs of components at most (--paths)")
    return frozenset(found)


def described(needs: Set[Need]) -> list[str]:
    """Return what metrics need as phrases for a message, sorted."""
    more: dict[Need, str] = {"modular addition": f" with a modulus of at least {LEAST_MODULUS}"}
    return sorted(need + more.get(need, "") for need in needs)


def require_known(name: str, known: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a name that is neither a metric nor ``module:function``."""
    if name in known or ":" in name:
        return
    if name in OUTPUTS:
        problem = f"got {name!r}, which --components K measures, beside any --metrics"
        raise ConfigError("--metrics", problem, "Leave it out, and give --components 3")
    close = get_close_matches(name, known, n=1)
    remedy = f"Did you mean {close[0]}? " if close else ""
    problem = f"got {name!r}, which is no metric"
    raise ConfigError("--metrics", problem, f"{remedy}Choose from: {', '.join(known)}")


def own_metric(name: str) -> Metric:
    """Return a metric of the user's own; raises ``ConfigError`` if it cannot be loaded."""
    module, _, attribute = name.partition(":")
    here, before = str(Path.cwd()), list(sys.path)
    sys.path.insert(0, here)
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(name, f"cannot be loaded ({error})", f"Looked from {here}") from error
    finally:
        sys.path[:] = before
    if not callable(function):
        raise ConfigError(name, f"is no function but {type(function).__name__}")
    measure: Any = function
    meaning = (function.__doc__ or attribute).strip().splitlines()[0]
    return Metric(measure, (Described(name, "", meaning),), own=True)
