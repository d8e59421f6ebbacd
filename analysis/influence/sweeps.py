"""The two methods that go backward through training, with one interface, so that both can resume.

Shapes: Q query, N datum of a step (slot), T position, U unit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from analysis.influence.path import PassedStep, PathSweep, ReplayedStep
from analysis.influence.queries.query import Query
from analysis.influence.stored_steps import stored_steps
from analysis.run.run import Run
from capture.device import choose_device
from capture.errors import InfluenceError
from capture.unrolled.horizon import BEARABLE

if TYPE_CHECKING:
    from capture.unrolled.adjoint import Adjoint


@dataclass(frozen=True, eq=False)
class SweepStep:
    """What a method found in one step; arrays alone, so that it can be stored."""

    step: int
    datum_N: np.ndarray
    influence_QNT: np.ndarray
    unit_QNU: np.ndarray
    """U is 0 if units were not asked for."""
    columns: dict[str, np.ndarray]
    """Further numbers of the step, [Q] each."""


class BackwardSweep(Protocol):
    """A method's way through some steps, from the last to the first."""

    @property
    def norm_at_end_Q(self) -> np.ndarray | None:
        """Norm of the adjoint at the end of training; None for a method without a horizon."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing can be said of earlier steps."""
        ...

    def steps(self, steps: range, max_bytes: int) -> Iterator[SweepStep]:
        """Yield what is found in each step; the sweep then stands before that step.

        Steps before the one with which the sweep ended are left out.
        """
        ...

    def encode(self) -> bytes:
        """Return what is needed to go on from where the sweep stands."""
        ...

    def resume(self, data: bytes, where: str) -> None:
        """Go on from what ``encode`` returned; raises ``ShardError`` if it is damaged."""
        ...


@dataclass(eq=False)
class PathMethod:
    """Path influence as a sweep."""

    run: Run
    sweep: PathSweep
    from_factors: bool = False
    """Read stored factors instead of replaying the steps."""
    norm_at_end_Q: None = None
    ended: bool = False

    @classmethod
    def begin(
        cls, run: Run, queries: Sequence[Query], units: Sequence[str], *, from_factors: bool = False
    ) -> "PathMethod":
        return cls(run, PathSweep(queries, run.config.training.optimizer, units), from_factors)

    def steps(self, steps: range, max_bytes: int) -> Iterator[SweepStep]:
        for passed in self.passed(steps, max_bytes):
            found = self.sweep.take(passed)
            columns = {
                "before": found.before_Q,
                "after": found.after_Q,
                "decay": found.decay_Q,
                "inherited": found.inherited_Q,
                "rest": found.rest_Q,
            }
            yield SweepStep(found.step, found.datum_N, found.influence_QNT, found.unit_QNU, columns)

    def passed(self, steps: range, max_bytes: int) -> Iterator[PassedStep]:
        """Yield the steps, last to first."""
        if self.from_factors:
            return stored_steps(self.run, steps, max_bytes)
        from capture.unrolled.states import backward_steps  # loads the training engine

        markers, past = [self.run.start, *self.run.segments], self.run.gradients.replayable
        replayed = backward_steps(past, markers, steps, max_bytes=max_bytes)
        return (ReplayedStep.of(found, self.sweep.config) for found in replayed)

    def encode(self) -> bytes:
        return self.sweep.encode()

    def resume(self, data: bytes, where: str) -> None:
        device = "cpu" if self.from_factors else choose_device(self.run.config.training.device)
        self.sweep = self.sweep.resumed(data, where, device)


@dataclass(eq=False)
class UnrolledMethod:
    """Unrolled influence as a sweep, from the end of training.

    It gives up a query whose adjoint has grown by more than ``BEARABLE``.
    """

    run: Run
    adjoint: "Adjoint"
    norm_at_end_Q: np.ndarray = field(init=False)
    """‖∂query/∂last weights‖."""

    def __post_init__(self) -> None:
        self.norm_at_end_Q = self.adjoint.norm().cpu().numpy()

    @classmethod
    def begin(
        cls, run: Run, queries: Sequence[Query], weights: dict[str, Tensor]
    ) -> "UnrolledMethod":
        """``weights``: after the last step, as training has them.

        Raises ``InfluenceError`` for a query whose derivative there is not finite.
        """
        from capture.unrolled.adjoint import Adjoint  # loads the training engine

        device = choose_device(run.config.training.device)
        there = {name: own.to(device) for name, own in weights.items()}
        gradients = [query.gradient(there)[1] for query in queries]
        optimizer = run.gradients.replayable.plan.config.training.optimizer
        begun = cls(run, Adjoint.at_end(gradients, optimizer))
        for query, norm in zip(queries, begun.norm_at_end_Q, strict=True):
            if not np.isfinite(norm):
                problem = "has a derivative by the last weights that is not finite"
                raise InfluenceError(f"query {query.name}", problem, "Ask another query")
        return begun

    @property
    def ended(self) -> bool:
        none_Q = self.adjoint.is_zero().cpu().numpy()
        return bool((none_Q & (self.norm_at_end_Q > 0)).all())

    def steps(self, steps: range, max_bytes: int) -> Iterator[SweepStep]:
        from capture.unrolled.reverse import unroll  # loads the training engine

        markers, past = [self.run.start, *self.run.segments], self.run.gradients.replayable
        largest_Q = torch.from_numpy(BEARABLE * self.norm_at_end_Q).to(self.device)
        bounds = {"largest_norm_Q": largest_Q, "max_bytes": max_bytes}
        for found in unroll(past, markers, self.adjoint, steps, **bounds):
            self.adjoint = found.adjoint
            none_QNU = np.zeros((*found.influence_QNT.shape[:2], 0))
            columns = {"adjoint_norm": found.adjoint_norm_Q}
            datum_N = np.asarray(found.datum_N)
            yield SweepStep(found.step, datum_N, found.influence_QNT, none_QNU, columns)

    def encode(self) -> bytes:
        return self.adjoint.encode()

    def resume(self, data: bytes, where: str) -> None:
        self.adjoint = type(self.adjoint).decode(data, where, self.device)

    @property
    def device(self) -> torch.device:
        return next(iter(self.adjoint.weights.values())).device


def begin_sweep(
    run: Run,
    queries: Sequence[Query],
    method: str,
    *,
    end_step: int | None = None,
    units: Sequence[str] = (),
    factors: bool = False,
) -> PathMethod | UnrolledMethod:
    """Return the sweep of a method, before its first step.

    ``end_step``: the step before which queries are taken; None: the end of the run. ``units``:
    those among which path influence is shared. ``factors``: as ``InfluenceConfig.factors``.
    """
    if method == "path":
        from_factors = factors or run.from_custom_loop
        return PathMethod.begin(run, queries, units, from_factors=from_factors)
    end = run.steps_done if end_step is None else end_step
    weights = {name: own.detach() for name, own in run.network(end).named_parameters()}
    return UnrolledMethod.begin(run, queries, weights)
