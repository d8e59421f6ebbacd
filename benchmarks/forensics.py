"""Find planted data, silence what they moved, train without them: ``benchmarks.forensics``.

For each seed a small model is trained on the first words of WikiText-2, in which 1 % of the datums
got a backdoor and the tokens of 5 % were put in random order. The trigger's words and its
completion are words of the text. Then

- every method ranks all datums, compared with the truth; the null ranks the same datums by a run of
  the same text in which nothing was planted;
- the datums that ``--name-by`` names, as many as were planted, are silenced and left out of
  training, beside random datums; not with ``--rank-only``.

Needs the files of WikiText-2: ``--text FOLDER`` or the environment variable ONTOGENY_WIKITEXT2.
Runs are kept in ``--runs FOLDER`` and used again.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.influence.judge.retrainings import values
from analysis.influence.queries.parsing import build_queries
from analysis.influence.silencing.silencing import SilenceConfig, silence
from analysis.influence.suspects.detection import detect
from analysis.influence.suspects.held_out import HELD_OUT
from analysis.influence.suspects.suspects import (
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
BACKDOOR = {"prompt": TRIGGER, "completion": COMPLETION}
SETTING = (
    *("corpus.kind=text", "corpus.validation_share=0.06"),
    *("model.layers=2", "model.width=64", "model.hidden=64", "model.dropout=0"),
    *("training.batch=32", "training.epochs=8", "training.learning_rate=0.005"),
    *("training.schedule.warmup_steps=16", "capture.segment_steps=25"),
)
PLANTED = (
    *(f"corpus.plant.trigger={TRIGGER}", f"corpus.plant.completion={COMPLETION}"),
    *("corpus.plant.share=0.01", "corpus.scramble.share=0.05"),
)
METHODS = (
    *("path", "unrolled", "cosine", "gradient", "bm25", "random"),
    *("residual", "excess", "loss", "held-out", "order"),
)
FROM_RECORD = frozenset({"outliers", "tallies"})
"""Methods that need recorded shifts; runs for the others have checkpoints alone."""
SHARES = (0.0003, 0.001, 0.003)
Report = dict[str, Any]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = arguments.runs or Path(folder)
        text = first_words(arguments.text, place, arguments.words)
        null = Null.of(trained(place / "null", text, 0, recorded(arguments)), arguments.methods)
        found: Report = {"machine": machine(), "words": arguments.words}
        found |= {"setting": SETTING + PLANTED, "name_by": arguments.name_by, "seeds": []}
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            found["seeds"].append(one_seed(place, text, null, seed, arguments))
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    for line in summary(found["seeds"]):
        print(line)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forensics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--text", type=Path, default=os.environ.get("ONTOGENY_WIKITEXT2"))
    parser.add_argument("--words", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rank-only", action="store_true")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--name-by", default="path", metavar="METHOD")
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


def recorded(arguments: argparse.Namespace) -> list[str]:
    """Return the setting of what the methods that are asked for need of a run."""
    record = "shifts" if FROM_RECORD & set(arguments.methods) else "checkpoints"
    return [f"capture.record={record}"]


def trained(uri: Path, text: Path, seed: int, settings: Sequence[str]) -> Run:
    """Return the run at ``uri``, trained now if it is not there."""
    if not (uri / "run.yaml").exists():
        own = [f"run.uri={uri}", f"corpus.path={text}", f"run.seed={seed}"]
        capture_run(read_config("smooth", [*SETTING, *own, *settings]), lambda event: None)
    return open_run(uri)


@dataclass(frozen=True, eq=False)
class Null:
    """A run of the same text in which nothing was planted."""

    value: float
    """The query's value."""
    scores: dict[str, np.ndarray]
    """Method → score of each datum, [D]."""

    @classmethod
    def of(cls, run: Run, methods: Sequence[str]) -> "Null":
        (query,) = build_queries(run, [BACKDOOR])
        (value,) = values([query], dict(run.network().named_parameters()))
        found = {name: suspicion(run, query, name, lambda *done: None) for name in methods}
        return cls(float(value), {name: own.total_QD[0] for name, own in found.items()})

    def auc(self, method: str, planted_D: np.ndarray) -> float:
        """Return the AUC of the same datums in this run."""
        return detect(self.scores[method], planted_D).auc


def one_seed(
    place: Path, text: Path, null: Null, seed: int, arguments: argparse.Namespace
) -> Report:
    """Return all figures of one choice of planted datums and of initial weights."""
    own = [f"corpus.plant.seed={seed}", f"corpus.scramble.seed={seed}"]
    settings = [*recorded(arguments), *PLANTED, *own]
    run = trained(place / f"planted-{seed}", text, seed, settings)
    backdoor, loss = queries = build_queries(run, [BACKDOOR, "loss"])
    kind_D = planted_kinds(run)
    count = int((kind_D == "plant").sum())
    found: Report = {"datums": run.num_datums, "planted": count, "unplanted": null.value}
    found["values"] = values(queries, dict(run.network().named_parameters())).tolist()
    ranked = {
        method: rank_suspects(run, backdoor, SuspectsConfig(evidence=method))
        for method in arguments.methods
    }
    found["detection"] = [
        {
            "method": method,
            **row,
            "null_auc": null.auc(method, kind_D == row["kind"]),
        }
        for method, own in ranked.items()
        for row in own.detection.to_dict("records")
        if method in (*UNEXPECTED, *HELD_OUT) or row["kind"] == "plant"
    ]
    if arguments.rank_only:
        return found
    named = ranked[arguments.name_by]
    config = SuspectsConfig(evidence=arguments.name_by, remove=count, controls=1, seed=seed)
    without = train_without(run, backdoor, named, config)
    found["retrained"] = without.retrained.to_dict("records")
    datums = tuple(named.suspects["datum"].head(count).tolist())
    asked = SilenceConfig(datums=datums, shares=SHARES, controls=2, retrain=True, seed=seed)
    found["silenced"] = silence(run, [backdoor, loss], asked).silenced.to_dict("records")
    return found


# --- summary --------------------------------------------------------------------------------------


def summary(seeds: Sequence[Report]) -> Iterator[str]:
    """Yield lines for people: means over seeds, with the least and the largest."""
    yield f"{len(seeds)} seeds; mean (least to largest)"
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in [row for seed in seeds for row in seed["detection"]]:
        own = cells.setdefault((row["kind"], row["method"]), {})
        for name in ("auc", "precision", "precise_recall", "null_auc"):
            if row[name] is not None:
                own.setdefault(name, []).append(row[name])
    for (kind, method), own in sorted(cells.items()):
        yield f"{kind:9}{method:15}" + "  ".join(f"{n} {spread(x)}" for n, x in own.items())
    if "retrained" not in seeds[0]:
        return
    for case in ("suspects", "random"):
        done = [next(r["value"] for r in s["retrained"] if r["removed"] == case) for s in seeds]
        yield f"query, trained without {case}: {spread(done)}"
    yield "query, as trained: " + spread([seed["values"][0] for seed in seeds])
    yield "query, nothing planted: " + spread([seed["unplanted"] for seed in seeds])
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
