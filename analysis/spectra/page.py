"""The page of a spectrum: singular values beside nulls, directions over time, neurons, datums.

Shapes: K direction, R step, M point.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.jobs.question import Question
from analysis.report.drawing.axes import Axes
from analysis.report.drawing.cumulative import directions_chart
from analysis.report.drawing.markup import (
    Column,
    code,
    data_table,
    fragment,
    integer,
    paragraph,
    percent,
    section,
    significant,
)
from analysis.report.drawing.plots import Series, line_chart
from analysis.report.standalone import standalone_page
from analysis.spectra.tables import Spectrum

POINTS = 400
"""Singular values that are drawn; of more, as many spread evenly over the logarithmic axis."""


def spectrum_page(found: Spectrum, question: Question, place: str) -> bytes:
    """Return the page as one HTML document; ``place`` names the run."""
    samples = found.samples
    body = fragment(
        paragraph("Asked: ", code(question.line())),
        section("Singular values", values_chart(found), numbers_table(found)),
        section(
            "Sampled",
            paragraph(
                f"{len(samples)} samples of {samples['steps'].iloc[0]:,} random steps have "
                f"{samples['over_cutoff'].mean():.1f} ± {samples['over_cutoff'].std():.1f} values "
                f"over the cutoff. Their directions leave {samples['residual'].mean():.0%} of the "
                "length of the other steps unexplained."
            ),
        ),
        section("Directions over time", directions_chart(found.steps), directions_table(found)),
        section("Neurons of the directions", neurons_table(found.neurons)),
        section("When neurons were moved", learned_table(found.learned)),
        section("Datums of the directions", datums_table(found.datums))
        if len(found.datums)
        else None,
        section("Training in few directions", low_rank_table(found.low_rank))
        if len(found.low_rank)
        else None,
    )
    return standalone_page("Spectrum of training", body, place)


# --- plots ----------------------------------------------------------------------------------------


def values_chart(found: Spectrum) -> Markup:
    """Singular values and those of the nulls by number, on logarithmic axes."""
    values = found.values
    number_M = np.unique(np.geomspace(1, len(values), POINTS).astype(int))
    drawn = values.iloc[number_M - 1]
    series = [
        Series("run", number_M, drawn["value"].to_numpy(), 1),
        Series("norms kept", number_M, drawn["norms_kept"].to_numpy(), 2),
        Series("gaussian", number_M, drawn["gaussian"].to_numpy(), 3),
    ]
    title = "Singular values of the run and of random matrices"
    axes = Axes(title=title, x="number", y="singular value", right=110, log_x=True, log_y=True)
    return line_chart(axes, series)


# --- tables ---------------------------------------------------------------------------------------


def number(name: str, meaning: str, show: Callable[[float], str] = significant) -> Column:
    return Column(name.replace("_", " "), lambda row: show(row[name]), meaning, True)


def word(name: str, meaning: str) -> Column:
    return Column(name, lambda row: str(row[name]), meaning)


DIRECTION = number("direction", "largest singular value first", integer)
CENTRE = number("centre", "mean step, weighted by squares", integer)
SPREAD = number("spread", "standard deviation of the step, in the same way", integer)
GROUP = Column(
    "neurons",
    lambda row: (
        row["unit"] + ("" if row["level"] == "unit" else f": {row['level']} {row['group']}")
    ),
    "an input of an MLP weight, an output of another weight, or a whole parameter",
)


def table(title: str, columns: list[Column], frame: pd.DataFrame) -> Markup:
    return data_table(title, columns, frame.to_dict("records"))


def numbers_table(found: Spectrum) -> Markup:
    columns = [
        word("treatment", "what was done to the steps"),
        word("matrix", "the run, or a null: mean over draws"),
        number("steps", "steps that were decomposed", integer),
        number("over_cutoff", "singular values over the cutoff"),
        number("stable_rank", "sum of squares over the largest square"),
        number("participation_ratio", "squared sum of squares over the sum of fourth powers"),
        number("over_edge", "singular values above the edge of independent entries"),
    ]
    return table("Numbers of the spectrum", columns, found.spectra)


def directions_table(found: Spectrum) -> Markup:
    columns = [
        DIRECTION,
        number("value", "singular value"),
        number("share", "of the sum of squares", lambda share: percent(share, 1)),
        CENTRE,
        SPREAD,
        number("null_centre", "mean step, weighted by the squared length of steps", integer),
    ]
    return table("Directions", columns, found.directions)


def neurons_table(neurons: pd.DataFrame) -> Markup:
    columns = [
        DIRECTION,
        GROUP,
        number("share", "of the squared left vector", lambda share: percent(share, 2)),
        number("expected", "share of the parameters", lambda share: percent(share, 2)),
        CENTRE,
    ]
    return table("Neurons with the largest shares", columns, neurons)


def learned_table(learned: pd.DataFrame) -> Markup:
    """The 40 groups with the largest absolute z among those that moved at least their share."""
    expected = learned["entries"] / learned["entries"].sum()
    moved = learned[learned["share"] >= expected].dropna(subset=["z"])
    chosen = moved.loc[moved["z"].abs().sort_values(ascending=False).index[:40]]
    columns = [
        GROUP,
        CENTRE,
        SPREAD,
        number("null_centre", "of all parameters together", integer),
        number("z", "distance of the two, if steps had random directions"),
        number("share", "of all squares", lambda share: percent(share, 2)),
    ]
    return table("Neurons that were moved earliest or latest", columns, chosen)


def datums_table(datums: pd.DataFrame) -> Markup:
    columns = [
        DIRECTION,
        number("datum", "number of the training datum", integer),
        number("load", "product with the left vector, summed over steps"),
        number("z", "against loads dealt at random within each batch"),
        number("step", "of the largest load", integer),
    ]
    return table("Datums with the largest loads", columns, datums)


def low_rank_table(low_rank: pd.DataFrame) -> Markup:
    columns = [
        number("directions", "on which every update is projected", integer),
        word("basis", "leading, or random mixtures of the steps"),
        number("draw", "of the random directions", integer),
        number("trained", "held-out loss, every update projected"),
        number("projected", "held-out loss, the whole change projected once"),
        number("start", "held-out loss before the steps"),
        number("end", "held-out loss as the run went"),
    ]
    return table("Held-out loss in few directions", columns, low_rank)
