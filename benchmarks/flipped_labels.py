"""Find wrong labels of MNIST: ``benchmarks.flipped_labels``.

For each seed the perceptron of ``configs/mnist.yaml`` is trained on images of which 5 % have a
wrong label (``corpus.flip``), and ``ontogeny suspects --unexpected`` ranks all of them by each
evidence. Beside these stand the loss at the last checkpoint alone, and a null: the same labels in a
ranking by a run in which nothing was flipped.

Needs a folder with the idx files: ``--images FOLDER`` or the environment variable ONTOGENY_MNIST.
``--config digits`` takes scikit-learn's digits instead.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.influence.baselines.gradients import chunks, datum_losses, model_and_weights
from analysis.influence.queries.parsing import build_queries
from analysis.influence.suspects.detection import detect
from analysis.influence.suspects.suspects import planted_kinds, suspicion
from analysis.run.run import Run, open_run
from benchmarks.harness.report import machine
from capture.config.reading import read_config
from capture.training.loop import capture_run

METHODS = ("residual", "excess", "loss", "self-influence", "held-out")
SETTING = ("capture.record=checkpoints", "capture.segment_steps=200")
FLIPPED = ("corpus.flip.share=0.05",)
DATUMS_AT_ONCE = 64
Report = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    found: Report = {"machine": machine(), "config": arguments.config, "seeds": []}
    found |= {"setting": SETTING + FLIPPED}
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.runs or Path(folder)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            found["seeds"].append(one_seed(place, seed, arguments))
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    for line in summary(found["seeds"]):
        print(line)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flipped_labels")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", choices=["mnist", "digits"], default="mnist")
    parser.add_argument("--images", type=Path, default=os.environ.get("ONTOGENY_MNIST"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--runs", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    if arguments.config == "mnist" and arguments.images is None:
        parser.error("name the folder of MNIST: --images or ONTOGENY_MNIST")
    return arguments


def one_seed(place: Path, seed: int, arguments: argparse.Namespace) -> Report:
    """Return the measures of every evidence for one choice of labels and initial weights."""
    own = [*SETTING, f"run.seed={seed}", f"corpus.images.seed={seed}", f"corpus.flip.seed={seed}"]
    if arguments.config == "mnist":
        own.append(f"corpus.path={arguments.images}")
    name = f"{arguments.config}-{seed}"
    flipped = trained(place / name, arguments.config, [*own, *FLIPPED])
    plain = trained(place / f"{name}-null", arguments.config, [o for o in own if "flip" not in o])
    flipped_D = planted_kinds(flipped) == "flip"
    rows = []
    for method in ("last loss", *arguments.methods):
        found = detect(scores(flipped, method), flipped_D)
        null = detect(scores(plain, method), flipped_D)
        rows.append({"method": method, **asdict(found), "null_auc": null.auc})
    return {"seed": seed, "datums": flipped.num_datums, "detection": rows}


def trained(uri: Path, config: str, own: Sequence[str]) -> Run:
    """Return the run at ``uri``, trained now if it is not there."""
    if not (uri / "run.yaml").exists():
        capture_run(read_config(config, [f"run.uri={uri}", *own]), lambda event: None)
    return open_run(uri)


def scores(run: Run, method: str) -> np.ndarray:
    """Return the score of each datum, [D]; the higher, the more suspect."""
    if method != "last loss":
        (query,) = build_queries(run, ["loss:train"])
        return suspicion(run, query, method, lambda *done: None).total_QD[0]
    model, weights = model_and_weights(run)
    with torch.no_grad():
        losses = [datum_losses(model, weights, *own) for _, *own in chunks(run, DATUMS_AT_ONCE)]
    return torch.cat(losses).double().numpy()


def summary(seeds: Sequence[Report]) -> Iterator[str]:
    """Yield lines for people: means over seeds, with the least and the largest."""
    yield f"{len(seeds)} seeds, {seeds[0]['datums']:,} datums; mean (least to largest)"
    rows: dict[str, dict[str, list[float]]] = {}
    for row in [row for seed in seeds for row in seed["detection"]]:
        own = rows.setdefault(row["method"], {})
        for name in ("auc", "precision", "precise_recall", "null_auc"):
            if name in row:
                own.setdefault(name, []).append(row[name])
    for method, own in rows.items():
        cells = (f"{n} {np.mean(x):.4f} ({min(x):.4f} to {max(x):.4f})" for n, x in own.items())
        yield f"{method:15}" + "  ".join(cells)


if __name__ == "__main__":
    main()
