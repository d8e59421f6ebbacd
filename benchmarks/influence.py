"""Time unrolled influence against plain training: ``python -m benchmarks.influence``.

A block of plain steps and a sweep over the same steps for each number of queries take turns. A
sweep includes the replay of the steps forward. The queries are the losses of validation datums;
their gradients, one small backward pass each, are not timed. A ratio is to the mean of the plain
blocks before and after. Times are CPU seconds of this process with one thread, so that other work
on the machine matters less; wall seconds are in the JSON beside them.

Counted in matrix products, a plain step has 3 for each linear layer. A sweep takes them again to
replay the step, and 6 more for each query, which no exact method in full precision avoids: 3 plain
trainings for one query and 33 for 16. A step whose graph did not fit into memory takes 3 more.
Only work other than products can be below that: 16 queries reach the aim of 10 only where plain
steps are mostly such work.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness.report import machine
from benchmarks.harness.timing import quartiles
from capture.config.reading import read_config
from capture.config.settings import Config
from capture.engine.build import restore
from capture.engine.observer import to_device
from capture.engine.step_plan import PlannedStep
from capture.format.chain import read_segments, require_start
from capture.format.markers import Marker
from capture.optim.optimizer import Tensors
from capture.replay.segments import ReplayableRun, read_replayable_run
from capture.retraining.weighted_engine import WeightedEngine
from capture.store import Store
from capture.training.loop import capture_run
from capture.unrolled.adjoint import Adjoint
from capture.unrolled.reverse import unroll
from capture.unrolled.states import BackwardWalker
from capture.unrolled.step_loss import token_losses

AIMS = {1: 3.0, 16: 10.0}
"""Number of queries → aim for the time of a sweep, in plain trainings."""
Seconds = dict[int, list[tuple[float, float]]]
"""Number of queries → CPU and wall seconds of each block."""


@dataclass(frozen=True, eq=False)
class Bench:
    """A recorded run and the queries about it."""

    run: ReplayableRun
    markers: list[Marker]
    adjoint: Adjoint
    """Adjoint of the largest number of queries that is timed, at the end of training."""

    def plain(self) -> None:
        """Take all steps from the start without recording anything."""
        engine = WeightedEngine.of(self.run.plan)
        walker = BackwardWalker(self.run, engine, 0, {})
        walker.take(self.planned())

    def planned(self) -> list[PlannedStep]:
        return list(itertools.islice(self.run.plan.planned_steps(0), self.markers[-1].end_step))

    def sweep(self, queries: int) -> None:
        """Sweep over all steps for the first queries."""
        own = Adjoint(
            {name: weight[:queries] for name, weight in self.adjoint.weights.items()},
            {name: moment[:queries] for name, moment in self.adjoint.moments.items()},
        )
        for _ in unroll(self.run, self.markers, own, range(self.markers[-1].end_step)):
            pass


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"run.uri={folder}/run", "capture.record=checkpoints", *arguments.overrides]
        config = read_config(arguments.config, overrides)
        bench = make_bench(config, max(AIMS))
        seconds = measure(bench, arguments.rounds)
    found = {
        "machine": machine(),
        "config": arguments.config,
        "overrides": arguments.overrides,
        "steps": len(bench.planned()),
        "parameters": sum(own[0].numel() for own in bench.adjoint.weights.values()),
        "rounds": arguments.rounds,
        "ratios": {queries: summary(seconds, queries, clock=0) for queries in AIMS},
        "wall_ratios": {queries: summary(seconds, queries, clock=1) for queries in AIMS},
        "seconds": seconds,
    }
    print(json.dumps({key: own for key, own in found.items() if key != "seconds"}, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def summary(seconds: Seconds, queries: int, *, clock: int) -> dict[str, float]:
    """Return quartiles of a sweep's time in plain trainings; ``clock``: 0 CPU, 1 wall."""
    plain = [own[clock] for own in seconds[0]]
    sweeps = [own[clock] for own in seconds[queries]]
    # A plain block stands before and after each sweep; the sweeps of a round follow each other.
    place = list(AIMS).index(queries)
    beside = [plain[len(AIMS) * r + place : len(AIMS) * r + place + 2] for r in range(len(sweeps))]
    ratios = [own / statistics.mean(two) for own, two in zip(sweeps, beside, strict=True)]
    low, median, high = quartiles(ratios)
    return {"low": low, "median": median, "high": high, "aim": AIMS[queries]}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.influence", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", nargs="?", default="demo")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


def make_bench(config: Config, queries: int) -> Bench:
    """Train the run, and return it with queries about its last model."""
    capture_run(config, lambda event: None)
    run = read_replayable_run(Store(config.run.uri))
    markers = [require_start(run.store), *read_segments(run.store)]
    engine = WeightedEngine.of(run.plan)
    restore(engine, run.store, markers[-1])
    return Bench(run, markers, at_end(run, engine, queries))


def at_end(run: ReplayableRun, engine: WeightedEngine, queries: int) -> Adjoint:
    """Return the adjoint of the losses of the first validation datums."""
    datums = run.plan.corpus.validation
    assert datums is not None
    token_NT, target_NT = to_device(datums, engine.device)
    parameters = dict(engine.model.named_parameters())
    gradients: list[Tensors] = []
    for datum in range(queries):
        own = slice(datum, datum + 1)
        loss = token_losses(engine.model(token_NT[own]), target_NT[own]).mean()
        found = torch.autograd.grad(loss, list(parameters.values()))
        gradients.append(dict(zip(parameters, found, strict=True)))
    return Adjoint.at_end(gradients, run.plan.config.training.optimizer)


def measure(bench: Bench, rounds: int) -> Seconds:
    """Return the times of each block by the number of queries; 0 stands for plain training."""
    seconds: Seconds = {queries: [] for queries in (0, *AIMS)}
    bench.plain()
    seconds[0].append(timed(bench.plain))
    for _ in range(rounds):
        for queries in AIMS:
            seconds[queries].append(timed(lambda count=queries: bench.sweep(count)))
            seconds[0].append(timed(bench.plain))
    return seconds


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return CPU seconds of this process and wall seconds."""
    start, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - start, time.perf_counter() - wall


if __name__ == "__main__":
    main()
