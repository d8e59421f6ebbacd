"""Tables and summaries for the terminal."""

import math
import shutil
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from os.path import relpath
from pathlib import Path

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from analysis.ablation import Ablation
from analysis.attribution import Attribution
from analysis.run import Run
from capture.markers import total_bytes
from capture.verify import Finding

OFTEN = 10
"""A token's share of flips is shown from so many positions on."""
KINDS = ("outliers", "checkpoints", "steps", "evaluations", "corpus")


def summary(console: Console, run: Run) -> None:
    """What a finished (or resumed) capture left behind, in a few lines."""
    rows, size = outlier_size(run)
    steps, evaluations = run.steps(), run.evaluations()
    per_row = f" ({size / rows:.1f} bytes a row)" if rows else ""
    console.print(f"[bold]{escape(run.uri)}[/]: {run.steps_done} of {run.num_steps} steps")
    console.print(f"  {rows:,} outliers in {decimal(size)}{per_row}")
    console.print(
        f"  every step audited: Σ shifts = applied change, largest relative error "
        f"{steps['audit_error'].max():.1e}"
    )
    for split, table in evaluations.groupby("split", sort=False):
        last = table.iloc[-1]
        console.print(f"  {split} loss {last['loss']:.3f}, perplexity {last['perplexity']:.1f}")


def outlier_size(run: Run) -> tuple[int, int]:
    """Rows and bytes of the run's outlier shards."""
    files = [file for segment in run.segments for file in segment.files_of("outliers")]
    return sum(file.rows or 0 for file in files), sum(file.num_bytes for file in files)


def info(console: Console, run: Run) -> None:
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
    steps = f"{run.steps_done} of {run.num_steps} steps, {len(run.segments)} segments"
    return {
        "run": run.uri,
        "progress": f"{steps} ({done})",
        "started": f"{made['started_at']} on {made['device']}, {made['threads']} threads",
        "code": f"ontogeny {versions['ontogeny']}, commit {made['git_commit']}",
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if k != "ontogeny"),
    }


def settings(run: Run) -> dict[str, str]:
    """The configuration in words."""
    config = run.config
    model, training, capture = config.model, config.training, config.capture
    size = f"{run.layout.size:,} parameters in {len(run.layout.names)} units"
    kept = f"top {capture.outliers.k:,} a {capture.outliers.scope}"
    rate = f"learning rate {training.learning_rate:g} × {training.decay:g} an epoch"
    return {
        "seed": str(config.run.seed),
        "corpus": f"{config.corpus.kind}: {run.num_datums:,} datums of {config.corpus.window} "
        f"tokens, vocabulary {run.num_tokens:,}",
        "model": f"{model.layers} layers, width {model.width}, hidden {model.hidden}, "
        f"{model.heads} heads, dropout {model.dropout:g}",
        "training": f"{training.epochs} epochs, batch {training.batch}, {rate}, "
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
    """Loss by epoch: of training (mean over its steps, with dropout) and of what is held out."""
    steps, evaluations = run.steps(), run.evaluations()
    splits = list(evaluations["split"].unique())
    table = data_table(
        "epoch", "training loss", *(f"{split} loss" for split in splits), "perplexity"
    )
    for epoch, loss in steps.groupby("epoch")["loss"].mean().items():
        here = evaluations[evaluations["epoch"] == epoch].set_index("split")
        held_out = [f"{here.loc[s, 'loss']:.3f}" if s in here.index else "…" for s in splits]
        perplexity = f"{here['perplexity'].iloc[-1]:.1f}" if len(here) else "…"
        table.add_row(str(epoch), f"{loss:.3f}", *held_out, perplexity)
    return table


def findings(console: Console, found: Sequence[Finding], checked: str) -> None:
    if not found:
        console.print(f"Intact: {checked}, every checksum and row count as its marker says.")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("file", "state", "detail"):
        table.add_column(name, overflow="fold")
    for finding in found:
        table.add_row(escape(finding.key), finding.state, escape(finding.detail))
    console.print(table)
    damaged = sum(finding.state != "unlisted" for finding in found)
    console.print(
        f"{checked} checked; {damaged} damaged or missing, {len(found) - damaged} unlisted."
    )


def attribution(console: Console, found: Attribution, *, rows: int) -> None:
    """The neurons that most outliers fell on, and the tokens that stand out in their data."""
    more = found.neurons[found.neurons["relative_frequency"] > 1]
    tokens = more.groupby(["unit", "neuron"])["token"].agg(list)
    neurons = found.summary.drop(columns="tokens")
    named = neurons.merge(tokens.rename("tokens").reset_index(), on=["unit", "neuron"])
    table = data_table("unit", "neuron", "weights", "outliers")
    table.add_column("tokens that its data has more of than all data, strongest first")
    for neuron in named.head(rows).to_dict("records"):
        cells = [neuron["unit"], str(neuron["neuron"]), str(neuron["parameters"])]
        table.add_row(*cells, f"{neuron['rows']:,}", escape(token_list(neuron["tokens"], 10)))
    print_table(console, "What taught the neurons", table)
    console.print(
        f"{len(named)} of {len(neurons)} neurons with analysed weights have such tokens"
        + (f"; the {rows} with most outliers are shown." if len(named) > rows else ".")
    )


def ablation(console: Console, found: Ablation, *, rows: int) -> None:
    """How far flips agree with attribution, by neuron and by layer, and one neuron in full."""
    neurons = found.neurons
    table = data_table(
        "unit", "neuron", "flips", "tokens", "notable", "they flip", "others", "ratio"
    )
    for neuron in neurons.head(rows).to_dict("records"):
        counts = [f"{neuron[name]:,}" for name in ("flips", "flipped_tokens", "notable_flipped")]
        shares = [f"{neuron[name]:.2%}" for name in ("notable_share", "other_share")]
        table.add_row(neuron["unit"], str(neuron["neuron"]), *counts, *shares, times(neuron))
    print_table(console, "Predictions that flip when a neuron is silenced", table)
    console.print(
        "tokens: how many different ones flip; notable: how many of these attribution had named.\n"
        "they flip, others: share of positions predicting a notable token, or another, that flip."
    )
    agree = int((neurons["notable_share"] > neurons["other_share"]).sum())
    console.print(f"{agree} of {len(neurons)} neurons flip their notable tokens more than others.")
    if len(found.flips):
        clearest_neuron(console, found, rows)
    layers(console, found)


def times(neuron: Mapping[Hashable, float]) -> str:
    """How many times as often notable tokens flip."""
    if neuron["notable_share"] > 0 and neuron["other_share"] == 0:
        return "only they"
    return f"{neuron['ratio']:.1f}" if math.isfinite(neuron["ratio"]) else "–"


def clearest_neuron(console: Console, found: Ablation, rows: int) -> None:
    """Flip table and contexts of the neuron whose notable tokens flip most often."""
    best = found.neurons.sort_values("notable_share", na_position="first").iloc[-1]
    flips, contexts = (
        table[(table["unit"] == best["unit"]) & (table["neuron"] == best["neuron"])]
        for table in (found.flips, found.contexts)
    )
    often = flips[flips["count"] >= OFTEN] if (flips["count"] >= OFTEN).any() else flips
    table = data_table("token", "proportion", "count", "notable")
    for flip in often.head(rows).to_dict("records"):
        proportion, notable = f"{flip['proportion']:.3f}", "yes" if flip["notable"] else ""
        table.add_row(escape(flip["token"]), proportion, f"{flip['count']:,}", notable)
    title = f"{best['unit']}, neuron {best['neuron']}: the tokens that flip most often"
    print_table(console, title, table)
    tokens = often.loc[often["notable"], "token"].head(3)
    shown = contexts[contexts["token"].isin(tokens)].drop_duplicates("token")
    if len(shown):
        console.print("In context, (before after) where the next token is predicted:")
    for context in shown["context"]:
        console.print(f"  {context}", markup=False)


def layers(console: Console, found: Ablation) -> None:
    """The study's layer table."""
    table = data_table("unit", "neurons", "flipped tokens", "of them notable")
    for layer in found.layers.to_dict("records"):
        share = f"{layer['notable_share']:.3f}"
        table.add_row(layer["unit"], str(layer["neurons"]), f"{layer['flipped_tokens']:.1f}", share)
    print_table(console, "By unit, mean over its silenced neurons", table)


def token_list(tokens: Iterable[str], most: int) -> str:
    """The first tokens, and how many more there are."""
    names = list(tokens)
    return " ".join(names[:most]) + (f"  (+{len(names) - most})" if len(names) > most else "")


def next_commands(console: Console, commands: Sequence[str]) -> None:
    """What to try now, as it can be typed here."""
    console.print("\nNext:")
    for command in commands:
        console.print(f"  {program()} {command}", markup=False, soft_wrap=True)


def program() -> str:
    """``ontogeny``, or its path where it is not on the PATH."""
    name = "ontogeny"
    return name if shutil.which(name) or Path(sys.argv[0]).name != name else relpath(sys.argv[0])


def data_table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def print_table(console: Console, title: str, table: Table) -> None:
    console.print(f"\n[bold]{escape(title)}[/]")
    console.print(table)
