"""The tokens of one neuron's outlier rows, without an attribution of all neurons.

A quick look at a single neuron: it reads only the row groups of one unit, and tests nothing.

Shapes: M row, V token of the vocabulary.
"""

import numpy as np
import pandas as pd

from analysis.attribution.outlier_weights import RowEvidence
from analysis.levels import entries, is_mlp
from analysis.run.names import nearest
from analysis.run.run import Run
from capture.errors import UnitError


def neuron_tokens(
    run: Run,
    unit: str,
    neuron: int,
    *,
    evidence: RowEvidence = "target",
    steps: range | None = None,
) -> pd.DataFrame:
    """Count the tokens of the outlier rows of a neuron (a column of an MLP unit).

    Returns columns token_id, token, count (rows; with evidence "window", once per occurrence in the
    window), size (Σ|shift|, in units of the weight), first_step, last_step, share (of all counts)
    and relative_frequency (share / the token's share of the training text), by count descending.

    Raises ``UnitError`` if the unit is not a captured MLP unit or lacks the neuron, ``RunError`` if
    the run lacks the steps.
    """
    rows = run.shifts(unit, parameters_of(run, unit, neuron), steps=steps)
    token_NT = run.target_NT if evidence == "target" else run.token_NT
    token_MT = token_NT[rows["datum_id"].to_numpy()]
    if evidence != "window":
        token_MT = np.take_along_axis(token_MT, rows["position"].to_numpy(np.int64)[:, None], 1)
    each = rows.loc[rows.index.repeat(token_MT.shape[1]), ["abs_diff", "step"]]
    found = (
        each.assign(token_id=token_MT.ravel())
        .groupby("token_id")
        .agg(
            count=("step", "size"),
            size=("abs_diff", "sum"),
            first_step=("step", "min"),
            last_step=("step", "max"),
        )
        .reset_index()
        .sort_values("count", ascending=False, kind="stable", ignore_index=True)
    )
    text_V = np.bincount(token_NT.ravel(), minlength=run.num_tokens).astype(float)
    if run.length_N is not None:  # the last token is padding
        found, text_V[-1] = found[found["token_id"] < run.num_tokens - 1].copy(), 0
    text_V /= text_V.sum()
    found.insert(1, "token", np.array(run.tokens, object)[found["token_id"]])
    found["share"] = found["count"] / max(1, found["count"].sum())
    found["relative_frequency"] = found["share"] / text_V[found["token_id"]]
    return found


def parameters_of(run: Run, unit: str, neuron: int) -> range:
    """Flat indices of the neuron's weights in its unit."""
    known = [name for name in run.layout.names if is_mlp(name, run.layout)]
    if unit not in known:
        raise UnitError(unit, "is not a captured unit with neurons", nearest(unit, known))
    num_neurons = run.layout.fan_in(unit)
    if not 0 <= neuron < num_neurons:
        raise UnitError(
            f"{unit} neuron {neuron}",
            f"does not exist; the unit has neurons 0 to {num_neurons - 1}",
        )
    index_S = np.flatnonzero(entries(unit, run.layout, inputs=True) == neuron)
    step = 1 if unit in run.layout.transposed else num_neurons
    return range(int(index_S[0]), int(index_S[-1]) + 1, step)
