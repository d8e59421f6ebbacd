"""When do puns emerge? The class exercise on a model trained here; page docs/studies/pun.md.

A small transformer is trained on ``puns.text``, and completes puns that it read and puns that were
never written, at dense checkpoints: without examples, and behind two other puns. A probe tells puns
from the same words without the pun, and the logit lens says after which layer the punchline is
first. Source: "In-Class Exercise: When Do Puns Emerge?" of a course on training dynamics, which
asks this of OLMo's checkpoints.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

import ontogeny
from analysis.trajectory.metrics.row import Row, mean_row
from analysis.trajectory.observed.model import Observed
from analysis.trajectory.observed.text import Text
from analysis.trajectory.tables import Trajectory
from benchmarks.studies.puns.page import COMPLETION, CURVES, PROBES, blocks, claims, draw
from benchmarks.studies.puns.text import (
    IDIOMS,
    TRADES,
    held_out_pairs,
    made_text,
    write_completions,
    write_puns,
    write_trades,
    written_pairs,
)
from benchmarks.studies.study import Results, Study
from benchmarks.studies.transitions import verdicts
from ontogeny import Run

SEEDS = (0, 1, 2)
SENTENCES, WINDOW, EVERY = 8000, 40, 50
SETTINGS = (
    *("corpus.kind=text", f"corpus.window={WINDOW}", "model.dropout=0", "model.layers=2"),
    *("model.width=64", "model.hidden=128", "model.heads=4", "training.epochs=16"),
    *("training.batch=16", "training.learning_rate=0.003", "training.decay=1", "training.clip=1"),
    *("training.optimizer.kind=adamw", "training.optimizer.weight_decay=0.1"),
    *("capture.record=checkpoints", f"capture.segment_steps={EVERY}"),
)
STEPS = "0:651:50,700:1501:200,1632"
LENS = "benchmarks.studies.pun:punchline_lens"


def punchline_lens(model: Observed, text: Text) -> Iterator[Row]:
    """Yield the loss of the punchline read after each layer, nats; null: of another pun's."""
    puns = list(text.concept.completions)
    for number in range(len(model.blocks) + 1):
        own, null = [], []
        for place, pun in enumerate(puns):
            state_1TD = model.states(torch.tensor([pun.before]))[number]
            log_p_V = model.read(state_1TD[:, -1:]).double().log_softmax(-1).flatten()
            own.append(-float(log_p_V[pun.tokens[0]]))
            null.append(-float(log_p_V[puns[place - 1].tokens[0]]))
        yield mean_row("punchline_lens", f"layer {number}", np.array(own), float(np.mean(null)))


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    return {"seeds": [measured(folder, seed) for seed in seeds]}


def measured(folder: Path, seed: int) -> Results:
    """Train with one seed, and complete puns at the checkpoints."""
    place = folder / f"pun-{seed}"
    write_files(place)
    where = (f"run.uri={place / 'run'}", f"corpus.path={place / 'text.txt'}", f"run.seed={seed}")
    run = ontogeny.capture("demo", *SETTINGS, *where, resume=True)
    asked = {
        "held": ("held", 0, (*COMPLETION, LENS, "loss", "copying")),
        "shots": ("held", 2, COMPLETION),
        "written": ("written", 0, COMPLETION),
        "puns": ("puns", 0, ("probe",)),
        "trades": ("trades", 0, ("probe",)),
    }
    found = {}
    for name, (file, shots, metrics) in asked.items():
        config = ontogeny.TrajectoryConfig(
            metrics=metrics, steps=STEPS, concept=str(place / f"{file}.jsonl"), shots=shots
        )
        found[name] = ontogeny.trajectory(run, config, save=True, name=name, replace=True)
    config = ontogeny.TransitionsConfig(trajectory="held", states=0, record=False)
    changes = ontogeny.transitions(run, config)
    held = found["held"]
    return {
        "seed": seed,
        "steps": held.series("completion_accuracy")["step"].tolist(),
        "n": {name: examples(one) for name, one in found.items()},
        "curves": {
            name: {metric: one.series(metric)["value"].tolist() for metric in COMPLETION}
            for name, one in found.items()
            if name in CURVES
        },
        "null": held.series("completion_accuracy")["null"].tolist(),
        "probe": {name: by_component(found[name], "probe") for name in PROBES},
        "lens": by_component(held, "punchline_lens"),
        "loss": held.series("loss")["value"].tolist(),
        "copying": held.series("copying")["value"].tolist(),
        "transitions": verdicts(changes.curves),
        "guess": best_idiom_guess(run),
    }


def write_files(place: Path) -> None:
    """Write the text, and the puns and set-ups that are asked about."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "text.txt").write_text(made_text(SENTENCES, seed=0))
    write_completions(place / "held.jsonl", held_out_pairs())
    write_completions(place / "written.jsonl", written_pairs())
    write_puns(place / "puns.jsonl")
    write_trades(place / "trades.jsonl")


def examples(found: Trajectory) -> int:
    """Return the number of puns or texts."""
    rows = found.trajectory
    return int(rows.loc[rows["metric"].isin([COMPLETION[0], "probe"]), "n"].iloc[0])


def by_component(found: Trajectory, metric: str) -> Results:
    """Return component → its values and nulls."""
    rows = found.trajectory[found.trajectory["metric"] == metric]
    return {
        str(name): {"value": own["value"].tolist(), "null": own["null"].tolist()}
        for name, own in rows.groupby("component", sort=False)
    }


def best_idiom_guess(run: Run) -> float:
    """Return the share of held-out puns that the commonest word of their idiom would complete."""
    text = " ".join(run.datums("train")["text"])
    counts = {word: text.count(f" {word} ") for words in TRADES.values() for word in words}
    best = [
        max((TRADES[trade][idiom] for trade in TRADES), key=lambda word: counts[word])
        for idiom in range(len(IDIOMS))
    ]
    return float(
        np.mean([TRADES[trade][idiom] == best[idiom] for trade, idiom in held_out_pairs()])
    )


STUDY = Study("pun", measure, claims, blocks, draw, SEEDS)
