"""Tables and JSON of ``ontogeny plan``: bytes, requests, time and memory of a run."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from capture.config.settings import Config
from capture.corpus.datums import load_corpus
from capture.engine.build import complete_config
from capture.engine.step_plan import StepPlan
from capture.estimates import large_models as scaling
from capture.estimates.calibration import PLAIN, Calibration, calibrate
from capture.estimates.costs import (
    Cost,
    checkpoint_spacings,
    dense_bytes,
    estimate_costs,
    is_recorded,
    mean_step_seconds,
    training_seconds,
)
from capture.estimates.large_models import Assumptions, TrainingScale, estimate_records
from capture.estimates.run_counts import count_run
from cluster.terminal.tables import data_table, print_table

BUDGET_SECONDS = 15.0
"""Time for the steps that are measured."""
SPACINGS = (10, 100, 1000)
"""Segment lengths that are compared, in steps."""


def show_plan(console: Console, config: Config, *, as_json: bool) -> None:
    """Measure some steps of the run in memory; print the estimates as tables or JSON."""
    config = complete_config(config)
    plan = StepPlan(config, load_corpus(config.corpus, batch=config.training.batch))
    found = calibrate(plan, BUDGET_SECONDS)
    costs = estimate_costs(plan, found)
    dense = dense_bytes(count_run(plan), found)
    if as_json:
        console.print_json(json.dumps(values_of(plan, found, costs, dense)))
        return
    console.print(course(plan))
    print_table(console, "Files by kind", cost_table(plan, costs, found, dense))
    print_table(console, "Checkpoints: storage against latency", spacing_table(plan, found))
    summary(console, plan, costs, found)


def course(plan: StepPlan) -> str:
    counted = count_run(plan)
    return (
        f"{counted.steps:,} steps of {plan.config.training.batch} datums, {counted.segments:,} "
        f"segments, {len(plan.corpus.vocabulary.tokens):,} tokens in the vocabulary"
    )


def cost_table(plan: StepPlan, costs: list[Cost], found: Calibration, dense: int) -> Table:
    """One line for each kind of record, with whether the configuration records it."""
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
    table.add_row("dense, as in the study", "never", decimal(dense), "", "", "", "")
    return table


def spacing_table(plan: StepPlan, found: Calibration) -> Table:
    table = data_table("steps a segment", "checkpoints take", "replaying to a step takes")
    here = plan.config.capture.segment_steps
    for spacing in checkpoint_spacings(plan, found, sorted({*SPACINGS, here})):
        mark = " (configured)" if spacing.segment_steps == here else ""
        table.add_row(
            f"{spacing.segment_steps:,}{mark}",
            decimal(spacing.num_bytes),
            in_words(spacing.reach_seconds),
        )
    return table


def summary(console: Console, plan: StepPlan, costs: list[Cost], found: Calibration) -> None:
    """Print the totals of the run as configured."""
    own = [cost for cost in costs if is_recorded(plan, cost.kind)]
    size, uri = sum(cost.num_bytes for cost in own), plan.config.run.uri
    steps = mean_step_seconds(plan, found) / found.step_seconds[PLAIN]
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
        console.print(
            f"Times and memory are those of one process that takes whole batches; {each}."
        )
    free = free_bytes(uri)
    if free is not None and free < size:
        text = f"{uri} has {decimal(free)} free, the run needs {decimal(size)}"
        console.print(f"Too little room: {escape(text)}", style="red")


def memory(own: list[Cost], found: Calibration) -> int:
    """Bytes held while the store keeps up: the measured peak plus a segment that is being packed.

    The peak includes part of such a segment, so this errs on the high side. A store that does not
    keep up adds up to ``store.max_pending_bytes``.
    """
    return found.peak_bytes + sum(cost.memory_bytes for cost in own)


def free_bytes(uri: str) -> int | None:
    """Free bytes on the disk of the run's folder; None for a store that is no folder."""
    if "://" in uri and not uri.startswith("file://"):
        return None
    path = Path(uri.removeprefix("file://")).absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def in_words(seconds: float) -> str:
    for size, unit in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2g} s"


def values_of(plan: StepPlan, found: Calibration, costs: list[Cost], dense: int) -> dict[str, Any]:
    """All values of the tables, for JSON."""
    return {
        "steps": plan.num_steps,
        "kinds": [asdict(cost) | {"recorded": is_recorded(plan, cost.kind)} for cost in costs],
        "dense_bytes": dense,
        "training_seconds": training_seconds(plan, found),
        "recorded_step_seconds": mean_step_seconds(plan, found),
        "step_seconds": {
            "+".join(sorted(kinds)) or "plain": seconds
            for kinds, seconds in found.step_seconds.items()
        },
        "memory_bytes": memory([c for c in costs if is_recorded(plan, c.kind)], found),
        "device_memory_bytes": found.device_peak_bytes,
        "spacings": [asdict(each) for each in checkpoint_spacings(plan, found, SPACINGS)],
    }


def show_scale(
    console: Console, scale: TrainingScale, given: Assumptions, *, as_json: bool
) -> None:
    """Print the estimate for a large model, with its assumptions."""
    estimates = estimate_records(scale, given)
    seconds, held = scaling.training_seconds(scale, given), scaling.held_bytes(scale, given)
    if as_json:
        values = {
            "training_seconds": seconds,
            "kinds": [asdict(estimate) for estimate in estimates],
            "held_by_each_gpu": asdict(held),
            "assumptions": asdict(given),
        }
        console.print_json(json.dumps(values))
        return
    table = data_table("kind", "bytes", "written by each GPU")
    for estimate in estimates:
        rate = f"{decimal(round(estimate.bytes_per_second))}/s"
        table.add_row(estimate.kind, decimal(round(estimate.num_bytes)), rate)
    gpus = f"{scale.gpus:,} GPU{'' if scale.gpus == 1 else 's'}"
    title = f"{scale.params:.3g} parameters, {scale.tokens:.3g} tokens, {gpus}"
    print_table(console, f"{title}: {in_words(seconds)} of training", table)
    console.print(
        "Recording all parameters while training holds on each GPU, beside the training itself:\n"
        f"{decimal(round(held.gathered))} of whole parameters, gradients and optimizer state under "
        f"fully_shard, and {decimal(round(held.factors))} of factors of its tokens in a step. "
        "Capture fewer parameters where this does not fit."
    )
    layers, width = scale.shape(given)
    assumed = data_table("assumption", "value")
    assumed.add_row("layers × width", f"{layers:,.4g} × {width:,.5g}")
    for name, value in asdict(given).items():
        if name != "width_per_layer" or scale.layers is None:
            number = f"{value:,}" if isinstance(value, int) else f"{value:,g}"
            assumed.add_row(name.replace("_", " "), number)
    print_table(console, "Assumptions", assumed)
