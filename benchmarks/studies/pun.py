"""When do puns emerge? The class exercise on a model trained here; page docs/studies/pun.md.

A small transformer is trained on ``pun_text``, and completes puns that it read and puns that were
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
from benchmarks.studies.drawing import curves_figure
from benchmarks.studies.pun_text import (
    IDIOMS,
    TRADES,
    held_out_pairs,
    made_text,
    write_completions,
    write_puns,
    write_trades,
    written_pairs,
)
from benchmarks.studies.study import Blocks, Results, Study, half_width, percent, step_of, table
from benchmarks.studies.transitions import half_cell, verdicts
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
COMPLETION = ("completion_accuracy", "completion_top5", "completion_loss")
LENS = "benchmarks.studies.pun:punchline_lens"
CURVES = {
    "held": "puns that were never written",
    "shots": "the same, behind two other puns",
    "written": "puns that it read",
}
PROBES = {"trades": "which half of the trades, before the punchline", "puns": "pun or no pun"}
STATES = ("the embedding", "layer 0", "layer 1")
"""Where the lens reads, in the order of ``punchline_lens``."""
CROSSINGS = (0.7, 0.9)


def punchline_lens(model: Observed, text: Text) -> Iterator[Row]:
    """Loss of the punchline read after each layer, nats; null: that of another pun's."""
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
    place.mkdir(parents=True, exist_ok=True)
    (place / "text.txt").write_text(made_text(SENTENCES, seed=0))
    write_completions(place / "held.jsonl", held_out_pairs())
    write_completions(place / "written.jsonl", written_pairs())
    write_puns(place / "puns.jsonl")
    write_trades(place / "trades.jsonl")
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


# --- the page -------------------------------------------------------------------------------------


def last(own: Results, name: str, metric: str = COMPLETION[0]) -> float:
    return own["curves"][name][metric][-1]


def crossing(own: Results, probe: str, share: float) -> int | None:
    """Return the first step from which on the best layer's probe stays at such an accuracy."""
    best_K = np.max([one["value"] for one in own["probe"][probe].values()], axis=0)
    stays = np.flip(np.minimum.accumulate(np.flip(best_K))) >= share
    return own["steps"][int(np.argmax(stays))] if stays.any() else None


def claims(results: Results) -> dict[str, bool]:
    every = results["seeds"]
    return {
        "puns that it read are completed at the end": all(
            last(own, "written") > 0.9 for own in every
        ),
        "most puns that were never written are, too, far above a guess by the idiom": all(
            last(own, "held") - half_width(last(own, "held"), own["n"]["held"]) > own["guess"] + 0.2
            for own in every
        ),
        "no probe tells a pun from the same set-up with another word": all(
            crossing(own, "puns", CROSSINGS[0]) is None for own in every
        ),
        "the punchline is read best after the last layer": all(
            own["lens"]["layer 2"]["value"][-1]
            < min(own["lens"][name]["value"][-1] for name in ("layer 0", "layer 1"))
            for own in every
        ),
        "examples in context do not help at the end": all(
            last(own, "shots")
            <= last(own, "held") + half_width(last(own, "held"), own["n"]["held"])
            for own in every
        ),
        "the trade is known no later than held-out puns are completed": all(
            (crossing(own, "trades", CROSSINGS[1]) or 10**9)
            <= own["transitions"]["completion_accuracy"]["half_step"]
            for own in every
        ),
    }


def blocks(results: Results) -> Blocks:
    every = results["seeds"]
    return {
        "course": course(every),
        "probe": probe_table(every),
        "lens": lens_table(every),
        "transitions": transitions_table(every),
        "beside": beside(every),
    }


def course(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        for at, step in enumerate(own["steps"]):
            cells = [
                f"{percent(own['curves'][name][COMPLETION[0]][at], 0)}, "
                f"{percent(own['curves'][name]['completion_top5'][at], 0)}"
                for name in CURVES
            ]
            rows.append([str(own["seed"]), step_of(step), *cells, f"{own['loss'][at]:.2f}"])
    n = every[0]["n"]
    head = [f"{label} (n = {n[name]})" for name, label in CURVES.items()]
    return table(["seed", "step", *head, "held-out loss"], rows)


def probe_table(every: list[Results]) -> list[str]:
    rows = []
    for name, label in PROBES.items():
        for own in every:
            crossed = [crossing(own, name, share) for share in CROSSINGS]
            steps = ["never" if step is None else step_of(step) for step in crossed]
            ends = [
                f"{percent(one['value'][-1], 0)} ({percent(one['null'][-1], 0)})"
                for one in own["probe"][name].values()
            ]
            about = f"{label} (n = {own['n'][name]})"
            rows.append([about, str(own["seed"]), *steps, ", ".join(ends)])
    heads = [f"{percent(share, 0)} from step" for share in CROSSINGS]
    end = "at the end: embedding, layer 0, layer 1 (labels dealt at random)"
    return table(["probe", "seed", *heads, end], rows)


def lens_table(every: list[Results]) -> list[str]:
    rows = []
    for own in every:
        for name, one in zip(STATES, own["lens"].values(), strict=True):
            shown = [one["value"][at] for at in (0, len(one["value"]) // 2, -1)]
            rows.append(
                [str(own["seed"]), name, *(f"{v:.2f}" for v in shown), f"{one['null'][-1]:.2f}"]
            )
    steps = every[0]["steps"]
    middle = [f"step {step_of(steps[at])}" for at in (0, len(steps) // 2, -1)]
    return table(["seed", "read after", *middle, "another pun's word, at the end"], rows)


def transitions_table(every: list[Results]) -> list[str]:
    names = {
        "completion_accuracy": "held-out puns completed",
        "completion_loss": "loss of their punchlines",
        "loss": "held-out loss",
        "copying": "copying of random tokens",
    }
    rows = [
        [label, *(half_cell(own["transitions"].get(name)) for own in every)]
        for name, label in names.items()
    ]
    return table(["curve", *(f"seed {own['seed']}" for own in every)], rows)


def beside(every: list[Results]) -> list[str]:
    """The exercise's questions, and what is found here."""
    n = every[0]["n"]["held"]
    halves = [own["transitions"].get("completion_accuracy") or {} for own in every]
    kinds = ", ".join(str(one.get("verdict", "not measured")) for one in halves)
    gains = [
        max(
            np.subtract(own["curves"]["shots"][COMPLETION[0]], own["curves"]["held"][COMPLETION[0]])
        )
        for own in every
    ]
    ends = ", ".join(
        f"{percent(last(own, 'held'), 0)} ± {100 * half_width(last(own, 'held'), n):.0f}"
        for own in every
    )
    guess = ", ".join(percent(own["guess"], 0) for own in every)
    crossed = [crossing(own, "trades", CROSSINGS[1]) for own in every]
    steps = ", ".join("never" if step is None else step_of(step) for step in crossed)
    best = ", ".join(percent(gain, 0) for gain in gains)
    rows = [
        ["can it complete puns?", f"{ends} of {n} puns never written; by the idiom alone {guess}"],
        [
            "when is the probe above 90 %?",
            f"that of the trade from step {steps}; that of the pun never",
        ],
        ["sudden or gradual?", kinds],
        ["do examples in context help?", f"at the step where they help most, by {best}"],
    ]
    return table(["the exercise asks", f"here (n = {len(every)} seeds)"], rows)


def draw(results: Results, path: Path) -> None:
    completed, losses = [], []
    for own in results["seeds"]:
        first = own is results["seeds"][0]
        for colour, (name, label) in enumerate(CURVES.items()):
            values = own["curves"][name][COMPLETION[0]]
            completed.append((own["steps"], values, colour, label if first else ""))
        losses.append((own["steps"], own["loss"], 3, "held-out loss" if first else ""))
    curves_figure([completed, losses], path, logarithmic=True)


STUDY = Study("pun", measure, claims, blocks, draw, SEEDS)
