"""Path influence: what each datum did to a query, as it happened.

Steps are taken backward. In each, the query's mean gradient between the weights before and after
the step is shared among the batch's datums, weight decay and, through momentum, earlier steps
(``path_formulas``). The influences of all datums and of decay add up to the change of the query
(law 12, completeness). ``PathStep.rest_Q`` says how much of it the quadrature missed before the
mean gradient was adjusted; above ``TOLERANCE`` of the step's influences, it takes more points.

Memory: for each query, two float64 vectors of all weights, beside the states of a segment.

Shapes: Q query, N datum of a step (slot), T position.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from analysis.influence.directional import directional_derivatives
from analysis.influence.path_formulas import (
    StepParts,
    Vectors,
    applied_updates,
    closed,
    inherited_moment,
    mean_gradient,
    share_step,
)
from analysis.influence.queries.query import Query
from capture.errors import ShardError
from capture.optim.lifetime import AppliedUpdate
from capture.optim.optimizer_config import OptimizerConfig

if TYPE_CHECKING:
    from capture.unrolled.states import BackwardStep

TOLERANCE = 5e-3
"""Accepted |rest| of a step, relative to the sum of its datums' absolute influences."""
MOST_POINTS = 8
"""Most points of the quadrature, a power of 2."""
POINTS = "points"
VALUES = "values/"
"""Keys of a stored sweep; the number of updates follows behind that of the queries' values."""


class PassedStep(Protocol):
    """A step of training, as path influence sees it."""

    @property
    def step(self) -> int: ...

    @property
    def datum_N(self) -> np.ndarray:
        """Datums by slot, int64."""
        ...

    @property
    def before(self) -> Vectors:
        """The weights before the step."""
        ...

    @property
    def after(self) -> Vectors: ...

    @property
    def updates(self) -> Mapping[str, AppliedUpdate]:
        """Coefficients of each parameter that the step updated."""
        ...

    def inherited(self, moment: Vectors) -> float:
        """Return ⟨moment, first moment before the step⟩."""
        ...

    def derivatives(self, along_Q: dict[str, Tensor]) -> np.ndarray:
        """Return the derivative of each loss of the batch along directions, float64 [Q, N, T].

        T is 1 where losses are known by datum alone.
        """
        ...


@dataclass(frozen=True, eq=False)
class ReplayedStep:
    """A step that was replayed."""

    found: "BackwardStep"
    config: OptimizerConfig
    before: Vectors
    after: Vectors
    updates: dict[str, AppliedUpdate]

    @classmethod
    def of(cls, found: "BackwardStep", config: OptimizerConfig) -> "ReplayedStep":
        weights, moments = found.before.weights, found.after.moments
        place = found.step, found.learning_rate, found.clip
        return cls(
            found,
            config,
            {name: own.double() for name, own in weights.items()},
            {name: own.double() for name, own in found.after.weights.items()},
            applied_updates(config, *place, weights, moments),
        )

    @property
    def step(self) -> int:
        return self.found.step

    @property
    def datum_N(self) -> np.ndarray:
        return np.asarray(self.found.planned.datum_N)

    def inherited(self, moment: Vectors) -> float:
        return inherited_moment(self.config, moment, self.found.before.moments)

    def derivatives(self, along_Q: dict[str, Tensor]) -> np.ndarray:
        return batch_derivatives(self.found, along_Q)


@dataclass(frozen=True, eq=False)
class PathStep:
    """The parts that one step had in the change of each query."""

    step: int
    datum_N: np.ndarray
    """Datums by slot, int64."""
    influence_QNT: np.ndarray
    """Influence of each datum's loss at each position, float64. With momentum, it includes what the
    gradient did in later steps."""
    unit_QNU: np.ndarray
    """The part of each datum's influence that went through each of the units asked for, float64."""
    decay_Q: np.ndarray
    """Influence of weight decay in this step."""
    inherited_Q: np.ndarray
    """Influence of the first moment before the step on this and later steps; no datum's."""
    before_Q: np.ndarray
    """Value of each query before the step."""
    after_Q: np.ndarray
    rest_Q: np.ndarray
    """Change of the query in this step minus that which the quadrature found; shared among all."""
    along_Q: Sequence[Vectors]
    """Vectors of each query; their inner product with a gradient of this step is its influence."""


@dataclass(eq=False)
class PathSweep:
    """Goes backward through a run; one object for one sweep."""

    queries: Sequence[Query]
    config: OptimizerConfig
    units: Sequence[str] = ()
    """Parameters whose part in the influences is computed too; each costs as much as all."""
    moments: list[Vectors] = field(default_factory=list)
    """r of each query, after the step that is taken next."""
    points: list[int] = field(default_factory=list)
    """Points of the quadrature that sufficed for each query in the last step."""
    values: dict[int, np.ndarray] = field(default_factory=dict)
    """The queries' values after so many steps; at most one entry."""

    def __post_init__(self) -> None:
        self.moments = self.moments or [{} for _ in self.queries]
        self.points = self.points or [1] * len(self.queries)

    def encode(self) -> bytes:
        """Return what ``resumed`` needs to go on from here, as a safetensors file."""
        ((step, value_Q),) = self.values.items()
        tensors = {f"{q}/{n}": x for q, own in enumerate(self.moments) for n, x in own.items()}
        found = {key: own.cpu().contiguous() for key, own in tensors.items()}
        points = torch.tensor(self.points)
        return save(found | {f"{VALUES}{step}": torch.from_numpy(value_Q), POINTS: points})

    def resumed(self, data: bytes, where: str, device: torch.device | str) -> "PathSweep":
        """Return the sweep that ``encode`` described; raises ``ShardError`` if it is damaged."""
        moments: list[Vectors] = [{} for _ in self.queries]
        points, values = [], {}
        try:
            for key, own in load(data).items():
                q, _, name = key.partition("/")
                if key.startswith(VALUES):
                    values[int(key.removeprefix(VALUES))] = own.numpy()
                elif key == POINTS:
                    points = own.tolist()
                else:
                    moments[int(q)][name] = own.to(device)
        except (SafetensorError, ValueError, IndexError) as error:
            problem = f"is not readable: {error}"
            raise ShardError(where, problem, "Delete it; it is computed again") from error
        return PathSweep(self.queries, self.config, self.units, moments, points, values)

    def step(self, found: "BackwardStep") -> PathStep:
        """Like ``take``, for a replayed step."""
        return self.take(ReplayedStep.of(found, self.config))

    def take(self, found: PassedStep) -> PathStep:
        """Return the parts of the step before those that were taken so far."""
        after_Q = self.values.get(found.step + 1)
        if after_Q is None:
            after_Q = np.array([query.value(found.after) for query in self.queries])
        before_Q = np.array([query.value(found.before) for query in self.queries])
        self.values = {found.step: before_Q}
        parts, influence_QNT, rest_Q = self.close(found, after_Q - before_Q)
        self.moments = [part.moment for part in parts]
        each = [self.influences(found, parts, [unit]).sum(2) for unit in self.units]
        empty_QNU = np.zeros((*influence_QNT.shape[:2], 0))
        return PathStep(
            found.step,
            found.datum_N,
            influence_QNT,
            np.stack(each, axis=2) if each else empty_QNU,
            np.array([part.decay for part in parts]),
            np.array([found.inherited(part.moment) for part in parts]),
            before_Q,
            after_Q,
            rest_Q,
            [part.along for part in parts],
        )

    def close(
        self, found: PassedStep, change_Q: np.ndarray
    ) -> tuple[list[StepParts], np.ndarray, np.ndarray]:
        """Return parts, influences and rests; adds points to the quadrature until rests are small.

        Queries that close with room to spare take fewer points in the next step.
        """
        before, after = found.before, found.after
        moved = {name: after[name] - own for name, own in before.items()}
        parts: dict[int, StepParts] = {}
        influences: dict[int, np.ndarray] = {}
        rest_Q = np.zeros(len(self.queries))
        pending = range(len(self.queries))
        while pending:
            for q in pending:
                gradient = mean_gradient(self.queries[q], before, after, self.points[q])
                gradient, rest_Q[q] = closed(gradient, moved, change_Q[q])
                parts[q] = share_step(found.updates, before, gradient, self.moments[q])
            own_QNT = self.influences(found, [parts[q] for q in pending])
            influences |= dict(zip(pending, own_QNT, strict=True))
            allowed = {q: TOLERANCE * np.abs(influences[q].sum(1)).sum() for q in pending}
            pending = [q for q in pending if self.refine(q, abs(rest_Q[q]), allowed[q])]
        in_order = range(len(parts))
        influence_QNT = np.stack([influences[q] for q in in_order])
        return [parts[q] for q in in_order], influence_QNT, rest_Q

    def refine(self, q: int, rest: float, allowed: float) -> bool:
        """Return whether a query's quadrature must be repeated; chooses its number of points."""
        if rest > allowed and self.points[q] < MOST_POINTS:
            self.points[q] *= 2
            return True
        if rest < allowed / 64:
            self.points[q] = max(1, self.points[q] // 2)
        return False

    def influences(
        self,
        found: PassedStep,
        parts: Sequence[StepParts],
        units: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Return ⟨clip · k, gradient⟩ of each query, datum and position, [Q, N, T].

        ``units``: parameters that count; all by default.
        """
        names = list(parts[0].along) if units is None else units
        along = {name: torch.stack([p.along[name] for p in parts]) for name in names}
        return found.derivatives(along)


def batch_derivatives(found: "BackwardStep", along_Q: dict[str, Tensor]) -> np.ndarray:
    """Return the derivative of each loss of a step's batch along directions, float64 [Q, N, T]."""
    loss = found.loss
    _ = loss.pool_NK  # random masks cannot be drawn within a transformation
    pieces = [
        directional_derivatives(
            lambda weights, slots=slots: loss.shares(weights, slots), found.before.weights, along_Q
        )
        for slots in loss.micro_batches
    ]
    return torch.cat(pieces, dim=1).double().cpu().numpy()
