"""Time ablation of neurons against a naive sweep: ``python -m benchmarks.ablation``.

The naive sweep sets one neuron's column to zero at a time and does a whole forward pass over the
same datums. It runs in inference mode at the batch size that is fastest on this machine. Its time
does not depend on the neuron, so it is timed on fewer neurons. Our time includes the clean pass.
Both methods must predict the same tokens before the benchmark prints any time.

Ablation certifies more predictions of a trained model than of a random one. The model is therefore
the last one of a run (``--run``), or one that this script trains for some steps.
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
"""Targets: by which factor flips of these units should be faster than the naive sweep."""
UNITS = [f"layers.{layer}.linear{i}.weight" for layer in (0, 1, 2) for i in (1, 2)]
BATCHES = (4, 8, 16, 32, 64, 128)
SAME = 1 - 1e-5
"""Share of predictions that must agree; float32 rounding may swap two nearly equal logits."""


@dataclass(frozen=True)
class Size:
    """Length of the benchmark."""

    steps: int
    """Training steps, if no run is given."""
    datums: int
    neurons: int
    """Neurons of each unit that our method ablates."""
    naive_neurons: int
    """Neurons of each unit that the naive sweep ablates."""
    rounds: int


FULL = Size(steps=300, datums=128, neurons=50, naive_neurons=4, rounds=3)
QUICK = Size(steps=5, datums=16, neurons=6, naive_neurons=2, rounds=1)


@dataclass(frozen=True)
class Bench:
    """A model, its text, and the fastest batch size of the naive sweep."""

    model: LanguageModel
    token_NT: np.ndarray
    target_NT: np.ndarray
    batch: int


@dataclass(frozen=True)
class Line:
    """One line of the table. Triples are first quartile, median and third quartile of rounds."""

    unit: str
    what: str
    """What was computed: "flips" or "log-probabilities"."""
    naive_milliseconds: tuple[float, float, float]
    """Milliseconds per neuron."""
    milliseconds: tuple[float, float, float]
    """Milliseconds per neuron, the clean pass divided among the neurons."""
    ratio: tuple[float, float, float]
    """Time of the naive sweep over ours, within a round."""
    certified: float | None
    """Share of positions whose prediction was certain without computing all logits."""


def main() -> None:
    arguments = parse_arguments()
    size = QUICK if arguments.quick else FULL
    model, token_NT, target_NT, source = model_and_text(arguments.run, size)
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
    parser.add_argument("--run", metavar="RUN", help="use the last model and the text of this run")
    parser.add_argument("--quick", action="store_true", help="few neurons, to test the script")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


def model_and_text(
    uri: str | None, size: Size
) -> tuple[LanguageModel, np.ndarray, np.ndarray, str]:
    """Return model, inputs [N, T], targets [N, T] and a description of their source."""
    if uri:
        run = open_run(uri)
        return run.model(), run.token_NT, run.target_NT, f"a run of {run.steps_done} steps"
    bench, text = make_workbench(Path(os.environ.get("ONTOGENY_WIKITEXT2", DEFAULT_FOLDER)))
    step = training_step(bench, methods.plain)
    for planned in itertools.islice(bench.planned_steps, size.steps):
        step(planned)
    train = bench.plan.corpus.train
    model = bench.model.eval().requires_grad_(False)
    return model, train.token_NT, train.target_NT, f"{size.steps} steps on {text}"


def best_batch(model: LanguageModel, token_NT: np.ndarray) -> int:
    """Return the batch size with which a naive pass is fastest."""
    sizes = [size for size in BATCHES if size <= len(token_NT)]
    naive_predictions(model, token_NT, sizes[-1])
    seconds = [timed(lambda s=size: naive_predictions(model, token_NT, s))[0] for size in sizes]
    return sizes[int(np.argmin(seconds))]


def timed(do: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that a call took, and its result."""
    start = time.perf_counter()
    found = do()
    return time.perf_counter() - start, found


# --- both methods ---------------------------------------------------------------------------------


@torch.inference_mode()
def naive_predictions(model: LanguageModel, token_NT: np.ndarray, batch: int) -> np.ndarray:
    """Return the most likely token at each position, [N, T]."""
    token = torch.from_numpy(token_NT).long()
    return torch.cat([model(some_NT).argmax(2) for some_NT in token.split(batch)]).numpy()


@torch.inference_mode()
def naive_log_probability(bench: Bench, model: LanguageModel) -> np.ndarray:
    """Return log p(target), [N, T]."""
    pairs = (torch.from_numpy(x_NT).long() for x_NT in (bench.token_NT, bench.target_NT))
    pieces = zip(*(x_NT.split(bench.batch) for x_NT in pairs), strict=True)
    losses = (
        F.cross_entropy(model(token).flatten(0, 1), target.flatten(), reduction="none")
        for token, target in pieces
    )
    return -torch.cat(list(losses)).view(bench.target_NT.shape).numpy()


def zero_ablated(model: LanguageModel, subject: Subject) -> LanguageModel:
    """Return a copy of the model with the neuron's column set to zero."""
    ablated = copy.deepcopy(model)
    with torch.no_grad():
        ablated.get_parameter(subject.unit)[:, subject.group] = 0
    return ablated


def our_predictions(bench: Bench, subjects: list[Subject]) -> AblatedPredictions:
    """Return the predictions of the clean model and their changes under each ablation."""
    plan = AblationPlan.of(bench.model, bench.token_NT, subjects, "zero", bench.token_NT)
    everything = np.arange(len(bench.token_NT))
    return ablated_predictions(bench.model, bench.token_NT, plan, [everything] * len(subjects))


def our_log_probability(bench: Bench, subjects: list[Subject]) -> np.ndarray:
    """Return the changes of log p, summed by subject and target token, [S, V]."""
    num_tokens = len(bench.model.decoder.bias)
    return log_probability_changes(
        bench.model, bench.token_NT, bench.target_NT, subjects, num_tokens=num_tokens
    )[0]


# --- measuring ------------------------------------------------------------------------------------


def measure(bench: Bench, size: Size) -> list[Line]:
    """Time flips and log-probabilities of every unit; every second round in reverse order."""
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    certified = {}
    for number in range(size.rounds):
        for unit in UNITS[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {size.rounds}: {unit}", file=sys.stderr, flush=True)
            subjects = evenly_spaced(bench, unit, size.neurons)
            few = subjects[:: max(1, len(subjects) // size.naive_neurons)][: size.naive_neurons]
            models = [zero_ablated(bench.model, subject) for subject in few]
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


def evenly_spaced(bench: Bench, unit: str, number: int) -> list[Subject]:
    """Return ``number`` evenly spaced neurons of a unit."""
    width = bench.model.get_parameter(unit).shape[1]
    return [Subject(unit, int(n)) for n in np.linspace(0, width - 1, min(number, width))]


def time_flips(
    bench: Bench, subjects: list[Subject], models: list[LanguageModel]
) -> tuple[float, tuple[float, float]]:
    """Return the certified share, and seconds per neuron by the naive sweep and by ours."""
    naive, _ = timed(
        lambda: [naive_predictions(model, bench.token_NT, bench.batch) for model in models]
    )
    start = time.perf_counter()
    found = our_predictions(bench, subjects)
    own = time.perf_counter() - start
    return found.certified, (naive / len(models), own / len(subjects))


def time_log_probability(
    bench: Bench, subjects: list[Subject], models: list[LanguageModel]
) -> tuple[float, float]:
    """Return seconds per neuron by the naive sweep and by ours."""
    naive, _ = timed(lambda: [naive_log_probability(bench, model) for model in models])
    own, _ = timed(lambda: our_log_probability(bench, subjects))
    return naive / len(models), own / len(subjects)


def require_same(bench: Bench, subjects: list[Subject], models: list[LanguageModel]) -> None:
    """Raise ``ConfigError`` if our results and those of the naive sweep differ."""
    found = our_predictions(bench, subjects)
    change_SV = our_log_probability(bench, subjects)
    clean_NT = naive_log_probability(bench, bench.model)
    changes = found.changes
    for number, model in enumerate(models):
        # Ours lists only the changed predictions; the others are those of the clean pass.
        after_NT = found.before_UT.copy()
        own = changes.subject_M == number
        after_NT[changes.datum_M[own], changes.position_M[own]] = changes.after_M[own]
        same = (after_NT == naive_predictions(model, bench.token_NT, bench.batch)).mean()
        change = (naive_log_probability(bench, model) - clean_NT).astype(np.float64).mean()
        off = abs(change_SV[number].sum() / clean_NT.size - change)
        if same < SAME or off > 1e-5:
            problem = f"{1 - same:.1e} of predictions differ, mean log p by {off:.1e}"
            raise ConfigError(str(subjects[number]), problem)


def make_line(
    unit: str, what: str, pairs: list[tuple[float, float]], certified: float | None
) -> Line:
    naive, own = ([1000 * seconds for seconds in column] for column in zip(*pairs, strict=True))
    ratios = [a / b for a, b in zip(naive, own, strict=True)]
    return Line(unit, what, quartiles(naive), quartiles(own), quartiles(ratios), certified)


def table(lines: list[Line]) -> str:
    """Return the printed table, a line per result."""
    head = (
        f"{'unit':<26} {'what':<18} {'naive ms':>9} {'ms':>8} {'×':>7} {'IQR':>13} {'certain':>8}"
    )
    rows = [head, "-" * len(head)]
    for line in lines:
        low, middle, high = line.ratio
        certain = "" if line.certified is None else f"{line.certified:.2%}"
        target = f"  (target {TARGETS[line.unit]:g})" if certain and line.unit in TARGETS else ""
        rows.append(
            f"{line.unit:<26} {line.what:<18} {line.naive_milliseconds[1]:>9,.1f} "
            f"{line.milliseconds[1]:>8,.1f} {middle:>7.1f} {f'{low:.1f}–{high:.1f}':>13} "
            f"{certain:>8}{target}"
        )
    note = "ms: per neuron; the clean pass is divided among the ablated neurons."
    return "\n".join([*rows, "", note])


if __name__ == "__main__":
    main()
