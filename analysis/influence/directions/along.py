"""Influence of each datum along directions of a weight's inputs or outputs.

With U the vector whose inner product with a datum's gradient G is the datum's influence through a
unit (``path``: clip · k of ``path_formulas``; ``unrolled``: the adjoint of the step's gradient),
the part along a direction b of the inputs, of length 1, is that of the gradient projected on it:

    ⟨U, G b bᵀ⟩ = (U b) · (G b) = Σ_t (δ_t · U b) (a_t · b)        (for outputs: U and G transposed)

with a and δ the inputs and the output gradients of the unit's module. One backward pass of a step
thus serves any number of directions and queries. Over the directions of an orthonormal basis the
parts sum to the influence through the unit; along the unit vectors they are the parts of single
neurons. Directions that overlap share parts, and do not sum.

The null: the same along random directions of length 1. A direction that matters exceeds them.

Shapes: Q query, N datum of a step (slot), D training datum, T position, R output, C input,
K direction.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis.influence.confirmation import checked
from analysis.influence.directions.bases import (
    NEURONS,
    SIDES,
    Side,
    directions,
    module_of,
)
from analysis.influence.drift.moments import read_basis
from analysis.influence.path import PathSweep
from analysis.influence.queries.query import Query
from analysis.influence.queries.states import captured_state
from analysis.influence.sweeps import UnrolledMethod, begin_sweep
from analysis.influence.tables import CHECKS
from analysis.run.run import Run
from capture.errors import ConfigError, InfluenceError, at_least
from capture.estimates.growth import LIMIT

if TYPE_CHECKING:
    from capture.unrolled.states import BackwardStep

METHODS = ("path", "unrolled")
Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DirectionsConfig:
    """Which unit, along which directions, by which influence."""

    unit: str
    basis: str = NEURONS
    """neurons: each input (or output); pca: principal components of the activations; dictionary: a
    sparse dictionary of them; or a .npy file of directions, [K, inputs or outputs]."""
    side: Side = "inputs"
    """inputs (columns of the weight) or outputs (rows)."""
    method: str = "path"
    """What the datums did (path), or what the query would be without them (unrolled)."""
    random: int = 99
    """Random directions of the null."""
    datums: int = 10
    """Datums kept of each direction: those with the largest absolute influence."""
    checks: int = 2
    """Retrainings without a random tenth of the datums, which test method unrolled."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise ConfigError("directions.side", f"got {self.side!r}, wanted {' or '.join(SIDES)}")
        if self.method not in METHODS:
            problem = f"got {self.method!r}, wanted {' or '.join(METHODS)}"
            raise ConfigError("directions.method", problem)
        for name, least in (("random", 19), ("datums", 1), ("checks", 0), ("seed", 0)):
            at_least(f"directions.{name}", getattr(self, name), least)


@dataclass(frozen=True, eq=False)
class Along:
    """Influences along directions, float64."""

    influence_QDK: np.ndarray
    null_QDK: np.ndarray
    """Along the random directions."""
    checks: pd.DataFrame
    """What random removals do to the queries, through all weights; unrolled."""
    first_step: int = 0
    """Contributions of earlier steps are left out: they are beyond the horizon of a query."""


def influence_along(
    run: Run,
    queries: Sequence[Query],
    config: DirectionsConfig,
    report: Report = lambda done, wanted: None,
) -> Along:
    """Return the influence of every training datum along the directions; replays the run once.

    Unrolled influence is that of the steps within the horizon of all queries. Through all weights,
    it is checked by retraining, which keeps the retrainings in the run.

    Raises ``UnitError`` for a unit that was not captured or is no matrix, ``ConfigError`` for
    directions that do not fit it or a run that cannot be replayed, ``InfluenceError`` if no step is
    within the horizon, and what the sweep raises.
    """
    width, own_KC = read_basis(run, config.unit, config.side, config.basis, "directions.basis")
    module = module_of(run, config.unit)
    if own_KC is None:
        own_KC = directions(run, config.unit, config.side, config.basis, width, config.seed)
    rng = np.random.default_rng(config.seed)
    whole_KC = unit_length(np.concatenate([own_KC, rng.normal(size=(config.random, width))]))
    found_QDK = np.zeros((len(queries), run.num_datums, len(whole_KC)))
    total_QD = np.zeros((len(queries), run.num_datums))
    checks = config.checks if config.method == "unrolled" else 0
    first_step, wanted = run.steps_done, run.steps_done + checks
    for step, vector_QRC, influence_QN in unit_vectors(run, queries, config):
        own_QNK = along_step(step, module, config, vector_QRC, whole_KC)
        for slot, datum in enumerate(step.planned.datum_N.tolist()):
            found_QDK[:, datum] += own_QNK[:, slot]
            total_QD[:, datum] += influence_QN[:, slot]
        first_step = step.step
        report(run.steps_done - first_step, wanted)
    if first_step == run.steps_done:
        problem = "has no step within the horizon of all queries: training is chaotic"
        raise InfluenceError(run.uri, problem, "Use --method path")
    if first_step:
        report(run.steps_done, wanted)
    table = pd.DataFrame(columns=CHECKS.names)
    steps = range(first_step, run.steps_done)
    if checks:
        counted = itertools.count(run.steps_done + 1)

        def retrained() -> None:
            report(next(counted), wanted)

        table = checked(run, queries, total_QD, checks, steps, retrained)
    own_QDK, null_QDK = found_QDK[:, :, : len(own_KC)], found_QDK[:, :, len(own_KC) :]
    return Along(own_QDK, null_QDK, table, first_step)


def require_asked(run: Run, config: DirectionsConfig) -> None:
    """Raise ``UnitError`` or ``ConfigError`` for a unit or directions that cannot be asked about.

    They are those of ``read_basis`` and ``module_of``.
    """
    read_basis(run, config.unit, config.side, config.basis, "directions.basis")
    module_of(run, config.unit)


def unit_length(direction_KC: np.ndarray) -> np.ndarray:
    return direction_KC / np.linalg.norm(direction_KC, axis=1, keepdims=True)


def unit_vectors(
    run: Run, queries: Sequence[Query], config: DirectionsConfig
) -> "Iterator[tuple[BackwardStep, Tensor, np.ndarray]]":
    """Yield each step, last first, with the vectors U of the unit, as [Q, outputs, inputs], and the
    influence of its datums through all weights, [Q, N].

    Unrolled influence ends with the horizon of any of the queries.
    """
    from capture.unrolled.reverse import sweep as unrolled_sweep  # loads the training engine
    from capture.unrolled.states import backward_steps

    past, markers = run.gradients.replayable, [run.start, *run.segments]
    begun, steps = begin_sweep(run, queries, config.method), range(run.steps_done)
    transposed = config.unit in run.layout.transposed
    unrolled = isinstance(begun, UnrolledMethod)
    passed = backward_steps(past, markers, steps, graphs=unrolled)
    if unrolled:
        last: list[BackwardStep] = []

        def remembered() -> "Iterator[BackwardStep]":
            for step in passed:
                last[:] = [step]
                yield step

        largest_Q = LIMIT * begun.norm_at_end_Q
        bound_Q = torch.from_numpy(largest_Q).to(begun.device)
        for found in unrolled_sweep(remembered(), begun.adjoint, bound_Q):
            if not (found.adjoint_norm_Q <= largest_Q).all():
                return
            vector_QRC = oriented(found.of_gradient[config.unit], transposed)
            yield last[0], vector_QRC, found.influence_QNT.sum(2)
        return
    path = PathSweep(queries, past.plan.config.training.optimizer)
    for step in passed:
        taken = path.step(step)
        vectors = [own[config.unit] for own in taken.along_Q]
        yield step, oriented(torch.stack(vectors), transposed), taken.influence_QNT.sum(2)


def oriented(vector: Tensor, transposed: bool) -> Tensor:
    """Return vectors of a weight as [Q, outputs, inputs], float64."""
    return (vector.transpose(1, 2) if transposed else vector).detach().double()


def along_step(
    step: "BackwardStep",
    module: str,
    config: DirectionsConfig,
    vector_QRC: Tensor,
    direction_KC: np.ndarray,
) -> np.ndarray:
    """Return the influence of each datum of a step along each direction, [Q, N, K]."""
    direction = torch.from_numpy(direction_KC).to(vector_QRC.device)
    parts = []
    for slots in step.loss.micro_batches:
        a_NTC, delta_NTR = unit_factors(step, config.unit, module, slots)
        if config.side == "inputs":
            read_QRK, input_NTK = vector_QRC @ direction.T, a_NTC @ direction.T
            parts.append(torch.einsum("ntr,qrk,ntk->qnk", delta_NTR, read_QRK, input_NTK))
        else:
            read_QKC, output_NTK = direction @ vector_QRC, delta_NTR @ direction.T
            parts.append(torch.einsum("ntc,qkc,ntk->qnk", a_NTC, read_QKC, output_NTK))
    return torch.cat(parts, dim=1).cpu().numpy()


def unit_factors(
    step: "BackwardStep", unit: str, module: str, slots: range
) -> tuple[Tensor, Tensor]:
    """Return inputs [N, T, C] and output gradients [N, T, R] of a unit's module, float64.

    Raises ``ConfigError`` for a module that the forward pass does not call once.
    """
    weights = dict(step.before.weights)
    weights[unit] = weights[unit].clone().requires_grad_()
    called = step.loss.engine.model.get_submodule(module)
    with captured_state(called, "input") as given, captured_state(called, "output") as made:
        loss = step.loss.shares(weights, slots).sum()
    if len(made) != 1:
        problem = f"belongs to a module that a step calls {len(made)} times, wanted once"
        raise ConfigError(unit, problem, "Name a weight of an MLP")
    (delta_NTR,) = torch.autograd.grad(loss, made)
    # A perceptron's states have no position: its datums have one.
    found = (given[0].detach(), delta_NTR)
    a_NTC, delta_NTR = (own.double().reshape(len(slots), -1, own.shape[-1]) for own in found)
    return a_NTC, delta_NTR
