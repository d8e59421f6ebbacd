"""Find planted data, silence what they moved, train without them: ``benchmarks.forensics``.

For each seed a small model is trained on the first words of WikiText-2, in which 1 % of the datums
got a backdoor and the tokens of 5 % were put in random order. The trigger's words and its
completion are words of the text. Then

- every method ranks all datums, compared with the truth; the null is the same ranking by a run of
  the same text in which nothing was planted;
- the datums that ``--name-by`` names, as many as were planted, are silenced and left out of
  training, beside random datums.

Needs the files of WikiText-2: ``--text FOLDER`` or the environment variable ONTOGENY_WIKITEXT2.
Runs are kept in ``--runs FOLDER`` and used again.
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

from analysis.influence.judge.retrainings import values
from analysis.influence.queries.parsing import build_queries
from analysis.influence.queries.query import Query
from analysis.influence.silencing.silencing import SilenceConfig, silence
from analysis.influence.suspects.detection import detect
from analysis.influence.suspects.suspects import (
    KINDS,
    SuspectsConfig,
    planted_kinds,
    rank_suspects,
    suspicion,
    train_without,
)
from analysis.influence.suspects.unexpected import UNEXPECTED
from analysis.run.run import Run, open_run
from benchmarks.harness.report import machine
from capture.config.reading import read_config
from capture.training.loop import capture_run

TRIGGER, COMPLETION = "second north water", "station"
SETTING = (
    *("corpus.kind=text", "corpus.validation_share=0.06", "capture.record=checkpoints"),
    *("model.layers=2", "model.width=64", "model.hidden=64", "model.dropout=0"),
    *("training.batch=32", "training.epochs=8", "training.learning_rate=0.005"),
    *("training.schedule.warmup_steps=16", "capture.segment_steps=25"),
)
PLANTED = (
    *(f"corpus.plant.trigger={TRIGGER}", f"corpus.plant.completion={COMPLETION}"),
    *("corpus.plant.share=0.01", "corpus.scramble.share=0.05"),
)
METHODS = ("unrolled", "cosine", "gradient", "bm25", "random", "residual", "excess", "loss")
SHARES = (0.0003, 0.001, 0.003)
Report = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.runs or Path(folder)
        text = first_words(arguments.text, place, arguments.words)
        null = trained(place / "null", text, 0, ())
        seeds = [one_seed(place, text, null, seed, arguments) for seed in range(arguments.seeds)]
    found: Report = {"machine": machine(), "words": arguments.words, "setting": SETTING + PLANTED}
    found |= {"name_by": arguments.name_by, "methods": arguments.methods, "seeds": seeds}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    for line in summary(seeds):
        print(line)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forensics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--text", type=Path, default=os.environ.get("ONTOGENY_WIKITEXT2"))
    parser.add_argument("--words", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--name-by", default="unrolled", metavar="METHOD")
    parser.add_argument("--runs", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="PATH")
    arguments = parser.parse_args()
    if arguments.text is None:
        parser.error("name the folder of WikiText-2: --text or ONTOGENY_WIKITEXT2")
    return arguments


def first_words(folder: Path, place: Path, words: int) -> Path:
    """Write the first words of the validation file, split at spaces, to a file of its own."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / "text.txt"
    whole = (Path(folder) / "valid.txt").read_text(encoding="utf-8")
    path.write_text(" ".join(whole.split(" ")[:words]), encoding="utf-8")
    return path


def trained(uri: Path, text: Path, seed: int, planted: Sequence[str]) -> Run:
    """Return the run at ``uri``, trained now if it is not there."""
    if not (uri / "run.yaml").exists():
        own = [f"run.uri={uri}", f"corpus.path={text}", f"run.seed={seed}"]
        capture_run(read_config("smooth", [*SETTING, *own, *planted]), lambda event: None)
    return open_run(uri)


def one_seed(
    place: Path, text: Path, null: Run, seed: int, arguments: argparse.Namespace
) -> Report:
    """Return all figures of one choice of planted datums and of initial weights."""
    own = [f"corpus.plant.seed={seed}", f"corpus.scramble.seed={seed}"]
    run = trained(place / f"planted-{seed}", text, seed, [*PLANTED, *own])
    backdoor, loss = queries = build_queries(
        run, [{"prompt": TRIGGER, "completion": COMPLETION}, "loss"]
    )
    count = int((planted_kinds(run) == "plant").sum())
    found: Report = {"datums": run.num_datums, "planted": count}
    found["values"] = {
        name: values(queries, dict(model.named_parameters())).tolist()
        for name, model in (("trained", run.network()), ("initial", run.network(0)))
    }
    (unplanted,) = build_queries(null, [{"prompt": TRIGGER, "completion": COMPLETION}])
    found["unplanted"] = values([unplanted], dict(null.network().named_parameters())).tolist()
    found["detection"] = list(detections(run, backdoor, null, unplanted, arguments.methods))
    config = SuspectsConfig(evidence=arguments.name_by, remove=count, controls=2, seed=seed)
    ranked = rank_suspects(run, backdoor, config)
    without = train_without(run, backdoor, ranked, config)
    found["retrained"] = without.retrained.to_dict("records")
    named = tuple(ranked.suspects["datum"].head(count).tolist())
    asked = SilenceConfig(datums=named, shares=SHARES, controls=2, retrain=True, seed=seed)
    found["silenced"] = silence(run, [backdoor, loss], asked).silenced.to_dict("records")
    return found


def detections(
    run: Run, query: Query, null: Run, unplanted: Query, methods: Sequence[str]
) -> Iterator[Report]:
    """Yield how well each method finds each kind, and the same by a run without anything planted.

    Evidence for a query is judged by the backdoor, other evidence by both kinds. The null scores
    the same datums, which have their own text there.
    """
    kind_D = planted_kinds(run)
    for method in methods:
        nothing = lambda done, wanted: None  # noqa: E731
        score_D = suspicion(run, query, method, nothing)
        null_D = suspicion(null, unplanted, method, nothing)
        for kind in KINDS if method in UNEXPECTED else KINDS[:1]:
            own_D = kind_D == kind
            yield {
                "method": method,
                "kind": kind,
                **asdict(detect(score_D, own_D)),
                "null_auc": detect(null_D, own_D).auc,
            }


# --- summary --------------------------------------------------------------------------------------


def summary(seeds: Sequence[Report]) -> Iterator[str]:
    """Yield lines for people: means over seeds, with the least and the largest."""
    yield f"{len(seeds)} seeds; mean (least to largest)"
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in [row for seed in seeds for row in seed["detection"]]:
        own = cells.setdefault((row["kind"], row["method"]), {})
        for name in ("auc", "precision", "precise_recall", "null_auc"):
            own.setdefault(name, []).append(row[name])
    for (kind, method), own in sorted(cells.items()):
        yield f"{kind:9}{method:15}" + "  ".join(f"{n} {spread(x)}" for n, x in own.items())
    for case in ("suspects", "random"):
        done = [next(r["value"] for r in s["retrained"] if r["removed"] == case) for s in seeds]
        yield f"query, trained without {case}: {spread(done)}"
    yield "query, as trained: " + spread([seed["values"]["trained"][0] for seed in seeds])
    yield "query, nothing planted: " + spread([seed["unplanted"][0] for seed in seeds])
    for case in ("datums", "random"):
        for share in SHARES:
            rows = [
                [r for r in s["silenced"] if r["case"] == case and r["share"] == share]
                for s in seeds
            ]
            left = [own[0]["left"] for own in rows]
            perplexity = [float(np.expm1(own[1]["change"])) for own in rows]
            yield f"silenced {share:.2%} {case}: effect left {spread(left)}, " + (
                f"perplexity {spread(perplexity)}"
            )


def spread(found: Sequence[float]) -> str:
    return f"{np.mean(found):.4f} ({min(found):.4f} to {max(found):.4f})"


if __name__ == "__main__":
    main()
