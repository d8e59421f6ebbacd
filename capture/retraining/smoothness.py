"""Whether counterfactuals can hold, measured before training: do small changes grow?

The first steps of a run are taken several times side by side in float64: once as they are, and once
from initial weights that differ by a tiny random change in each of several directions. If the
distance grows by a constant factor per step, training is chaotic, and no method can say what would
have been. One more training in float32 shows how far rounding alone carries the weights.

Smooth training is necessary for counterfactuals, but not sufficient: the changes here are random,
and tiny, while the removal of datums moves the weights along gradients, and further. Tiny changes
of the data are no better measure: one of 1e-7 in the weights of the losses grew 4e4 times in steps
10 to 25 of an AdamW run whose influences retraining confirms. ``analysis.influence.confirmation``
tests removals themselves.

Shapes: K direction, S step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch

from capture.config.settings import Config, require_capture_loop
from capture.corpus.datums import load_corpus
from capture.device import deterministic
from capture.engine.build import complete_config
from capture.engine.left_out import batch_of
from capture.engine.observer import to_device
from capture.engine.step_plan import StepPlan
from capture.errors import InfluenceError, at_least
from capture.estimates.growth import LIMIT, Exponent, exponent_of, reach
from capture.retraining.weighted_engine import WeightedEngine

SATURATED = 1e-3
"""Distances above this share of the weights' norm no longer grow as small changes do."""
SETTLING = 0.25
"""Share of the steps that are left out of the exponent: in these a random change turns toward the
directions that grow."""
Verdict = Literal["smooth", "chaotic", "unclear"]
Report = Callable[[int, int], None]
"""Called after every step with the number of steps taken and to take."""


@dataclass(frozen=True, kw_only=True)
class SmoothnessConfig:
    """How smoothness is measured."""

    steps: int = 100
    """Steps to take, after those of the warm-up; fewer if the run has fewer."""
    directions: int = 3
    """Number of random changes of the initial weights."""
    size: float = 1e-9
    """Norm of such a change, relative to that of the weights."""
    seed: int = 0
    """Seed of the changes."""

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 8)
        at_least("directions", self.directions, 1)


@dataclass(frozen=True, eq=False)
class Smoothness:
    """How small changes of the initial weights grew."""

    exponent: Exponent
    """Growth of the distance per step, after the settling steps; mean over directions."""
    distance_KS: np.ndarray
    """‖θ_changed − θ‖ / ‖θ‖ after each step; ends where the first direction is saturated."""
    size: float
    """‖θ_changed − θ‖ / ‖θ‖ before the first step."""
    clipped: float
    """Share of the steps whose gradient was clipped."""
    rounding: float
    """‖θ of float32 − θ of float64‖ / ‖θ‖ after the last step that was taken."""
    run_steps: int
    """Number of steps of the whole run."""
    equal_steps: float
    """Number of steps at the learning rate of the measured ones that move the weights as far as the
    whole run: Σ learning rate / mean learning rate measured. Growth is taken to be proportional to
    the learning rate, as it is where training follows the gradient's flow."""

    @property
    def growth(self) -> float:
        """Largest growth of the distance over the steps taken, over directions."""
        return float(self.distance_KS[:, -1].max() / self.size)

    @property
    def reach(self) -> float:
        """Number of steps over which changes grow by ``LIMIT``; infinity if they do not grow."""
        return reach(self.exponent)

    @property
    def verdict(self) -> Verdict:
        return verdict(self.exponent, self.equal_steps)


def verdict(exponent: Exponent, run_steps: float) -> Verdict:
    """Return whether changes stay below a growth of ``LIMIT`` over so many steps.

    chaotic: they surely do not; smooth: they surely do; unclear: the interval allows both.
    """
    allowed = math.log(LIMIT) / max(1, run_steps)
    if exponent.low > allowed:
        return "chaotic"
    return "smooth" if exponent.high <= allowed else "unclear"


def measure_smoothness(
    config: Config, how: SmoothnessConfig, report: Report = lambda done, wanted: None
) -> Smoothness:
    """Take the first steps of a run several times and compare; stores nothing.

    Raises ``InfluenceError`` if training diverges, and the errors that the run itself would raise.
    """
    require_capture_loop(config, "its steps cannot be taken here", "Give a configuration")
    config = complete_config(config)
    plan = StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))
    with deterministic():
        return compare(plan, how, report)


def compare(plan: StepPlan, how: SmoothnessConfig, report: Report) -> Smoothness:
    """Like ``measure_smoothness``, for a plan."""
    base = WeightedEngine.of(plan, beginning=True, exact=True)
    changed = [WeightedEngine.of(plan, beginning=True, exact=True) for _ in range(how.directions)]
    rounded = WeightedEngine.of(plan, beginning=True)
    for number, engine in enumerate(changed):
        change_weights(engine, how.size, how.seed + number)
    num_steps = min(how.steps + plan.config.training.schedule.warmup_steps, plan.num_steps)
    token_NT, target_NT = to_device(plan.corpus.train, base.device)
    distances, clipped = [], 0
    for planned in islice(plan.planned_steps(0), num_steps):
        batch = batch_of(plan, token_NT, target_NT, planned)
        numbers = {"step": planned.step, "epoch": planned.epoch}
        taken = [engine.step(*batch, **numbers) for engine in (base, rounded, *changed)]
        if not all(math.isfinite(step.loss + step.gradient_norm) for step in taken):
            remedy = "Lower training.learning_rate or training.clip"
            raise InfluenceError(f"step {planned.step}", "training has diverged", remedy)
        clipped += taken[0].clip < 1
        distances.append([distance(engine, base) for engine in changed])
        report(planned.step + 1, num_steps)
        if max(distances[-1]) > SATURATED:
            break
    distance_KS = np.array(distances).T
    rates = np.array([base.learning_rate(one.step, one.epoch) for one in plan.planned_steps(0)])
    measured = rates[settled(len(distances)) : len(distances)].mean()
    return Smoothness(
        growth_exponent(distance_KS, how.size),
        distance_KS,
        how.size,
        clipped / len(distances),
        distance(rounded, base),
        plan.num_steps,
        float(rates.sum() / measured),
    )


def growth_exponent(distance_KS: np.ndarray, size: float) -> Exponent:
    """Return the exponent of distances that began at ``size``, without the settling steps."""
    start_K1 = np.full((len(distance_KS), 1), size)
    logarithm = np.log(np.maximum(np.hstack([start_K1, distance_KS]), np.finfo(float).tiny))
    growth_S = np.diff(logarithm, axis=1).mean(0)
    return exponent_of(growth_S[settled(len(growth_S)) :])


def settled(num_steps: int) -> int:
    """Return how many of the first steps are left out of the exponent."""
    return int(num_steps * SETTLING)


@torch.no_grad()
def change_weights(engine: WeightedEngine, size: float, seed: int) -> None:
    """Add a random direction of norm ``size`` · ‖θ‖ to the trained weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = trained(engine)
    noise = [torch.randn(own.shape, generator=generator, dtype=torch.float64) for own in weights]
    scale = size * norm(weights) / norm(noise)
    for own, by in zip(weights, noise, strict=True):
        own.add_(by.to(own.device), alpha=scale)


def distance(engine: WeightedEngine, base: WeightedEngine) -> float:
    """Return ‖θ − θ_base‖ / ‖θ_base‖ over the trained weights, in float64."""
    pairs = zip(trained(engine), trained(base), strict=True)
    return norm([own.double() - other for own, other in pairs]) / norm(trained(base))


def trained(engine: WeightedEngine) -> list[torch.Tensor]:
    return [own.detach() for own in engine.model.parameters() if own.requires_grad]


def norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([own.norm() for own in tensors]).norm())
