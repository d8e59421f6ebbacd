"""``ontogeny plan``: what a run will take, before anything is paid for it."""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from capture.config.reading import read_config
from capture.config.settings import Config
from capture.corpus.datums import load_corpus
from capture.engine.build import complete
from capture.engine.step_plan import Plan
from capture.errors import ConfigError
from capture.estimates import large_models as scaling
from capture.estimates.calibration import PLAIN, Calibration, calibrate
from capture.estimates.costs import (
    Cost,
    costs_of,
    course_of,
    dense_bytes,
    is_recorded,
    spacings,
    training_seconds,
)
from capture.estimates.large_models import ASSUMPTIONS, Scale, scaled_costs
from cluster.options.arguments import add_command, add_overrides
from cluster.terminal.tables import data_table, print_table

BUDGET_SECONDS = 15.0
SPACINGS = (10, 100, 1000)


def add(inner) -> None:
    text = """\
Takes a few of the run's own steps into memory and counts the rest; writes nothing. With
--model-params and --tokens it estimates a transformer of any size instead, from stated assumptions:
ontogeny plan --model-params 175e9 --tokens 300e9 --gpus 1024"""
    made = add_command(inner, "plan", run, "What a run will take, before it is made.", text)
    made.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file, demo, or wikitext2")
    add_overrides(made)
    made.add_argument("--model-params", type=float, metavar="N", help="parameters of a large model")
    made.add_argument("--tokens", type=float, metavar="N", help="tokens that it is trained on")
    made.add_argument("--window", type=int, default=2048, metavar="N", help="tokens a datum")
    made.add_argument("--gpus", type=int, default=1, metavar="N", help="that train it")
    made.add_argument("--json", action="store_true", help="print JSON, sizes in bytes and seconds")


def run(arguments: argparse.Namespace, console: Console) -> int:
    large = arguments.model_params, arguments.tokens
    if any(large):
        if not all(large) or arguments.config:
            problem = "takes --model-params and --tokens together, and no CONFIG beside them"
            raise ConfigError("ontogeny plan", problem)
        scale = Scale(*large, window=arguments.window, gpus=arguments.gpus)
        return show_scale(console, scale, as_json=arguments.json)
    if not arguments.config:
        problem = "needs a CONFIG, or --model-params and --tokens"
        raise ConfigError("ontogeny plan", problem, "As in: ontogeny plan demo")
    return show_plan(console, read_config(arguments.config, arguments.overrides), arguments.json)


def show_plan(console: Console, config: Config, as_json: bool) -> int:
    config = complete(config)
    plan = Plan(config, load_corpus(config.corpus, batch=config.training.batch))
    found = calibrate(plan, BUDGET_SECONDS)
    costs = costs_of(plan, found)
    dense = dense_bytes(course_of(plan), found)
    if as_json:
        console.print_json(json.dumps(values_of(plan, found, costs, dense)))
        return 0
    console.print(course(plan))
    print_table(console, "Files by kind", cost_table(plan, costs, found, dense))
    print_table(console, "Checkpoints: storage against latency", spacing_table(plan, found))
    summary(console, plan, costs, found)
    return 0


def course(plan: Plan) -> str:
    counted = course_of(plan)
    return (
        f"{counted.steps:,} steps of {plan.config.training.batch} datums, {counted.segments:,} "
        f"segments, {len(plan.corpus.vocabulary.tokens):,} tokens in the vocabulary"
    )


def cost_table(plan: Plan, costs: list[Cost], found: Calibration, dense: int) -> Table:
    """A line a kind; what the configuration does not record is marked."""
    plain = found.step_seconds[PLAIN]
    table = data_table("kind", "recorded", "bytes", "objects", "writes", "of a step", "memory")
    for cost in costs:
        table.add_row(
            cost.kind,
            "yes" if is_recorded(plan, cost.kind) else "no",
            decimal(cost.num_bytes),
            f"{cost.objects:,}",
            f"{cost.requests:,}",
            f"+{cost.step_seconds / plain:.0%}" if cost.step_seconds else "",
            decimal(cost.memory_bytes) if cost.memory_bytes else "",
        )
    table.add_row("dense, the study's way", "never", decimal(dense), "", "", "", "")
    return table


def spacing_table(plan: Plan, found: Calibration) -> Table:
    table = data_table("steps a segment", "checkpoints take", "replaying to a step takes")
    here = plan.config.capture.segment_steps
    for spacing in spacings(plan, found, sorted({*SPACINGS, here})):
        mark = " (configured)" if spacing.segment_steps == here else ""
        table.add_row(
            f"{spacing.segment_steps:,}{mark}",
            decimal(spacing.num_bytes),
            in_words(spacing.reach_seconds),
        )
    return table


def summary(console: Console, plan: Plan, costs: list[Cost], found: Calibration) -> None:
    """The run as configured, in a few lines."""
    own = [cost for cost in costs if is_recorded(plan, cost.kind)]
    size, uri = sum(cost.num_bytes for cost in own), plan.config.run.uri
    steps = found.recorded_seconds / found.step_seconds[PLAIN]
    device = found.device_peak_bytes
    console.print(
        f"\n[bold]As configured[/]: {decimal(size)} in {sum(c.objects for c in own):,} objects by "
        f"{sum(c.requests for c in own):,} writes; {in_words(training_seconds(plan, found))} of "
        f"training, evaluation and writing (a step is {steps:.2f} × a plain one); "
        f"{decimal(memory(own, found))} of memory"
        + (f" and {decimal(device)} of the GPU's" if device else "")
        + ", if the store keeps up"
    )
    if (workers := plan.config.workers.count) > 1 or plan.config.engine == "deepspeed":
        each = f"the run has {workers} workers" if workers > 1 else "the run is DeepSpeed's"
        console.print(f"Times and memory are of one process that takes whole batches; {each}.")
    free = free_bytes(uri)
    if free is not None and free < size:
        text = f"{uri} has {decimal(free)} free, the run needs {decimal(size)}"
        console.print(f"Too little room: {escape(text)}", style="red")


def memory(own: list[Cost], found: Calibration) -> int:
    """Held where the store keeps up: this process's own peak, and a segment being packed.

    The peak has seen some of that segment too, so this is rather too much. A store that does not
    keep up adds up to ``store.max_pending_bytes``.
    """
    return found.peak_bytes + sum(cost.memory_bytes for cost in own)


def free_bytes(uri: str) -> int | None:
    """Room on the disk that a run's folder is or will be on; None for other stores."""
    if "://" in uri and not uri.startswith("file://"):
        return None
    path = Path(uri.removeprefix("file://")).absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def in_words(seconds: float) -> str:
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2g} s"


def values_of(plan: Plan, found: Calibration, costs: list[Cost], dense: int) -> dict[str, Any]:
    """Everything that the tables show."""
    return {
        "steps": plan.num_steps,
        "kinds": [asdict(cost) | {"recorded": is_recorded(plan, cost.kind)} for cost in costs],
        "dense_bytes": dense,
        "training_seconds": training_seconds(plan, found),
        "recorded_step_seconds": found.recorded_seconds,
        "step_seconds": {
            "+".join(sorted(kinds)) or "plain": seconds
            for kinds, seconds in found.step_seconds.items()
        },
        "memory_bytes": memory([c for c in costs if is_recorded(plan, c.kind)], found),
        "device_memory_bytes": found.device_peak_bytes,
        "spacings": [asdict(each) for each in spacings(plan, found, SPACINGS)],
    }


def show_scale(console: Console, scale: Scale, *, as_json: bool) -> int:
    estimates, seconds = scaled_costs(scale), scaling.training_seconds(scale)
    if as_json:
        values = {
            "training_seconds": seconds,
            "kinds": [asdict(estimate) for estimate in estimates],
            "assumptions": asdict(ASSUMPTIONS),
        }
        console.print_json(json.dumps(values))
        return 0
    table = data_table("kind", "bytes", "written by each GPU")
    for estimate in estimates:
        rate = f"{decimal(round(estimate.bytes_per_second))}/s"
        table.add_row(estimate.kind, decimal(round(estimate.num_bytes)), rate)
    title = f"{scale.params:.3g} parameters, {scale.tokens:.3g} tokens, {scale.gpus:,} GPUs"
    print_table(console, f"{title}: {in_words(seconds)} of training", table)
    assumed = data_table("assumption", "value")
    for name, value in asdict(ASSUMPTIONS).items():
        assumed.add_row(name.replace("_", " "), f"{value:,g}")
    print_table(console, "Assumptions", assumed)
    return 0
