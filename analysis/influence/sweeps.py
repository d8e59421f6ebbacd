"""The two methods that go backward through training, with one interface, so that both can resume.

Shapes: Q query, N datum of a step (slot), T position, U unit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from analysis.influence.path import PathSweep
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from capture.device import choose_device

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

    def steps(self, steps: range, max_bytes: int) -> Iterator[SweepStep]:
        """Yield what is found in each step; the sweep then stands before that step."""
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
    norm_at_end_Q: None = None

    @classmethod
    def begin(cls, run: Run, queries: Sequence[Query], units: Sequence[str]) -> "PathMethod":
        optimizer = run.gradients.replayable.plan.config.training.optimizer
        return cls(run, PathSweep(queries, optimizer, units))

    def steps(self, steps: range, max_bytes: int) -> Iterator[SweepStep]:
        from capture.unrolled.states import backward_steps  # loads the training engine

        markers, past = [self.run.start, *self.run.segments], self.run.gradients.replayable
        for passed in backward_steps(past, markers, steps, max_bytes=max_bytes):
            found = self.sweep.step(passed)
            columns = {
                "before": found.before_Q,
                "after": found.after_Q,
                "decay": found.decay_Q,
                "inherited": found.inherited_Q,
                "rest": found.rest_Q,
            }
            yield SweepStep(found.step, found.datum_N, found.influence_QNT, found.unit_QNU, columns)

    def encode(self) -> bytes:
        return self.sweep.encode()

    def resume(self, data: bytes, where: str) -> None:
        device = choose_device(self.run.config.training.device)
        self.sweep = self.sweep.resumed(data, where, device)


@dataclass(eq=False)
class UnrolledMethod:
    """Unrolled influence as a sweep, from the end of training."""

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
        """``weights``: after the last step, as training has them."""
        from capture.unrolled.adjoint import Adjoint  # loads the training engine

        device = choose_device(run.config.training.device)
        there = {name: own.to(device) for name, own in weights.items()}
        gradients = [query.gradient(there)[1] for query in queries]
        optimizer = run.gradients.replayable.plan.config.training.optimizer
        return cls(run, Adjoint.at_end(gradients, optimizer))

    def steps(self, steps: range, max_bytes: int) -> Iterator[SweepStep]:
        """Raises ``InfluenceError`` if the adjoint is no longer finite."""
        from capture.unrolled.reverse import unroll  # loads the training engine

        markers, past = [self.run.start, *self.run.segments], self.run.gradients.replayable
        for found in unroll(past, markers, self.adjoint, steps, max_bytes=max_bytes):
            self.adjoint = found.adjoint
            none_QNU = np.zeros((*found.influence_QNT.shape[:2], 0))
            columns = {"adjoint_norm": found.adjoint_norm_Q}
            datum_N = np.asarray(found.datum_N)
            yield SweepStep(found.step, datum_N, found.influence_QNT, none_QNU, columns)

    def encode(self) -> bytes:
        return self.adjoint.encode()

    def resume(self, data: bytes, where: str) -> None:
        device = next(iter(self.adjoint.weights.values())).device
        self.adjoint = type(self.adjoint).decode(data, where, device)


def begin_sweep(
    run: Run,
    queries: Sequence[Query],
    method: str,
    *,
    end_step: int | None = None,
    units: Sequence[str] = (),
) -> PathMethod | UnrolledMethod:
    """Return the sweep of a method, before its first step.

    ``end_step``: the step before which queries are taken; None: the end of the run. ``units``:
    those among which path influence is shared.
    """
    if method == "path":
        return PathMethod.begin(run, queries, units)
    end = run.steps_done if end_step is None else end_step
    weights = {name: own.detach() for name, own in run.network(end).named_parameters()}
    return UnrolledMethod.begin(run, queries, weights)
