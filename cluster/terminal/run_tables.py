"""Tables of ``ontogeny info``: settings, progress, sizes and losses of a run."""

from collections import Counter
from contextlib import suppress

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from analysis.run.datums.loop_settings import loop_settings
from analysis.run.run import Run
from capture.errors import ShardError
from capture.format.markers import read_marker, total_bytes
from capture.models import transformer as model
from capture.optim import schedule
from capture.optim.optimizer_config import describe_optimizer
from cluster.terminal.tables import data_table

KINDS = ("outliers", "factors", "tallies", "checkpoints", "steps", "evaluations", "corpus")

MOST_EPOCHS = 24
"""Rows of the table of losses."""


def show_run(console: Console, run: Run) -> None:
    """Print settings, progress, sizes and losses of a run."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (provenance(run) | settings(run)).items():
        table.add_row(name, escape(text))
    console.print(table)
    console.print(sizes(run))
    if run.segments:
        console.print(losses(run))


def run_values(run: Run) -> dict[str, object]:
    """What ``ontogeny info --json`` prints: provenance, configuration, files by kind, losses."""
    markers = [run.start, *run.segments]
    files = {kind: [file for m in markers for file in m.files_of(kind)] for kind in KINDS}
    return {
        "run": run.uri,
        "steps_done": run.steps_done,
        "num_steps": run.num_steps,
        "segments": len(run.segments),
        "datums": run.num_datums,
        "parameters": run.layout.size,
        "units": list(run.layout.names),
        "provenance": run.provenance,
        "files": {
            kind: {
                "files": len(found),
                "rows": sum(file.rows or 0 for file in found),
                "bytes": sum(file.num_bytes for file in found),
            }
            for kind, found in files.items()
        },
        "bytes": total_bytes(markers),
        "losses": run.steps().groupby("epoch")["loss"].mean().reset_index(),
        "evaluations": run.evaluations(),
    }


def provenance(run: Run) -> dict[str, str]:
    """Location, progress, machine and versions of the run."""
    made = run.provenance
    versions = {str(name): version for name, version in made["versions"].items()}
    whole = run.steps_done == run.num_steps
    done = "complete" if whole else "continue with ontogeny capture … --resume"
    done = "of a custom training loop" if run.from_custom_loop else done
    steps = f"{run.steps_done} of {run.num_steps} steps, {len(run.segments)} segments"
    return {
        "run": run.uri,
        "progress": f"{steps} ({done})",
        "started": f"{made['started_at']} on {made['device']}, {made.get('threads', '?')} threads",
        "code": f"ontogeny {versions.get('ontogeny', '?')}, commit {made['git_commit']}",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if k != "ontogeny"),
        "retries": retries(run),
        "waiting": waiting(run),
    } | (recorded_in_part(run) | unchecked(run))


def recorded_in_part(run: Run) -> dict[str, str]:
    """Return the steps of outliers and factors; nothing if all segments have them, or none."""
    found = filter(None, map(run.committed.partly_recorded, ("outliers", "factors")))
    return {"recorded": text} if (text := "; ".join(found)) else {}


def unchecked(run: Run) -> dict[str, str]:
    """What could not be checked while the run was recorded; nothing if all was."""
    total = sum((Counter(marker.unchecked) for marker in run.segments), Counter())
    lines = [f"{count:,} {reason}" for reason, count in total.items()]
    return {"not checked": "; ".join(lines)} if lines else {}


def retries(run: Run) -> str:
    """Retried requests to the store: by capture, and by the latest run of each analysis."""
    retried = {"capture": sum(marker.retries for marker in (run.start, *run.segments))}
    for key in run.store.keys("analysis"):
        if key.endswith("/tables.json"):
            with suppress(ShardError):  # ontogeny verify reports damaged tables
                retried[key.split("/")[1]] = read_marker(run.store, key).retries
    return ", ".join(f"{what} {number:,}" for what, number in retried.items() if number) or "none"


def waiting(run: Run) -> str:
    """How long training waited for the store, and the most bytes that waited to be written."""
    seconds = sum(marker.waited_seconds for marker in run.segments)
    most = max((marker.pending_bytes for marker in run.segments), default=0)
    return f"{seconds:.1f} s for the store, at most {decimal(most)} pending"


def settings(run: Run) -> dict[str, str]:
    """The configuration in words, by topic."""
    config = run.config
    training, capture = config.training, config.capture
    size = f"{run.layout.size:,} parameters in {len(run.layout.names)} units"
    kept = capture.outliers.describe()
    decline = schedule.describe_schedule(training.schedule, training.decay)
    optimizing = describe_optimizer(training.optimizer)
    rate = f"{optimizing}, learning rate {training.learning_rate:g}"
    if run.from_custom_loop:
        return loop_settings(run) | {"captured": f"{size}; {kept}"}
    return {
        "seed": str(config.run.seed),
        "corpus": f"{config.corpus.kind}: {run.num_datums:,} datums of {config.corpus.window} "
        f"tokens, vocabulary {run.num_tokens:,}",
        "model": model.describe_model(config.model),
        "training": f"{training.epochs} epochs, batch {training.batch}, {rate} {decline}, "
        f"clip {training.clip:g}",
        "captured": f"{', '.join(capture.units)}: {size}; loss at {capture.loss_positions} "
        f"positions, {kept}",
    }


def sizes(run: Run) -> Table:
    table = data_table("kind", "files", "rows", "bytes")
    markers = [run.start, *run.segments]
    for kind in KINDS:
        files = [file for marker in markers for file in marker.files_of(kind)]
        rows = sum(file.rows or 0 for file in files)
        size = decimal(sum(file.num_bytes for file in files))
        table.add_row(kind, str(len(files)), f"{rows:,}" if rows else "", size)
    total = sum(len(marker.files) for marker in markers)
    table.add_row("all", str(total), "", decimal(total_bytes(markers)), style="bold")
    return table


def losses(run: Run) -> Table:
    """Losses by epoch: training (mean over its steps, with dropout) and each held-out split.

    The last column is the last split's perplexity, or its accuracy for a task. Without evaluations
    only training losses are shown. Of a run of many epochs some are shown, evenly spread, and the
    last one.
    """
    steps, evaluations = run.steps(), run.evaluations()
    splits = list(evaluations["split"].unique())
    accuracy = "accuracy" in evaluations
    names = (escape(f"{split} loss") for split in splits)
    measure = "accuracy" if accuracy else "perplexity"
    measures = [measure] if splits else []
    table = data_table("epoch", "training loss", *names, *measures)
    means = steps.groupby("epoch")["loss"].mean()
    shown = np.unique(np.linspace(0, len(means) - 1, min(MOST_EPOCHS, len(means))).astype(int))
    if len(shown) < len(means):
        table.caption = f"{len(shown)} of {len(means):,} epochs"
    for epoch, loss in means.iloc[shown].items():
        here = evaluations[evaluations["epoch"] == epoch]
        here = here.drop_duplicates("split", keep="last").set_index("split")
        held_out = [f"{here.loc[s, 'loss']:.3f}" if s in here.index else "…" for s in splits]
        cells = [f"{loss:.3f}", *held_out]
        if len(here):
            found = here[measure].iloc[-1]
            cells.append(f"{found:.1%}" if accuracy else f"{found:.1f}")
        elif splits:
            cells.append("…")
        table.add_row(str(epoch), *cells)
    return table
