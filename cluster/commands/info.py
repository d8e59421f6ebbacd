"""``ontogeny info``: what a run holds."""

import argparse
from contextlib import suppress

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from analysis.run.run import Run, open_run
from capture.errors import ShardError
from capture.format.markers import read_marker, total_bytes
from capture.models import transformer as model
from capture.optim import optimizer, schedule
from cluster.options.arguments import add_command, add_run
from cluster.terminal.tables import data_table

KINDS = ("outliers", "factors", "tallies", "checkpoints", "steps", "evaluations", "corpus")


def add(inner) -> None:
    made = add_command(inner, "info", run, "What a run holds: settings, progress, sizes.")
    add_run(made)


def run(arguments: argparse.Namespace, console: Console) -> int:
    show(console, open_run(arguments.run))
    return 0


def show(console: Console, run: Run) -> None:
    """Settings, progress, sizes and loss of a run."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (provenance(run) | settings(run)).items():
        table.add_row(name, escape(text))
    console.print(table)
    console.print(sizes(run))
    if run.segments:
        console.print(losses(run))


def provenance(run: Run) -> dict[str, str]:
    """Where the run is, how far it is, and what made it."""
    made, versions = run.provenance, run.provenance["versions"]
    whole = run.steps_done == run.num_steps
    done = "complete" if whole else "go on with ontogeny capture … --resume"
    done = "of a training loop of its own" if run.is_own else done
    steps = f"{run.steps_done} of {run.num_steps} steps, {len(run.segments)} segments"
    return {
        "run": run.uri,
        "progress": f"{steps} ({done})",
        "started": f"{made['started_at']} on {made['device']}, {made['threads']} threads",
        "code": f"ontogeny {versions['ontogeny']}, commit {made['git_commit']}",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if k != "ontogeny"),
        "retries": retries(run),
        "waiting": waiting(run),
    }


def retries(run: Run) -> str:
    """Requests that the store made us ask again, while capturing and by the latest of each job."""
    told = {"capture": sum(marker.retries for marker in (run.start, *run.segments))}
    for key in run.store.keys("analysis"):
        if key.endswith("/tables.json"):
            with suppress(ShardError):  # it is verify's to say that tables are damaged
                told[key.split("/")[1]] = read_marker(run.store, key).retries
    return ", ".join(f"{what} {number:,}" for what, number in told.items() if number) or "none"


def waiting(run: Run) -> str:
    """How long training stood still for the store, and the most that was held for it in memory."""
    seconds = sum(marker.waited_seconds for marker in run.segments)
    most = max((marker.pending_bytes for marker in run.segments), default=0)
    return f"{seconds:.1f} s for the store, at most {decimal(most)} pending"


def settings(run: Run) -> dict[str, str]:
    """The configuration in words."""
    config = run.config
    training, capture = config.training, config.capture
    size = f"{run.layout.size:,} parameters in {len(run.layout.names)} units"
    kept = f"top {capture.outliers.k:,} a {capture.outliers.scope}"
    decline = schedule.in_words(training.schedule, training.decay)
    rate = f"{optimizer.in_words(training.optimizer)}, learning rate {training.learning_rate:g}"
    if run.is_own:
        return own_settings(run) | {"captured": f"{size}; {kept}"}
    return {
        "seed": str(config.run.seed),
        "corpus": f"{config.corpus.kind}: {run.num_datums:,} datums of {config.corpus.window} "
        f"tokens, vocabulary {run.num_tokens:,}",
        "model": model.in_words(config.model),
        "training": f"{training.epochs} epochs, batch {training.batch}, {rate} {decline}, "
        f"clip {training.clip:g}",
        "captured": f"{', '.join(capture.units)}: {size}; loss at {capture.loss_positions} "
        f"positions, {kept}",
    }


def own_settings(run: Run) -> dict[str, str]:
    """What is known of a training loop that is not ours."""
    training = run.config.training
    tokens = "" if run.is_numbered else f" of {run.config.corpus.window} tokens"
    optimizing = optimizer.in_words(training.optimizer)
    return {
        "corpus": f"{run.num_datums:,} datums{tokens}",
        "model": "its own",
        "training": f"{optimizing}, learning rate {training.learning_rate:g} at first",
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
    """Loss by epoch: of training (mean over its steps, with dropout) and of what is held out."""
    steps, evaluations = run.steps(), run.evaluations()
    splits = list(evaluations["split"].unique())
    table = data_table(
        "epoch", "training loss", *(f"{split} loss" for split in splits), "perplexity"
    )
    for epoch, loss in steps.groupby("epoch")["loss"].mean().items():
        here = evaluations[evaluations["epoch"] == epoch]
        here = here.drop_duplicates("split", keep="last").set_index("split")
        held_out = [f"{here.loc[s, 'loss']:.3f}" if s in here.index else "…" for s in splits]
        perplexity = f"{here['perplexity'].iloc[-1]:.1f}" if len(here) else "…"
        table.add_row(str(epoch), f"{loss:.3f}", *held_out, perplexity)
    return table
