"""The states that training went through, from the last step to the first.

A run stores a checkpoint at the end of each segment. Going backward, each segment is replayed from
the checkpoint before it by the run's own engine, so that on the machine of the run every state has
the bits that it had. The states of a segment are held in memory. If they need more than a bound,
the segment is halved: the state at its middle is kept, the second half is processed, and then the
first. Each halving costs one more replay of the segment (Griewank 1992, "Achieving logarithmic
growth of temporal and spatial complexity in reverse automatic differentiation").

A sweep that differentiates the gradients of the steps can keep the graphs from which replay
computes them, as far as the bound allows, so that it need not build them again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from capture.corpus.datums import select_datums
from capture.engine.build import build_engine, restore
from capture.engine.engine import Engine
from capture.engine.left_out import without_left_out
from capture.engine.observer import to_device
from capture.engine.step_plan import PlannedStep
from capture.errors import ConfigError, RunError
from capture.format import checkpoint
from capture.format.markers import Marker
from capture.optim import optimizer
from capture.optim.optimizer import Tensors
from capture.optim.update import clip_factor
from capture.replay.segments import ReplayableRun, as_captured, checkpoint_difference
from capture.unrolled.gradient_graph import GradientGraph, counted_bytes
from capture.unrolled.step_loss import StepLoss

MAX_BYTES = 2 * 2**30
"""Default bound on the memory for states and graphs."""
OTHERS = 3
"""States that are held besides those of the steps: the first one, and the two of the step that the
caller still has while an earlier part is replayed."""
Report = Callable[[], None]
"""Called after every step that was yielded."""


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What the next step depends on, besides its batch."""

    step: int
    """Number of updates made."""
    weights: Tensors
    """All trained parameters, by name; tied weights once."""
    moments: Tensors
    """The optimizer's state by ``STATE/PARAMETER``; empty for plain SGD and before the first
    step."""

    @property
    def num_bytes(self) -> int:
        tensors = (*self.weights.values(), *self.moments.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True, eq=False)
class BackwardStep:
    """One step of training, between two states."""

    planned: PlannedStep
    """Numbers and datums of the step."""
    before: TrainingState
    after: TrainingState
    learning_rate: float
    clip: float
    """Factor by which clipping multiplied the gradient."""
    loss: StepLoss
    """The batch and its loss as a function of the weights."""
    graph: GradientGraph | None = None
    """The gradient with its graph, if replay kept it."""

    @property
    def step(self) -> int:
        return self.planned.step


def backward_steps(
    run: ReplayableRun,
    markers: Sequence[Marker],
    steps: range,
    *,
    graphs: bool = False,
    max_bytes: int = MAX_BYTES,
    report: Report = lambda: None,
) -> Iterator[BackwardStep]:
    """Yield the given steps of a run, last to first.

    ``markers``: of the start and of all committed segments, in order. ``graphs``: keep those that
    there is room for. ``max_bytes``: bound on the memory that states and kept graphs take.

    Raises ``RunError`` for steps that the run has not taken, ``ConfigError`` for a bound that is
    too low, ``ShardError`` for a missing checkpoint and ``ReplayError`` if the replayed weights
    differ from a checkpoint.
    """
    if steps and (steps.step != 1 or steps.start < 0 or steps.stop > markers[-1].end_step):
        problem = f"has no steps {steps.start}..{steps.stop - 1}; it has {markers[-1].end_step}"
        raise RunError(run.store.uri, problem)
    engine = build_engine(run.plan, ())
    checkpoints = {marker.end_step: marker for marker in markers}
    walker = BackwardWalker(run, engine, max_bytes, checkpoints, graphs)
    end = steps.stop
    while end > steps.start:
        marker = [marker for marker in markers if marker.end_step < end][-1]
        restore(engine, run.store, marker)
        first_step = max(steps.start, marker.end_step)
        skipped = islice(run.plan.planned_steps(marker.end_step), first_step - marker.end_step)
        walker.take(list(skipped))
        for found in walker.walk(state_of(engine, first_step), end):
            yield found
            report()
        end = first_step


@dataclass(eq=False)
class BackwardWalker:
    """Takes steps forward with an engine and yields them backward."""

    run: ReplayableRun
    engine: Engine
    max_bytes: int
    checkpoints: Mapping[int, Marker]
    """Number of updates → the checkpoint whose weights the engine must arrive at."""
    graphs: bool = False
    """Keep the graphs of the steps' gradients as far as ``max_bytes`` allows."""
    graph_bytes: int | None = None
    """Memory of one graph; None before one was built."""

    def walk(self, first: TrainingState, end_step: int) -> Iterator[BackwardStep]:
        """Yield the steps from a state to ``end_step``, last to first.

        Raises ``ConfigError`` if ``max_bytes`` is less than halving needs.
        """
        planned = list(islice(self.run.plan.planned_steps(first.step), end_step - first.step))
        # The first state of training has no moments, so it is smaller than the others.
        size = max(first.num_bytes, self.full_bytes)
        room = self.max_bytes // size - OTHERS
        wanted = min((len(planned) - 1).bit_length() + 1, len(planned))
        if room < wanted:
            least = (wanted + OTHERS) * size
            problem = f"got {self.max_bytes:,}, must be at least {least:,} for {len(planned)} steps"
            raise ConfigError("max_bytes", problem, "Or make segments shorter: replay needs less")
        yield from self.halve(first, planned, room)

    @property
    def full_bytes(self) -> int:
        """Size of a state with all moments."""
        trained = trained_parameters(self.engine).values()
        own = sum(p.numel() * p.element_size() for p in trained)
        return own * (1 + len(optimizer.state_names(self.engine.config.optimizer)))

    def halve(
        self, first: TrainingState, planned: list[PlannedStep], room: int
    ) -> Iterator[BackwardStep]:
        """Like ``walk``; ``room``: how many states may be held besides ``first``."""
        restore_state(self.engine, first)
        if len(planned) <= room:
            yield from self.leaf(first, planned, (room - len(planned)) * self.full_bytes)
            return
        middle = len(planned) // 2
        self.take(planned[:middle])
        kept = state_of(self.engine, planned[middle].step)
        yield from self.halve(kept, planned[middle:], room - 1)
        del kept
        yield from self.halve(first, planned[:middle], room)

    def leaf(
        self, first: TrainingState, planned: list[PlannedStep], spare_bytes: int
    ) -> Iterator[BackwardStep]:
        """Take the steps, keep all states, and yield them backward; states are freed on the way.

        ``spare_bytes``: for graphs. That of the last step is needed next, so it is always kept.
        """
        found, before = [], first
        for number, one in enumerate(planned):
            later = len(planned) - 1 - number
            with_graph = self.graphs and later * (self.graph_bytes or 0) <= spare_bytes
            found.append(self.pass_step(before, one, with_graph=with_graph))
            if later * (self.graph_bytes or 0) > spare_bytes:  # known after the first graph
                found[-1] = replace(found[-1], graph=None)
            before = found[-1].after
        if before.step in self.checkpoints:
            self.require_arrived(before.step)
        del before
        while found:
            yield found.pop()

    def pass_step(
        self, before: TrainingState, planned: PlannedStep, *, with_graph: bool
    ) -> BackwardStep:
        """Take a step from the engine's state, which is ``before``."""
        step = self.take_one(planned, before if with_graph else None)
        return step(before, state_of(self.engine, planned.step + 1))

    def take(self, planned: Sequence[PlannedStep]) -> None:
        for one in planned:
            self.take_one(one)

    def take_one(
        self, planned: PlannedStep, before: TrainingState | None = None
    ) -> Callable[[TrainingState, TrainingState], BackwardStep]:
        """Take a step; returns what makes a ``BackwardStep`` of the states around it.

        ``before``: the engine's state, if the graph of the gradient is to be kept.
        """
        token_NT, target_NT = self.batch(planned)
        loss = StepLoss(self.engine, planned.step, token_NT, target_NT)
        with as_captured(self.run):
            if before and len(loss.micro_batches) == 1:
                return self.take_with_graph(planned, loss, before)
            step = self.engine.step(token_NT, target_NT, step=planned.step, epoch=planned.epoch)
        return lambda before, after: BackwardStep(
            planned, before, after, step.learning_rate, step.clip, loss
        )

    def take_with_graph(
        self, planned: PlannedStep, loss: StepLoss, before: TrainingState
    ) -> Callable[[TrainingState, TrainingState], BackwardStep]:
        """Take a step, as ``Engine.step`` does, and keep the graph of its gradient."""
        engine, (slots,) = self.engine, loss.micro_batches
        if self.graph_bytes is None:
            with counted_bytes(before.weights) as counts:
                graph = GradientGraph.of(loss, before.weights, slots)
            # The gradient itself has the size of the weights.
            self.graph_bytes = sum(counts) + sum(x.nbytes for x in before.weights.values())
        else:
            graph = GradientGraph.of(loss, before.weights, slots)
        for name, parameter in trained_parameters(engine).items():
            own = graph.gradient.get(name)
            parameter.grad = None if own is None else own.detach().clone()  # clipping changes it
        rate = engine.learning_rate(planned.step, planned.epoch)
        engine.optimizer.param_groups[0]["lr"] = rate
        norm, _, _ = engine.update(rate, planned.step)
        clip = clip_factor(norm, engine.config.clip)
        return lambda before, after: BackwardStep(planned, before, after, rate, clip, loss, graph)

    def batch(self, planned: PlannedStep) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step's batch, each [N, T]."""
        train = self.run.plan.corpus.train
        found = to_device(select_datums(train, planned.datum_N), self.engine.device)
        return found[0], without_left_out(self.run.plan, found[1], planned)

    def require_arrived(self, step: int) -> None:
        """Raise ``ReplayError`` unless the engine has arrived at the checkpoint of a step."""
        wanted = checkpoint.read_checkpoint(self.run.store, step, self.checkpoints[step])
        checkpoint_difference(self.run, self.engine.model, wanted, step)


# --- states ---------------------------------------------------------------------------------------


def trained_parameters(engine: Engine) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that the optimizer may change, by name; tied weights once."""
    return {name: own for name, own in engine.model.named_parameters() if own.requires_grad}


def state_of(engine: Engine, step: int) -> TrainingState:
    """Return a copy of the engine's state after ``step`` updates, on its device."""
    parameters = trained_parameters(engine)
    weights = {name: own.detach().clone() for name, own in parameters.items()}
    moments = {
        f"{state}/{name}": own.detach().clone()
        for state in optimizer.state_names(engine.config.optimizer)
        for name, own in optimizer.optimizer_state(engine.optimizer, parameters, state).items()
    }
    return TrainingState(step, weights, moments)


@torch.no_grad()
def restore_state(engine: Engine, state: TrainingState) -> None:
    """Copy a state into the engine's weights and optimizer."""
    parameters = trained_parameters(engine)
    for name, own in parameters.items():
        own.copy_(state.weights[name])
    remembered = {key.partition("/")[2] for key in state.moments}
    optimizer.restore(
        engine.optimizer,
        {name: own for name, own in parameters.items() if name in remembered},
        state.moments,
        config=engine.config.optimizer,
        step=state.step if remembered else 0,
        where=f"state after step {state.step}",
    )
