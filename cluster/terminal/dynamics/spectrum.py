"""Tables of ``ontogeny spectrum``: numbers beside their nulls, directions, neurons and datums."""

import math

import pandas as pd
from rich.console import Console

from analysis.run.run import Run
from analysis.spectra.config import SpectrumConfig
from analysis.spectra.tables import Spectrum
from cluster.terminal.plain import printable
from cluster.terminal.tables import data_table, print_table

EXCERPT = 50
"""Letters of a datum's text that are shown."""
NUMBERS = (("over_cutoff", 0), ("stable_rank", 1), ("participation_ratio", 1), ("over_edge", 0))
"""Columns of ``spectra`` that are shown, and their digits."""


def show_spectrum(
    console: Console, run: Run, found: Spectrum, config: SpectrumConfig, *, rows: int
) -> None:
    """Print the tables; ``rows``: neurons and datums of each direction."""
    show_numbers(console, found, config)
    show_directions(console, found, rows)
    show_learned(console, found, rows)
    if len(found.datums):
        show_datums(console, run, found.datums, rows)
    if len(found.low_rank):
        show_low_rank(console, found.low_rank)


def show_numbers(console: Console, found: Spectrum, config: SpectrumConfig) -> None:
    over = f"over {config.cutoff:.0%}"
    names = ("stable rank", "participation ratio", "over random edge")
    table = data_table("steps, matrix", "steps", over, *names)
    for row in found.spectra.to_dict("records"):
        name = row["treatment"] if row["matrix"] == "run" else f"  null: {row['matrix']}"
        numbers = (with_deviation(row[key], row[f"{key}_sd"], digits) for key, digits in NUMBERS)
        table.add_row(name, str(row["steps"]), *numbers)
    print_table(console, f"Spectrum of the {config.what}: singular values, and nulls", table)
    first, samples = found.spectra.iloc[0], found.samples
    counted, residual = samples["over_cutoff"], samples["residual"].mean()
    console.print(
        f"{first['over_cutoff']:.0f} of {first['steps']} values are over {config.cutoff:.0%} of "
        f"the largest. Sampled: {counted.mean():.1f} ± {counted.std():.1f} in {len(samples)} "
        f"samples of {samples['steps'].iloc[0]} steps, whose directions leave "
        f"{residual:.0%} of the length of the other steps unexplained.",
        soft_wrap=True,
    )


def with_deviation(value: float, deviation: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text if math.isnan(deviation) else f"{text} ± {deviation:.1f}"


def show_directions(console: Console, found: Spectrum, rows: int) -> None:
    table = data_table(
        "direction", "value", "share", "centre", "spread", "neurons: share (expected)"
    )
    for row in found.directions.to_dict("records"):
        own = found.neurons[found.neurons["direction"] == row["direction"]].head(rows)
        names = [neuron_line(each) for each in own.to_dict("records")]
        numbers = (f"{row[name]:.0f}" for name in ("centre", "spread"))
        value, share = f"{row['value']:.3g}", f"{row['share']:.1%}"
        table.add_row(str(row["direction"]), value, share, *numbers, "\n".join(names))
    null = found.directions["null_centre"].iloc[0]
    print_table(console, "Directions: when (step), and which neurons", table)
    console.print(f"All steps together have their centre at step {null:.0f}.", soft_wrap=True)


def neuron_line(row: dict) -> str:
    return f"{group_name(row)}: {row['share']:.1%} ({row['expected']:.1%})"


def group_name(row: dict) -> str:
    unit = row["unit"]
    return unit if row["level"] == "unit" else f"{unit}:{row['level']} {row['group']}"


def show_learned(console: Console, found: Spectrum, rows: int) -> None:
    known = found.learned.dropna(subset=["z"])
    expected = known["entries"] / found.learned["entries"].sum()
    known = known[known["share"] >= expected]
    if known.empty:
        return
    ordered = known.sort_values("centre", kind="stable")
    chosen = pd.concat([ordered.head(rows), ordered.tail(rows)]).drop_duplicates()
    table = data_table("moved", "centre", "spread", "z", "share")
    for row in chosen.to_dict("records"):
        numbers = (f"{row['centre']:.0f}", f"{row['spread']:.0f}", f"{row['z']:.1f}")
        table.add_row(group_name(row), *numbers, f"{row['share']:.2%}")
    print_table(
        console, "When neurons were moved: the first and the last of those that moved most", table
    )
    beyond = (known["z"].abs() > 2).mean()
    console.print(
        f"{beyond:.0%} of the {len(known)} groups with at least their share lie more than 2 "
        f"deviations from the centre of all, step {known['null_centre'].iloc[0]:.0f}; about 5 % "
        "would if steps had their lengths and random directions.",
        soft_wrap=True,
    )


def show_datums(console: Console, run: Run, datums: pd.DataFrame, rows: int) -> None:
    table = data_table("direction", "datum", "load", "z", "step", "text")
    for _, own in datums.groupby("direction"):
        for row in own.head(rows).to_dict("records"):
            text = printable(str(run.texts[row["datum"]]))[:EXCERPT]
            numbers = (f"{row['load']:.3g}", f"{row['z']:.1f}", str(int(row["step"])))
            table.add_row(str(row["direction"]), str(row["datum"]), *numbers, text)
    print_table(console, "Datums that load on the directions", table)
    console.print("z: against the loads of each batch dealt at random.", soft_wrap=True)


def show_low_rank(console: Console, low_rank: pd.DataFrame) -> None:
    table = data_table("directions", "basis", "draws", "trained", "projected once")
    for (count, basis), own in low_rank.groupby(["directions", "basis"]):
        losses = (mean_and_range(own[name]) for name in ("trained", "projected"))
        table.add_row(str(count), str(basis), str(len(own)), *losses)
    print_table(console, "Held-out loss with updates projected on the first directions", table)
    start, end = low_rank["start"].iloc[0], low_rank["end"].iloc[0]
    console.print(
        f"Before the steps {start:.4f}, after them as trained {end:.4f}. Parameters outside the "
        "chosen units train as before. Random directions are drawn --draws times: mean and range.",
        soft_wrap=True,
    )


def mean_and_range(losses: pd.Series) -> str:
    """Return the mean of several losses, with the smallest and the largest."""
    if len(losses) == 1:
        return f"{losses.iloc[0]:.4f}"
    return f"{losses.mean():.4f} ({losses.min():.4f} to {losses.max():.4f})"
