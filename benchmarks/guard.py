"""Measure what the check of the split costs, for ``capture`` and ``record``.

``python -m benchmarks.guard`` takes the same training steps with the check and without, in blocks
that alternate (``harness.timing``), and counts the processor time of the training thread, so that
the writer and other work on the machine disturb little. Run it with OMP_NUM_THREADS=1. Three lines
for each way of recording and each model of ``MODELS``:

- *without*: the check is taken out; for ``record`` its hooks as well.
- *with, none due*: all steps but one in ``EVERY`` are like this.
- *with, each checked*: one datum goes through the model alone in every step.

The share of the guard is what the second line adds to the first, and ``1 / EVERY`` of what the
third adds to the second.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import ontogeny
from benchmarks.harness.report import machine
from benchmarks.harness.timing import Line, Run, Samples, measure, quartiles
from benchmarks.harness.workbench import mean_loss, zipf_tokens
from capture.config.reading import make_config
from capture.corpus.datums import Corpus, Vocabulary, cut_windows
from capture.custom_loop.checks.call_watch import CallWatch
from capture.custom_loop.checks.split_guard import SplitGuard
from capture.custom_loop.passes.forward_passes import ForwardPass
from capture.engine import split
from capture.engine.build import build_engine
from capture.engine.observer import Observer
from capture.engine.split import EVERY
from capture.engine.step_plan import PlannedStep, StepPlan
from capture.models.transformer import ModelConfig, fresh_model

MODELS = {
    "2 layers of width 64, vocabulary of 500": ({"layers": 2, "width": 64, "hidden": 64}, 500, 8),
    "the study's model, vocabulary of 4,000": ({}, 4000, 20),
}
"""Settings, size of the vocabulary, datums in a batch."""
WINDOW, DATUMS = 35, 2000
NEVER = 10**9
WITHOUT, IDLE, CHECKED = "without", "with, none due", "with, each checked"


@dataclass(frozen=True)
class Cost:
    """Processor time; triples are first quartile, median and third quartile of rounds."""

    way: str
    model: str
    rounds: int
    milliseconds: tuple[float, float, float]
    """Of a step without the check."""
    idle: tuple[float, float, float]
    """Time of a step in which no check is due, relative to one without."""
    checked: tuple[float, float, float]
    """Time of a step with a check, relative to one without."""
    share: float
    """What the guard adds to training that is recorded, from the medians."""


class SwitchedWatch(CallWatch):
    """Registers the hooks of a recording, but yields none: they are removed and come back."""

    def hooks(self) -> Iterator[Any]:
        self.handles = list(super().hooks())
        return iter(())


class SwitchedGuard(SplitGuard):
    """A guard that can be taken out of a recording for some steps, its hooks as well."""

    is_out = False

    @contextmanager
    def out(self) -> Iterator[None]:
        assert isinstance(self.watch, SwitchedWatch)
        for handle in self.watch.handles:
            handle.remove()
        self.is_out = True
        self.watch.note_losses(False)
        yield
        self.is_out = False
        self.watch.hooks()

    def check(self, passes: Sequence[ForwardPass], step: int) -> None:
        if not self.is_out:
            super().check(passes, step)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="timed steps in a block")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    costs = []
    for model, way in itertools.product(MODELS, (capture_lines, record_lines)):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
            plan = make_plan(model, folder)
            lines = way(plan, arguments.steps, opened)
            samples = measure(lines, plan.planned_steps(0), arguments.rounds)
        costs.append(cost_of(way.__name__.removesuffix("_lines"), model, samples))
        print(describe(costs[-1]), flush=True)
        if arguments.json:
            found = {"costs": [vars(cost) for cost in costs], "every": EVERY, "machine": machine()}
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def cost_of(way: str, model: str, samples: dict[str, Samples]) -> Cost:
    base = samples[WITHOUT].seconds
    ratio = {
        name: quartiles([own / beside for own, beside in zip(x.seconds, x.plain, strict=True)])
        for name, x in samples.items()
    }
    idle, checked = ratio[IDLE], ratio[CHECKED]
    share = (idle[1] - 1) + (checked[1] - idle[1]) / EVERY
    milliseconds = quartiles([1000 * seconds for seconds in base])
    return Cost(way, model, len(samples[IDLE].seconds), milliseconds, idle, checked, share)


def describe(cost: Cost) -> str:
    low, middle, high = cost.milliseconds
    idle, checked = (f"{x[1]:.3f} ({x[0]:.3f} to {x[2]:.3f})" for x in (cost.idle, cost.checked))
    return (
        f"{cost.way}, {cost.model}: {middle:.1f} ms a step ({low:.1f} to {high:.1f}); none due "
        f"{idle}; checked {checked}; share {cost.share:.2%}"
    )


# --- training -------------------------------------------------------------------------------------


def make_plan(model: str, folder: str) -> StepPlan:
    """Return steps without end on random tokens with Zipf's frequencies."""
    settings, vocabulary, batch = MODELS[model]
    values = {
        "run": {"uri": f"{folder}/run"},
        "model": settings,
        "training": {"epochs": 10**6, "decay": 1.0, "batch": batch, "device": "cpu"},
    }
    stream = zipf_tokens(DATUMS * (WINDOW + 1), vocabulary)
    names, counts = [str(n) for n in range(vocabulary)], np.bincount(stream, minlength=vocabulary)
    corpus = Corpus(Vocabulary(names, counts), cut_windows(stream, WINDOW), None, None)
    return StepPlan(make_config(values), corpus)


def capture_lines(plan: StepPlan, steps: int, opened: ExitStack) -> list[Line]:
    """Return the lines of a run's own loop; all train one model."""
    engine = build_engine(plan, plan.config.capture.kinds, beginning=True)
    observer = Observer(plan, engine, plan.config.capture.kinds)
    taken = {
        WITHOUT: stopwatch(observer.step, lambda: mock.patch(f"{OBSERVER}.is_drawn", never)),
        IDLE: stopwatch(observer.step, lambda: mock.patch.object(split, "EVERY", NEVER)),
        CHECKED: stopwatch(observer.step, lambda: mock.patch.object(split, "EVERY", 1)),
    }
    return [Line(name, "", run, steps) for name, run in taken.items()]


OBSERVER = "capture.engine.observer"


def never(seed: int, step: int) -> bool:
    return False


def record_lines(plan: StepPlan, steps: int, opened: ExitStack) -> list[Line]:
    """Return the lines of a custom loop; all train one model."""
    with (
        mock.patch("capture.custom_loop.recording.SplitGuard", SwitchedGuard),
        mock.patch("capture.custom_loop.checks.split_guard.CallWatch", SwitchedWatch),
    ):
        step, guard = custom_loop(plan, opened)
    taken = {
        WITHOUT: stopwatch(step, guard.out),
        IDLE: stopwatch(step, lambda: mock.patch.object(split, "EVERY", NEVER)),
        CHECKED: stopwatch(step, lambda: mock.patch.object(split, "EVERY", 1)),
    }
    return [Line(name, "", run, steps, warmup=2) for name, run in taken.items()]


def custom_loop(plan: StepPlan, opened: ExitStack) -> tuple[Callable[..., object], SwitchedGuard]:
    """Return a step of a loop that is recorded until ``opened`` closes, and its guard."""
    config, corpus = plan.config, plan.corpus
    tokens = torch.from_numpy(corpus.train.token_NT).long()
    targets = torch.from_numpy(corpus.train.target_NT).long()
    shape = {"vocabulary": len(corpus.vocabulary.tokens), "window": WINDOW}
    model = fresh_model(model_config(config.model), **shape, seed=config.run.seed)
    optimizer = torch.optim.SGD(model.parameters(), config.training.learning_rate)
    recorded = ontogeny.record(model, optimizer, run=config.run.uri, units=["layers.*"])
    recorder = opened.enter_context(recorded)

    def step(planned: PlannedStep) -> None:
        datum_N = torch.from_numpy(planned.datum_N)
        recorder.datums(datum_N)
        mean_loss(model(tokens[datum_N]), targets[datum_N]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip)
        optimizer.step()
        optimizer.zero_grad()

    guard = recorder._guard
    assert isinstance(guard, SwitchedGuard)
    return step, guard


def model_config(config: ModelConfig) -> ModelConfig:
    """Return the model's settings; its dropout takes masks, which a custom loop does not have."""
    return ModelConfig(layers=config.layers, width=config.width, hidden=config.hidden)


def stopwatch(
    step: Callable[[PlannedStep], object], setting: Callable[[], AbstractContextManager]
) -> Run:
    """Return a function that takes steps within ``setting``; returns this thread's CPU seconds."""

    def run(planned_steps: Sequence[PlannedStep]) -> float:
        with setting():
            start = time.thread_time()
            for planned in planned_steps:
                step(planned)
            return (time.thread_time() - start) / max(len(planned_steps), 1)

    return run


if __name__ == "__main__":
    main()
