"""What ablation takes, and what a naive sweep would: ``python -m benchmarks.ablation``.

The naive sweep sets a neuron's column to zero and does a whole forward pass over the same datums,
for each neuron anew. It is given the batch size at which it is fastest here, and inference mode.
Since its time does not depend on the neuron, it is timed on fewer of them. Ours is timed with all
that it needs, the clean pass included. Before anything is timed both must predict the same.

A model that was trained certifies more predictions than one with random weights, so the model is
that of a run (``--run``), or one trained for some steps here.
"""

import argparse
import copy
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from analysis.ablation.forward import AblatedPredictions, ablated_predictions
from analysis.ablation.log_probability import log_probability_changes
from analysis.ablation.replacement import AblationPlan
from analysis.ablation.subjects import Subject
from analysis.run.run import open_run
from benchmarks.capture import DEFAULT_FOLDER
from benchmarks.harness import methods
from benchmarks.harness.methods import training_step
from benchmarks.harness.report import machine
from benchmarks.harness.timing import quartiles
from benchmarks.harness.workbench import make_workbench
from capture.errors import ConfigError
from capture.models.transformer import LanguageModel

TARGETS = {"layers.2.linear2.weight": 8.0, "layers.0.linear1.weight": 3.0}
"""By how much flips of these units should be faster than the naive sweep."""
UNITS = [f"layers.{layer}.linear{i}.weight" for layer in (0, 1, 2) for i in (1, 2)]
BATCHES = (4, 8, 16, 32, 64, 128)
SAME = 1 - 1e-5
"""Share of predictions that must agree; the rest are logits nearer than float32 tells apart."""


@dataclass(frozen=True)
class Size:
    """How long the benchmark takes."""

    steps: int
    """Of training, where there is no run."""
    datums: int
    neurons: int
    """Neurons of a unit that our method ablates."""
    naive_neurons: int
    rounds: int


FULL = Size(steps=300, datums=128, neurons=50, naive_neurons=4, rounds=3)
QUICK = Size(steps=5, datums=16, neurons=6, naive_neurons=2, rounds=1)


@dataclass(frozen=True)
class Bench:
    """A model, text, and the naive way's best batch size."""

    model: LanguageModel
    token_NT: np.ndarray
    target_NT: np.ndarray
    batch: int


@dataclass(frozen=True)
class Line:
    """One line of the table; triples are first quartile, median, third quartile over rounds."""

    unit: str
    what: str
    """flips or log-probabilities."""
    naive_milliseconds: tuple[float, float, float]
    """Per neuron."""
    milliseconds: tuple[float, float, float]
    ratio: tuple[float, float, float]
    """Naive / ours, within a round."""
    certified: float | None
    """Share of positions that went without all logits."""


def main() -> None:
    arguments = parse_arguments()
    size = QUICK if arguments.quick else FULL
    model, token_NT, target_NT, source = material(arguments.run, size)
    token_NT, target_NT = token_NT[: size.datums], target_NT[: size.datums]
    bench = Bench(model, token_NT, target_NT, best_batch(model, token_NT))
    setting = {
        "model": source,
        "vocabulary": len(model.decoder.bias),
        "naive_batch": bench.batch,
        **asdict(size),
    }
    found_on = machine()
    print("\n".join(f"{key}: {value}" for key, value in (found_on | setting).items()), flush=True)
    lines = measure(bench, size)
    print("\n" + table(lines))
    if arguments.json:
        found = {"machine": found_on, "setting": setting, "results": [asdict(x) for x in lines]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", metavar="RUN", help="take the last model and the text of this run")
    parser.add_argument("--quick", action="store_true", help="see that it works")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    return parser.parse_args()


def material(uri: str | None, size: Size) -> tuple[LanguageModel, np.ndarray, np.ndarray, str]:
    """Model, inputs, targets, and where they come from."""
    if uri:
        run = open_run(uri)
        return run.model(), run.token_NT, run.target_NT, f"a run of {run.steps_done} steps"
    bench, text = make_workbench(Path(os.environ.get("ONTOGENY_WIKITEXT2", DEFAULT_FOLDER)))
    step = training_step(bench, methods.plain)
    for turn in itertools.islice(bench.turns, size.steps):
        step(turn)
    train = bench.plan.corpus.train
    model = bench.model.eval().requires_grad_(False)
    return model, train.token_NT, train.target_NT, f"{size.steps} steps on {text}"


def best_batch(model: LanguageModel, token_NT: np.ndarray) -> int:
    """The number of datums at once with which a naive pass is fastest."""
    sizes = [size for size in BATCHES if size <= len(token_NT)]
    naive_predictions(model, token_NT, sizes[-1])
    seconds = [timed(lambda s=size: naive_predictions(model, token_NT, s))[0] for size in sizes]
    return sizes[int(np.argmin(seconds))]


def timed(do: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    found = do()
    return time.perf_counter() - start, found


# --- both ways ------------------------------------------------------------------------------------


@torch.inference_mode()
def naive_predictions(model: LanguageModel, token_NT: np.ndarray, batch: int) -> np.ndarray:
    token = torch.from_numpy(token_NT).long()
    return torch.cat([model(some_NT).argmax(2) for some_NT in token.split(batch)]).numpy()


@torch.inference_mode()
def naive_log_probability(bench: Bench, model: LanguageModel) -> np.ndarray:
    """log p(target), [N, T]."""
    pairs = (torch.from_numpy(x_NT).long() for x_NT in (bench.token_NT, bench.target_NT))
    pieces = zip(*(x_NT.split(bench.batch) for x_NT in pairs), strict=True)
    losses = (
        F.cross_entropy(model(token).flatten(0, 1), target.flatten(), reduction="none")
        for token, target in pieces
    )
    return -torch.cat(list(losses)).view(bench.target_NT.shape).numpy()


def without(model: LanguageModel, subject: Subject) -> LanguageModel:
    ablated = copy.deepcopy(model)
    with torch.no_grad():
        ablated.get_parameter(subject.unit)[:, subject.group] = 0
    return ablated


def ours(bench: Bench, subjects: list[Subject]) -> AblatedPredictions:
    plan = AblationPlan.of(bench.model, bench.token_NT, subjects, "zero", bench.token_NT)
    everything = np.arange(len(bench.token_NT))
    return ablated_predictions(bench.model, bench.token_NT, plan, [everything] * len(subjects))


def our_log_probability(bench: Bench, subjects: list[Subject]) -> np.ndarray:
    """Sums by subject and target, [S, V]."""
    num_tokens = len(bench.model.decoder.bias)
    return log_probability_changes(
        bench.model, bench.token_NT, bench.target_NT, subjects, num_tokens=num_tokens
    )[0]


# --- measuring ------------------------------------------------------------------------------------


def measure(bench: Bench, size: Size) -> list[Line]:
    """Every unit, both questions; in rounds that alternate their order."""
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    certified = {}
    for number in range(size.rounds):
        for unit in UNITS[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {size.rounds}: {unit}", file=sys.stderr, flush=True)
            subjects = spread(bench, unit, size.neurons)
            few = subjects[:: max(1, len(subjects) // size.naive_neurons)][: size.naive_neurons]
            models = [without(bench.model, subject) for subject in few]
            certified[unit], pair = time_flips(bench, subjects, models)
            samples.setdefault((unit, "flips"), []).append(pair)
            pair = time_log_probability(bench, subjects, models)
            samples.setdefault((unit, "log-probabilities"), []).append(pair)
            if not number:
                require_same(bench, few, models)
    return [
        make_line(unit, what, pairs, certified[unit] if what == "flips" else None)
        for (unit, what), pairs in sorted(samples.items(), key=lambda item: item[0][::-1])
    ]


def spread(bench: Bench, unit: str, number: int) -> list[Subject]:
    """So many neurons of a unit, evenly spaced."""
    width = bench.model.get_parameter(unit).shape[1]
    return [Subject(unit, int(n)) for n in np.linspace(0, width - 1, min(number, width))]


def time_flips(
    bench: Bench, subjects: list[Subject], models: list[LanguageModel]
) -> tuple[float, tuple[float, float]]:
    """Share certified, and seconds a neuron, naive and ours."""
    naive, _ = timed(
        lambda: [naive_predictions(model, bench.token_NT, bench.batch) for model in models]
    )
    start = time.perf_counter()
    found = ours(bench, subjects)
    own = time.perf_counter() - start
    return found.certified, (naive / len(models), own / len(subjects))


def time_log_probability(
    bench: Bench, subjects: list[Subject], models: list[LanguageModel]
) -> tuple[float, float]:
    """Seconds a neuron, naive and ours."""
    naive, _ = timed(lambda: [naive_log_probability(bench, model) for model in models])
    own, _ = timed(lambda: our_log_probability(bench, subjects))
    return naive / len(models), own / len(subjects)


def require_same(bench: Bench, subjects: list[Subject], models: list[LanguageModel]) -> None:
    """Ends the benchmark where ours and the naive way differ."""
    found = ours(bench, subjects)
    change_SV = our_log_probability(bench, subjects)
    clean_NT = naive_log_probability(bench, bench.model)
    changes = found.changes
    for place, model in enumerate(models):
        after_NT = found.before_UT.copy()
        own = changes.subject_M == place
        after_NT[changes.datum_M[own], changes.position_M[own]] = changes.after_M[own]
        same = (after_NT == naive_predictions(model, bench.token_NT, bench.batch)).mean()
        change = (naive_log_probability(bench, model) - clean_NT).astype(np.float64).mean()
        off = abs(change_SV[place].sum() / clean_NT.size - change)
        if same < SAME or off > 1e-5:
            problem = f"{1 - same:.1e} of predictions differ, mean log p by {off:.1e}"
            raise ConfigError(str(subjects[place]), problem)


def make_line(
    unit: str, what: str, pairs: list[tuple[float, float]], certified: float | None
) -> Line:
    naive, own = ([1000 * seconds for seconds in column] for column in zip(*pairs, strict=True))
    ratios = [a / b for a, b in zip(naive, own, strict=True)]
    return Line(unit, what, quartiles(naive), quartiles(own), quartiles(ratios), certified)


def table(lines: list[Line]) -> str:
    """The results, one a line."""
    head = (
        f"{'unit':<26} {'what':<18} {'naive ms':>9} {'ms':>8} {'×':>7} {'IQR':>13} {'certain':>8}"
    )
    rows = [head, "-" * len(head)]
    for line in lines:
        low, middle, high = line.ratio
        certain = "" if line.certified is None else f"{line.certified:.2%}"
        target = f"  (wanted {TARGETS[line.unit]:g})" if certain and line.unit in TARGETS else ""
        rows.append(
            f"{line.unit:<26} {line.what:<18} {line.naive_milliseconds[1]:>9,.1f} "
            f"{line.milliseconds[1]:>8,.1f} {middle:>7.1f} {f'{low:.1f}–{high:.1f}':>13} "
            f"{certain:>8}{target}"
        )
    return "\n".join([*rows, "", "ms: per neuron, the clean pass shared among those ablated."])


if __name__ == "__main__":
    main()
