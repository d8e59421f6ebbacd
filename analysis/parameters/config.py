"""Settings of the question about one parameter."""

from dataclasses import dataclass, field

from analysis.attribution.outlier_weights import ROW_EVIDENCE, RowEvidence
from analysis.measures.selection import METHODS, Method, SelectionConfig
from capture.errors import ConfigError, at_least


@dataclass(frozen=True, kw_only=True)
class ParameterConfig:
    """Settings of the question about one parameter. The defaults are the study's."""

    unit: str
    """Name of the unit, as in layers.2.linear1.weight."""
    index: int
    """Flat (row-major) index into the unit."""
    evidence: RowEvidence = "window"
    """Tokens that an outlier row counts for: all tokens of its datum (window), the token to be
    predicted at its position (target), or the token there (input)."""
    select: Method = "study"
    """Statistic that chooses tokens (``analysis.measures.selection``)."""
    first_step: int = 0
    """First step that counts."""
    end_step: int | None = None
    """One past the last step that counts (None: all)."""
    lifetime: bool = False
    """Whether shifts are lifetime shifts (``analysis.lifetime``), not those of one step."""
    seed: int = 0
    """Seed of the random draws that show what chance gives."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        for name, allowed in (("evidence", ROW_EVIDENCE), ("select", METHODS)):
            if (found := getattr(self, name)) not in allowed:
                problem = f"got {found}, must be one of {', '.join(allowed)}"
                raise ConfigError(f"parameter.{name}", problem)
        at_least("parameter.index", self.index, 0)
        at_least("parameter.first_step", self.first_step, 0)
        if self.end_step is not None and self.end_step <= self.first_step:
            problem = f"got {self.end_step}, must be above the first step, {self.first_step}"
            raise ConfigError("parameter.end_step", problem)
