"""Configuration of ``attribute``: level, evidence, background and selection of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, get_args

from analysis.attribution.outlier_notions import NOTIONS, Notion
from analysis.attribution.outlier_weights import ROW_EVIDENCE, WEIGHTS, Weight
from analysis.levels import LEVELS, Level
from analysis.measures.selection import METHODS, Method, SelectionConfig
from capture.errors import ConfigError, at_least

Evidence = Literal[
    "window",
    "target",
    "input",
    "update-norm",
    "ablation-estimate",
    "geometric-mean",
    "input-update-norm",
    "input-ablation-estimate",
]
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)
FORMER_EVIDENCE: dict[str, Evidence] = {
    "mass": "update-norm",
    "use": "ablation-estimate",
    "mass-use": "geometric-mean",
    "input-mass": "input-update-norm",
    "input-use": "input-ablation-estimate",
}
"""Values of earlier versions → what they are called now."""
Background = Literal["unit", "train"]
BACKGROUNDS: tuple[Background, ...] = get_args(Background)


@dataclass(frozen=True, kw_only=True)
class AttributionConfig:
    """Configuration of one attribution."""

    level: Level = "neuron"
    """Groups of parameters to attribute (``analysis.levels``). With *parameter*, a neuron takes
    the tokens of its analysed parameters, as in the study."""
    evidence: Evidence = "target"
    """Where a token's weight comes from. Outlier rows count for the token to be predicted at the
    row's position (target), for the token at that position (input), or for all tokens of the datum
    (window). Tallies sum over every position of every neuron: the norm of the update that the
    position contributed to the neuron (update-norm), the first-order estimate of the loss increase
    if the neuron were ablated (ablation-estimate), or √(update norm · |ablation estimate|)
    (geometric-mean). Tallies are by target token, those named input-… by input token."""
    weight: Weight = "count"
    """Weight of a row: 1 (count), |shift| (shift), or |shift · parameter at the start of the
    segment| (effect)."""
    background: Background = "unit"
    """What a group is compared with: the rest of its family (unit; see ``analysis.levels``), or the
    tokens of all datums that have outliers (train; with tallies, of all positions)."""
    select: Method = "odds"
    """Statistic that chooses tokens (``analysis.measures.selection``)."""
    outliers: Notion = "absolute"
    """Which recorded rows count as outliers (``analysis.attribution.outlier_notions``)."""
    lifetime: bool = False
    """False: shifts of one step, as recorded. True: lifetime shifts, what each gradient still
    contributes to the last weights. Outliers are then the largest lifetime shifts, and update norms
    those of lifetime shifts; the run is replayed once for them (``analysis.lifetime``)."""
    keep: float = 0.25
    """Share of the recorded rows that counts, by notions other than absolute."""
    first_step: int = 0
    """First step that counts."""
    end_step: int | None = None
    """One past the last step that counts (None: all)."""
    windows: int = 5
    """Number of windows of equal length that the steps are divided into, to show when a token moved
    the group. Tallies have windows of their own."""
    max_parameters: int = 5000
    """Number of parameters analysed with level *parameter*: the weights with the most rows."""
    max_datums: int = 2000
    """Datums reported per group: those with the most weight."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    @classmethod
    def study(cls, **changes: Any) -> "AttributionConfig":
        """Return the configuration of the published study."""
        study = cls(level="parameter", evidence="window", select="study", background="train")
        return replace(study, **changes)

    @classmethod
    def recommended(cls, *, tallies: bool, **changes: Any) -> "AttributionConfig":
        """Return the configuration that agreed best with ablation in the study's setting.

        ``tallies`` says whether the run has them. They cover neurons only, over all steps of
        training; in other cases, target tokens of outliers are the next best.
        """
        best = cls(evidence="target", background="train", select="rate")
        plain = vars(cls())
        rows_only = ("weight", "outliers", "level", "first_step", "end_step")
        if tallies and all(changes.get(name, plain[name]) == plain[name] for name in rows_only):
            best = replace(best, evidence="geometric-mean")
        return replace(best, **changes)

    @property
    def reads_tallies(self) -> bool:
        return self.evidence not in ROW_EVIDENCE

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                self.refuse_choice(name, allowed)
        for name in ("windows", "max_parameters", "max_datums"):
            at_least(f"attribution.{name}", getattr(self, name), 1)
        if not 0 < self.keep <= 1:
            refuse("keep", self.keep, "must be above 0 and at most 1")
        at_least("attribution.first_step", self.first_step, 0)
        if self.end_step is not None and self.end_step <= self.first_step:
            refuse("end_step", self.end_step, f"must be above the first step, {self.first_step}")
        if self.reads_tallies:
            self.check_tallies()
        if self.lifetime and self.evidence.endswith("ablation-estimate"):
            remedy = "Leave lifetime out, or choose the evidence update-norm or geometric-mean"
            refuse("evidence", self.evidence, "which has no shifts, for lifetime shifts", remedy)

    def refuse_choice(self, name: str, allowed: Sequence[str]) -> NoReturn:
        found = getattr(self, name)
        if name == "evidence" and found in FORMER_EVIDENCE:
            refuse(name, found, f"which is now called {FORMER_EVIDENCE[found]}")
        refuse(name, found, f"must be one of {', '.join(allowed)}")

    def check_tallies(self) -> None:
        """Raise ``ConfigError`` for settings that tallies lack: single rows, other groups."""
        remedy = f"Other settings need one of the evidences {', '.join(ROW_EVIDENCE)}"
        for name, only in (("level", "neuron"), ("weight", "count"), ("outliers", "absolute")):
            if getattr(self, name) != only:
                wanted = f"with evidence {self.evidence} it must be {only}"
                refuse(name, getattr(self, name), wanted, remedy)


CHOICES = {
    "level": LEVELS,
    "evidence": EVIDENCE,
    "weight": WEIGHTS,
    "background": BACKGROUNDS,
    "select": METHODS,
    "outliers": NOTIONS,
}


def refuse(name: str, found: object, wanted: str, remedy: str = "") -> NoReturn:
    raise ConfigError(f"attribution.{name}", f"got {found}, {wanted}", remedy)
