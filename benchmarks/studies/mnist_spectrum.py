"""Training on MNIST in a few directions, beside several draws of random ones.

A block of the page docs/studies/mnist-spectrum.md, whose other tables
``benchmarks.mnist_spectrum.tables`` makes. The bundled configuration ``mnist`` is captured on the
folder in ``ONTOGENY_MNIST``.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ontogeny
from benchmarks.studies.study import Blocks, Results, Study, table

FOLDER = Path(os.environ.get("ONTOGENY_MNIST", "../shared/data/mnist"))
COUNTS = (10, 100)
DRAWS = 5


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    assert not seeds
    if not FOLDER.is_dir():
        raise SystemExit(f"{FOLDER}: is missing. Set ONTOGENY_MNIST to the folder of MNIST.")
    place = (f"corpus.path={FOLDER}", f"run.uri={folder / 'mnist'}")
    run = ontogeny.capture("mnist", *place, "capture.record=checkpoints", resume=True)
    config = ontogeny.SpectrumConfig(low_rank=COUNTS, draws=DRAWS, datums=0)
    found = ontogeny.spectrum(run, config)
    value_K = found.values["value"].to_numpy()
    square_K = value_K**2 / (value_K**2).sum()
    return {
        "low_rank": found.low_rank.to_dict("list"),
        "steps": run.num_steps,
        "images": run.num_datums,
        "held_out": len(run.datums("test")),
        "share": {str(count): float(square_K[:count].sum()) for count in COUNTS},
    }


def rows_of(results: Results, count: int, basis: str) -> list[Results]:
    columns = results["low_rank"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [row for row in rows if (row["directions"], row["basis"]) == (count, basis)]


def claims(results: Results) -> dict[str, bool]:
    leading, random = (rows_of(results, COUNTS[-1], basis) for basis in ("leading", "random"))
    start, end = leading[0]["start"], leading[0]["end"]
    few, drawn = (rows_of(results, COUNTS[0], basis) for basis in ("leading", "random"))
    return {
        f"within {COUNTS[0]} directions the loss falls less than in any random draw": all(
            few[0]["trained"] > row["trained"] for row in drawn
        ),
        "and by less than 1 % of the fall in training": few[0]["start"] - few[0]["trained"]
        < 0.01 * (start - end),
        f"{COUNTS[-1]} directions suffice for most of what is learned": leading[0]["trained"]
        < end + 0.25 * (start - end),
        "as many random mixtures of steps do worse, in every draw": all(
            row["trained"] > leading[0]["trained"] for row in random
        ),
    }


def blocks(results: Results) -> Blocks:
    rows = []
    for count in COUNTS:
        (leading,) = rows_of(results, count, "leading")
        drawn = [row["trained"] for row in rows_of(results, count, "random")]
        rows.append(
            [
                str(count),
                f"{results['share'][str(count)]:.0%}",
                f"{leading['trained']:.3f}",
                f"{np.mean(drawn):.3f} ({min(drawn):.3f} to {max(drawn):.3f}, n = {len(drawn)})",
                f"{leading['projected']:.3f}",
            ]
        )
    head = ["directions", "share of the squares", "trained within (n = 1)"]
    more = ["within random ones", "the run's change projected once (n = 1)"]
    (first, *_) = rows_of(results, COUNTS[0], "leading")
    said = (
        f"One training of {results['steps']:,} steps on {results['images']:,} images; loss on "
        f"{results['held_out']:,} held-out images {first['start']:.3f} before, and "
        f"{first['end']:.3f} as trained."
    )
    return {"low-rank": [said, "", *table([*head, *more], rows)]}


STUDY = Study("mnist-spectrum", measure, claims, blocks, None, ())
