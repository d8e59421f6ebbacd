"""Settings of ``ontogeny influence``."""

from dataclasses import dataclass

from analysis.influence.baselines.methods import BASELINES
from capture.errors import ConfigError, at_least

SWEEPS = ("unrolled", "path")
"""Methods that go through the steps of training, last to first."""
METHODS = (*SWEEPS, *BASELINES)
PREVIEWS = ("outliers",)
"""Methods that answer at once from a part of the record, to be confirmed by a sweep."""


@dataclass(frozen=True, kw_only=True)
class InfluenceConfig:
    """How to compute the influence of training datums on queries."""

    method: str = "unrolled"
    """unrolled: what the query would be without a datum; path: what each datum did to it; or a
    baseline."""
    first_step: int = 0
    """First step whose datums count; only for unrolled and path."""
    end_step: int | None = None
    """Step after the last; path asks for the change of the query up to there, so the query is taken
    there. By default the end of the run."""
    windows: int = 5
    """Parts of training to report separately."""
    positions_of: int = 20
    """Datums on each side (most raised, most lowered) whose influence is kept by position."""
    units: bool = False
    """Also share path influence among the captured units; costs about as much again for each."""
    factors: bool = False
    """Read stored factors for path influence instead of replaying steps. It is then not shared
    among the positions of a datum. Runs of a custom training loop have no other way."""
    checks: int = 2
    """Retrainings without a random tenth of the datums that confirm unrolled influence; 0: none."""
    max_bytes: int | None = None
    """Bound on the memory for states of training; by default 2 GiB."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            problem = f"got {self.method!r}, must be one of: {', '.join(METHODS)}"
            raise ConfigError("influence.method", problem)
        at_least("influence.first_step", self.first_step, 0)
        at_least("influence.windows", self.windows, 1)
        at_least("influence.positions_of", self.positions_of, 0)
        at_least("influence.checks", self.checks, 0)
        if self.end_step is not None:
            at_least("influence.end_step", self.end_step, self.first_step + 1)
        if self.max_bytes is not None:
            at_least("influence.max_bytes", self.max_bytes, 1)
        if self.units and self.method != "path":
            problem = f"is for method path, not {self.method}"
            raise ConfigError("influence.units", problem, "Leave it out")
        if self.factors and self.method != "path":
            problem = f"is for method path, not {self.method}"
            raise ConfigError("influence.factors", problem, "Leave it out")
        if self.method not in SWEEPS and (self.first_step, self.end_step) != (0, None):
            problem = f"is for methods {' and '.join(SWEEPS)}, not {self.method}"
            raise ConfigError("influence.first_step", problem, "Leave out the steps")
