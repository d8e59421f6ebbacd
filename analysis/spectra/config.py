"""What is asked of a spectrum."""

from dataclasses import dataclass
from typing import Literal, get_args

from analysis.spectra.concentration import CUTOFF
from analysis.spectra.gram import Treatment
from capture.errors import ConfigError, at_least, at_most

What = Literal["gradients", "updates", "weights"]
MOST_DRAWS = 10_000
WHAT: tuple[What, ...] = get_args(What)


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig:
    """Which matrix parameters × steps, what is done to it, and what is reported."""

    what: What = "gradients"
    """gradients: of the batch's loss, before clipping; updates: changes of the weights; weights:
    as they are after each step."""
    units: tuple[str, ...] = ()
    """Glob patterns of captured parameters; empty: all."""
    steps: tuple[int, int | None] = (0, None)
    """First step, and the one after the last; None: the end of the run."""
    every: int = 1
    """Take every so many-th step of the range, for a run of more steps than fit in one matrix."""
    skip: int = 0
    """First of these steps that are left out of the decomposition."""
    subtract_mean: bool = False
    """Subtract each parameter's mean over the steps."""
    unit_length: bool = False
    """Scale every step to length 1."""
    cutoff: float = CUTOFF
    """Singular values above this share of the largest are counted."""
    directions: int = 5
    """Directions that are described by steps, neurons and datums."""
    datums: int = 10
    """Strongest datums of each direction; 0 leaves them out, which saves a pass over the run."""
    sample: int = 400
    """Random steps of each sample of the sampled form; at most half of the steps are taken."""
    repeats: int = 10
    """Samples of the sampled form."""
    draws: int = 5
    """Draws of each null."""
    low_rank: tuple[int, ...] = ()
    """Train again with updates projected on the first so many directions; one training for each,
    and ``draws`` for as many random directions of the same space."""
    seed: int = 0
    """Seed of samples, nulls and random directions."""

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise ConfigError("spectrum.what", f"got {self.what!r}, wanted {', '.join(WHAT)}")
        for name, least in (
            ("every", 1),
            ("skip", 0),
            ("directions", 1),
            ("datums", 0),
            ("seed", 0),
        ):
            at_least(f"spectrum.{name}", getattr(self, name), least)
        for name in ("sample", "repeats", "draws"):
            at_least(f"spectrum.{name}", getattr(self, name), 2)
        for name in ("repeats", "draws"):
            at_most(f"spectrum.{name}", getattr(self, name), MOST_DRAWS)
        if not 0 < self.cutoff < 1:
            raise ConfigError("spectrum.cutoff", f"got {self.cutoff}, must be between 0 and 1")
        for count in self.low_rank:
            at_least("spectrum.low_rank", count, 1)
        if self.low_rank and self.what == "weights":
            problem = "needs directions of gradients or updates, not of weights"
            raise ConfigError("spectrum.low_rank", problem)

    @property
    def treatment(self) -> Treatment:
        return Treatment(
            skip=self.skip, subtract_mean=self.subtract_mean, unit_length=self.unit_length
        )
