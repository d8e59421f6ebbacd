"""Tables and summaries for the terminal."""

import math
from collections.abc import Iterable, Sequence

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
    neurons = found.summary
    named = neurons[neurons["tokens"].map(len) > 0]
    table = data_table("unit", "neuron", "weights", "outliers", title="What taught the neurons")
    table.add_column("tokens that its data has more of than all data, strongest first")
    for neuron in named.head(rows).to_dict("records"):
        cells = [neuron["unit"], str(neuron["neuron"]), str(neuron["parameters"])]
        table.add_row(*cells, f"{neuron['rows']:,}", escape(token_list(neuron["tokens"], 10)))
    console.print(table)
    console.print(
        f"{len(named)} of {len(neurons)} neurons with analysed weights have tokens of their own"
        + (f"; the {rows} with most outliers are shown." if len(named) > rows else ".")
    )


def ablation(console: Console, found: Ablation, *, rows: int) -> None:
    """How far flips agree with attribution, by neuron and by layer, and one neuron in full."""
    neurons = found.neurons
    title = "Predictions that flip when a neuron is silenced"
    table = data_table("unit", "neuron", "flips", "tokens", "notable", title=title)
    table.add_column("flip, if notable", justify="right")
    table.add_column("flip, if not", justify="right")
    table.add_column("times as often", justify="right")
    for neuron in neurons.head(rows).to_dict("records"):
        shares = [f"{neuron[name]:.1%}" for name in ("notable_share", "other_share")]
        counts = [f"{neuron[name]:,}" for name in ("flips", "flipped_tokens", "notable_flipped")]
        table.add_row(
            neuron["unit"], str(neuron["neuron"]), *counts, *shares, times(neuron["ratio"])
        )
    console.print(table)
    agreeing = (neurons["ratio"] > 1).sum()
    console.print(
        f"Of {len(neurons)} silenced neurons, {agreeing} flip predictions of the tokens that their "
        f"data names more often than others."
    )
    if len(found.flips):
        clearest_neuron(console, found, rows)
    layers(console, found)


def times(ratio: float) -> str:
    return f"{ratio:.1f} ×" if math.isfinite(ratio) else "–"


def clearest_neuron(console: Console, found: Ablation, rows: int) -> None:
    """The flip table and some contexts of the neuron with most notable tokens among its flips."""
    best = found.neurons.sort_values(["notable_flipped", "flips"], ascending=False).iloc[0]
    mine = [
        table[(table["unit"] == best["unit"]) & (table["neuron"] == best["neuron"])]
        for table in (found.flips, found.contexts)
    ]
    flips, contexts = mine
    title = f"{best['unit']}, neuron {best['neuron']}: the tokens that flip most often"
    table = data_table("token", "proportion", "count", "notable", title=title)
    for flip in flips[flips["count"] > 1].head(rows).to_dict("records"):
        notable = "yes" if flip["notable"] else ""
        table.add_row(
            escape(flip["token"]), f"{flip['proportion']:.3f}", f"{flip['count']:,}", notable
        )
    console.print(table)
    notable = flips.loc[flips["notable"], "token"]
    shown = contexts[contexts["token"].isin(notable)].groupby("token", sort=False).head(1).head(3)
    if len(shown):
        console.print("(before after) stand where the next token is predicted:")
    for context in shown["context"]:
        console.print(f"  {context}", markup=False)


def layers(console: Console, found: Ablation) -> None:
    """The study's layer table."""
    title = "By unit, mean over its silenced neurons"
    table = data_table("unit", "neurons", "flipped tokens", "of them notable", title=title)
    for layer in found.layers.to_dict("records"):
        share = f"{layer['notable_share']:.3f}"
        table.add_row(layer["unit"], str(layer["neurons"]), f"{layer['flipped_tokens']:.1f}", share)
    console.print(table)


def token_list(tokens: Iterable[str], most: int) -> str:
    """The first tokens, and how many more there are."""
    names = list(tokens)
    return " ".join(names[:most]) + (f"  (+{len(names) - most})" if len(names) > most else "")


def next_commands(console: Console, uri: str, names: Sequence[str]) -> None:
    console.print("\nNext:")
    for name in names:
        console.print(f"  ontogeny {name} {escape(uri)}")


def data_table(first: str, *others: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
