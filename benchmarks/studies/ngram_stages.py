"""Stages of n-grams: which statistics of a text a model learns when.

Page docs/studies/ngram-stages.md. A small transformer is trained once for each seed on WikiText-2
(the folder in ``ONTOGENY_WIKITEXT2``) or, without it, on the language reference that comes with
Python. At dense checkpoints its predictions are compared with the uni-, bi- and trigrams of the
training text.
Source: Belrose et al. 2024, "Neural networks learn statistics of increasing complexity".
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ontogeny
from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.study import Blocks, Results, Study, mean_and_interval, step_of, table
from benchmarks.studies.transitions import half_cell, verdicts
from ontogeny import Run

SEEDS = (0, 1, 2)
ORDERS = ("unigram", "bigram", "trigram")
MODEL = ("model.layers=2", "model.width=64", "model.hidden=128", "model.dropout=0")
TRAINING = (
    *("training.learning_rate=0.003", "training.decay=1", "training.clip=1"),
    *("training.optimizer.kind=adamw", "training.optimizer.weight_decay=0.01"),
    *("capture.record=checkpoints", "capture.segment_steps=100"),
)
EPOCHS, BATCH, WINDOW, DATUMS = 2, 16, 24, 60
CHECKPOINTS = 30
SHOWN = (0, 4, 16, 48, 96, 256, 512, 10**6)
"""Steps of the first table; the checkpoint nearest to each is shown."""


def text_settings() -> tuple[str, list[str]]:
    """Return the name of the text, and the settings that choose it."""
    folder = os.environ.get("ONTOGENY_WIKITEXT2", "../shared/data/wikitext-2")
    if Path(folder).is_dir():
        parts = [f"corpus.path={Path(folder) / 'valid.txt'}", "corpus.kind=text"]
        return "WikiText-2, validation part", parts
    return "Python's language reference", ["corpus.kind=python-reference"]


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    every = [measured(folder, seed) for seed in seeds]
    return {"text": text_settings()[0], "seeds": every}


def trained(folder: Path, seed: int) -> Run:
    """Train with one seed, or take the run that is there."""
    uri = str(folder / f"ngram-stages-{seed}")
    own = (f"run.uri={uri}", f"run.seed={seed}", f"training.batch={BATCH}")
    size = (f"corpus.window={WINDOW}", f"training.epochs={EPOCHS}")
    given = (*text_settings()[1], *own, *size, *MODEL, *TRAINING)
    return ontogeny.capture("demo", *given, resume=True)


def measured(folder: Path, seed: int) -> Results:
    """Train with one seed, and measure the distance from each n-gram at the checkpoints."""
    run = trained(folder, seed)
    config = ontogeny.TrajectoryConfig(
        metrics=("loss", "ngram_kl"), steps=spaced(run.num_steps), datums=DATUMS
    )
    found = ontogeny.trajectory(run, config, save=True, replace=True)
    asked = ontogeny.TransitionsConfig(metrics=("loss", "ngram_kl"), states=0, record=False)
    changes = ontogeny.transitions(run, asked)
    kl = {order: found.series("ngram_kl", order) for order in ORDERS}
    loss = found.series("loss")
    return {
        "seed": seed,
        "tokens": run.num_tokens,
        "datums": run.num_datums,
        "n": int(loss["n"].iloc[0]),
        "steps": loss["step"].tolist(),
        "loss": loss["value"].tolist(),
        "kl": {order: rows["value"].tolist() for order, rows in kl.items()},
        "error": {order: rows["standard_error"].tolist() for order, rows in kl.items()},
        "null": {order: float(rows["null"].iloc[0]) for order, rows in kl.items()},
        "unigram_loss": float(loss["null"].iloc[0]),
        "transitions": verdicts(changes.curves),
    }


def spaced(last: int) -> list[int]:
    """Return the first steps, and then steps that are evenly spread by their logarithm."""
    later = np.geomspace(8, last, CHECKPOINTS - 8).round().astype(int)
    return sorted({*range(8), *later.tolist()})


# --- the page -------------------------------------------------------------------------------------


def lowest(own: Results, order: str) -> tuple[int, float]:
    """Return the step at which a distance is lowest, and the distance."""
    place = int(np.argmin(own["kl"][order]))
    return own["steps"][place], own["kl"][order][place]


def claims(results: Results) -> dict[str, bool]:
    every = results["seeds"]
    return {
        "the distance from unigrams falls and rises again": all(
            lowest(own, "unigram")[1] < 0.8 * min(own["kl"]["unigram"][0], own["kl"]["unigram"][-1])
            for own in every
        ),
        "unigrams are nearest before bigrams are": all(
            lowest(own, "unigram")[0] < lowest(own, "bigram")[0] for own in every
        ),
        "the distances from bigrams and trigrams are least at the end": all(
            lowest(own, order)[0] == own["steps"][-1] for own in every for order in ORDERS[1:]
        ),
    }


def blocks(results: Results) -> Blocks:
    every = results["seeds"]
    return {
        "text": [about(results)],
        "beside": beside_table(every),
        "stages": stages_table(every),
        "nearest": nearest_table(every),
        "transitions": transitions_table(every),
    }


def about(results: Results) -> str:
    own = results["seeds"][0]
    return (
        f"Here: {results['text']}, {own['datums']:,} training windows of {WINDOW} words, "
        f"{own['tokens']:,} words in the vocabulary; a transformer of 2 layers of width 64, AdamW, "
        f"batches of {BATCH}, {own['steps'][-1]:,} steps; {len(results['seeds'])} seeds; "
        f"{own['n']} held-out windows."
    )


def beside_table(every: list[Results]) -> list[str]:
    """What was published beside what is found here, one value for each seed."""
    steps = [step_of(lowest(own, "unigram")[0]) for own in every]
    closest = [f"{lowest(own, 'unigram')[1]:.2f}" for own in every]
    away = [f"{own['kl']['unigram'][-1]:.2f}" for own in every]
    last = sum(lowest(own, "bigram")[0] == own["steps"][-1] for own in every)
    first = [f"{half_cell(own['transitions'].get('ngram_kl unigram'))}" for own in every]
    rows = [
        [
            'models at first behave "similarly to n-gram models" (the study of 2023)',
            f"nearest to unigrams at step {', '.join(steps)}: {', '.join(closest)} nats",
        ],
        [
            'and later exhibit "linguistic patterns" (the same)',
            f"they leave the unigrams: {', '.join(away)} nats at the end; syntax was not measured",
        ],
        [
            "a stage of bigrams follows (Belrose et al. 2024)",
            f"not reproduced: still nearing the bigrams at the end in {last} of {len(every)} seeds",
        ],
        [
            'early on a single step may be a "shift these n-grams" operation (the study of 2023)',
            f"half of the way to the unigrams is made at step: {'; '.join(first)}",
        ],
    ]
    return table(["published", f"here (n = {len(every)})"], rows)


def stages_table(every: list[Results]) -> list[str]:
    """Distances at a few steps: mean over seeds and its interval."""
    steps = np.array(every[0]["steps"])
    places = [int(np.abs(steps - step).argmin()) for step in SHOWN]
    rows = []
    for order in ORDERS:
        cells = [mean_and_interval([own["kl"][order][at] for own in every]) for at in places]
        rows.append([order, *cells, f"{np.mean([own['null'][order] for own in every]):.2f}"])
    shown = [f"step {steps[at]:,}" for at in places]
    return table(["KL from the text's", *shown, "uniform prediction"], rows)


def nearest_table(every: list[Results]) -> list[str]:
    rows = []
    for order in ORDERS:
        found = [lowest(own, order) for own in every]
        rows.append(
            [
                order,
                ", ".join(step_of(step) for step, _ in found),
                mean_and_interval([value for _, value in found]),
                mean_and_interval([own["kl"][order][-1] for own in every]),
            ]
        )
    head = [
        "n-gram",
        "step at which the model is nearest, each seed",
        "distance there",
        "at the end",
    ]
    return table(head, rows)


def transitions_table(every: list[Results]) -> list[str]:
    curves = {"loss": "held-out loss", **{f"ngram_kl {name}": f"KL, {name}" for name in ORDERS}}
    rows = [
        [label, *(half_cell(own["transitions"].get(name)) for own in every)]
        for name, label in curves.items()
    ]
    return table(["curve", *(f"seed {own['seed']}" for own in every)], rows)


def draw(results: Results, path: Path) -> None:
    lines, losses = [], []
    for own in results["seeds"]:
        first = own is results["seeds"][0]
        for colour, order in enumerate(ORDERS):
            label = f"KL from {order}s" if first else ""
            lines.append((own["steps"], own["kl"][order], colour, label))
        losses.append((own["steps"], own["loss"], 3, "held-out loss" if first else ""))
    curves_figure([lines, losses], path, logarithmic=True)


STUDY = Study("ngram-stages", measure, claims, blocks, draw, SEEDS)
