"""Measure how many neurons ``attribute --confirm`` confirms, of runs that learned and of nulls.

``python -m benchmarks.confirmation --seeds 1 2 3`` trains three runs for each seed on the text of
the configuration ``demo``, 30 % of it held out, with a smaller model (``MODEL``):

- *text*: five epochs.
- *shuffled text*: five epochs on the same words in random order, as many datums.
- *16 steps*: the text, but training ends after 16 steps.

Each is asked the same question, with the same options: the record's tokens of 40 neurons drawn from
every unit (fewer if fewer have tokens), tested on 400 held-out datums. Nothing should be confirmed
of the second and the third, and nothing in the rows that the command itself prints as nulls. Takes
a few minutes a seed on a quiet core.
"""

import argparse
import json
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.attribution.attribute import attribute
from analysis.attribution.config import AttributionConfig
from analysis.attribution.tables import Attribution
from analysis.faithfulness.confirm import ConfirmConfig, confirm
from analysis.run.run import Run, open_run
from benchmarks.harness.report import machine
from capture.config.reading import make_config
from capture.corpus.text import python_reference
from capture.errors import IncompleteRunWarning
from capture.training.loop import Event, Progress, capture_run
from cluster.local.threads import run_job

CASES = ("text", "shuffled text", "16 steps")
MODEL = {"layers": 2, "width": 64, "hidden": 64, "heads": 4}
SHORT = 16
"""Steps of the run that has hardly begun."""
HELD_OUT = 400
"""Held-out datums on which neurons are ablated."""
DRAWN = 40
"""Neurons drawn from every unit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    lines: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for case in arguments.cases:
            with tempfile.TemporaryDirectory() as folder:
                lines += measure(Path(folder), case, seed, arguments.epochs)
            if arguments.json:
                found = {"lines": lines, "machine": machine()}
                arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, case: str, seed: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Train a run; yield and print a line for the record and one for each null."""
    run = train(folder, case, seed, epochs)
    config = AttributionConfig.recommended(tallies=True)
    found = drawn_neurons(attribute(run, partial(run_job), config), seed)
    found = confirm(run, found, ConfirmConfig(max_datums=HELD_OUT, seed=seed))
    for row in found.nulls.to_dict("records"):
        line = {"run": case, "seed": seed, "steps": run.steps_done}
        line |= {str(name): value for name, value in row.items()}
        share = row["confirmed_groups"] / max(row["groups"], 1)
        print(
            f"seed {seed}  {case:<14} {row['case']:<16} {row['confirmed_groups']:>4} of "
            f"{row['groups']:<4} {share:>6.1%}  ({row['low']:.1%} to {row['high']:.1%})",
            flush=True,
        )
        yield line


def train(folder: Path, case: str, seed: int, epochs: int) -> Run:
    text = python_reference().content
    if case == "shuffled text":
        text = " ".join(random.Random(seed).sample(text.split(), len(text.split())))
    (folder / "text.txt").write_text(text)
    values = {
        "run": {"uri": f"{folder}/run", "seed": seed},
        "corpus": {"kind": "text", "path": f"{folder}/text.txt", "validation_share": 0.3},
        "model": MODEL,
        "training": {"epochs": epochs, "device": "cpu"},
        "capture": {"outliers": {"k": 100}},
    }
    if case != "16 steps":
        capture_run(make_config(values), lambda event: None)
        return open_run(f"{folder}/run")
    values["capture"] |= {"segment_steps": SHORT, "tally": {"window_steps": SHORT}}
    with suppress(Stopped):
        capture_run(make_config(values), stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteRunWarning)
        return open_run(f"{folder}/run")


class Stopped(Exception):
    """Ends the training of the short run."""


def stop(event: Event) -> None:
    """Raise ``Stopped`` after ``SHORT`` steps; the segment before is stored."""
    if isinstance(event, Progress) and event.steps_done == SHORT:
        raise Stopped


def drawn_neurons(found: Attribution, seed: int) -> Attribution:
    """Return the attribution of ``DRAWN`` neurons of each unit that have tokens."""
    own = found.tokens[found.tokens["level"] == "neuron"]
    neurons = own[["unit", "group"]].drop_duplicates()
    rng = np.random.default_rng(seed)
    drawn = [part.iloc[rng.permutation(len(part))[:DRAWN]] for _, part in neurons.groupby("unit")]
    return replace(found, tokens=own.merge(pd.concat(drawn)))


if __name__ == "__main__":
    main()
