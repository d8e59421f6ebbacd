"""Training on MNIST in a few directions, beside several draws of random ones.

A block of the page docs/studies/mnist-spectrum.md, whose other tables
``benchmarks.mnist_spectrum.tables`` makes. The bundled configuration ``mnist`` is captured on the
folder in ``ONTOGENY_MNIST``, once for each seed. The first seed is trained again in more numbers of
directions than the others.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ontogeny
from benchmarks.studies.drawing import COLOURS
from benchmarks.studies.study import Blocks, Results, Study, table

FOLDER = Path(os.environ.get("ONTOGENY_MNIST", "../shared/data/mnist"))
FEW, MANY = 10, 100
CURVE = (3, 10, 30, 100, 300)
"""Numbers of directions of the first seed."""
DRAWS = 3
SEEDS = (0, 1, 2)


def measure(folder: Path, seeds: Sequence[int]) -> Results:
    if not FOLDER.is_dir():
        raise SystemExit(f"{FOLDER}: is missing. Set ONTOGENY_MNIST to the folder of MNIST.")
    counts = {seed: CURVE if seed == seeds[0] else (FEW, MANY) for seed in seeds}
    return {"trainings": [measure_seed(folder, seed, counts[seed]) for seed in seeds]}


def measure_seed(folder: Path, seed: int, counts: Sequence[int]) -> Results:
    """Train with one seed, and again within directions of this very training."""
    place = (f"corpus.path={FOLDER}", f"run.uri={folder / f'mnist-{seed}'}", f"run.seed={seed}")
    run = ontogeny.capture("mnist", *place, "capture.record=checkpoints", resume=True)
    config = ontogeny.SpectrumConfig(low_rank=tuple(counts), draws=DRAWS, datums=0, seed=seed)
    found = ontogeny.spectrum(run, config)
    value_K = found.values["value"].to_numpy()
    square_K = value_K**2 / (value_K**2).sum()
    return {
        "seed": seed,
        "low_rank": found.low_rank.to_dict("list"),
        "steps": run.num_steps,
        "images": run.num_datums,
        "held_out": len(run.datums("test")),
        "share": {str(count): float(square_K[:count].sum()) for count in counts},
    }


# --- the page -------------------------------------------------------------------------------------


def rows_of(own: Results, count: int, basis: str) -> list[Results]:
    """Return the rows of one training; empty if it was not trained in so many directions."""
    columns = own["low_rank"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [row for row in rows if (row["directions"], row["basis"]) == (count, basis)]


def claims(results: Results) -> dict[str, bool]:
    few, many = (
        [[rows_of(own, count, basis) for basis in ("leading", "random")] for own in every]
        for every, count in ((results["trainings"], FEW), (results["trainings"], MANY))
    )
    return {
        f"within {FEW} directions the loss falls less than in the mean of the random draws, in "
        "every seed": all(
            leading["trained"] > np.mean([row["trained"] for row in drawn])
            for (leading,), drawn in few
        ),
        "and by less than 2 % of the fall in training": all(
            leading["start"] - leading["trained"] < 0.02 * (leading["start"] - leading["end"])
            for (leading,), _ in few
        ),
        f"{MANY} directions suffice for most of what is learned, in every seed": all(
            leading["trained"] < leading["end"] + 0.25 * (leading["start"] - leading["end"])
            for (leading,), _ in many
        ),
        "as many random mixtures of steps do worse, in every draw of every seed": all(
            row["trained"] > leading["trained"] for (leading,), drawn in many for row in drawn
        ),
    }


def counts_of(results: Results) -> list[int]:
    return sorted(
        {count for own in results["trainings"] for count in own["low_rank"]["directions"]}
    )


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the range and number if there are several."""
    mean = f"{np.mean(values):.3f}"
    several = f" ({min(values):.3f} to {max(values):.3f}, n = {len(values)})"
    return mean + (several if len(values) > 1 else " (n = 1)")


def blocks(results: Results) -> Blocks:
    rows = []
    for count in counts_of(results):
        every = [own for own in results["trainings"] if str(count) in own["share"]]
        leading = [row for own in every for row in rows_of(own, count, "leading")]
        drawn = [row for own in every for row in rows_of(own, count, "random")]
        rows.append(
            [
                str(count),
                f"{np.mean([own['share'][str(count)] for own in every]):.0%}",
                spread([row["trained"] for row in leading]),
                spread([row["trained"] for row in drawn]),
                spread([row["projected"] for row in leading]),
            ]
        )
    head = ["directions", "share of the squares", "trained within", "within random ones"]
    head += ["the run's change projected once"]
    first, *_ = results["trainings"]
    ends = [rows_of(own, FEW, "leading")[0] for own in results["trainings"]]
    said = (
        f"{len(ends)} trainings of {first['steps']:,} steps on {first['images']:,} images; loss on "
        f"{first['held_out']:,} held-out images {spread([row['start'] for row in ends])} before, "
        f"and {spread([row['end'] for row in ends])} as trained."
    )
    return {"low-rank": [said, "", *table(head, rows)]}


def draw(results: Results, path: Path) -> None:
    """Draw the held-out loss against the number of directions, leading and random."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    counts = counts_of(results)
    for colour, basis in enumerate(("leading", "random")):
        losses = [
            [row["trained"] for own in results["trainings"] for row in rows_of(own, count, basis)]
            for count in counts
        ]
        means = [np.mean(own) for own in losses]
        axes.plot(counts, means, "o-", color=COLOURS[colour], label=f"{basis} directions")
        for count, own in zip(counts, losses, strict=True):
            axes.plot([count] * len(own), own, ".", color=COLOURS[colour], alpha=0.5)
    (whole, *_) = results["trainings"]
    for name, style in (("start", ":"), ("end", "--")):
        axes.axhline(whole["low_rank"][name][0], color="#555555", linestyle=style, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("directions")
    axes.set_ylabel("held-out loss")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=90, metadata={"Software": None})


STUDY = Study("mnist-spectrum", measure, claims, blocks, draw, SEEDS)
