"""Scores from what a run has recorded: outliers and tallies.

They say what a datum moved, weighted by how much the query depends on it now. No step is replayed.

Shapes: Q query, D datum, T position, V vocabulary, I neuron, M outlier row.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from analysis.influence.baselines.gradients import model_and_weights
from analysis.influence.queries.query import Query
from analysis.run.run import Run
from analysis.run.scan import checked_datums, parameter_columns
from analysis.run.tallies import read_tally, tally_units

COLUMNS = ["datum", "unit", "index", "shift"]


def outlier_record(run: Run, queries: Sequence[Query]) -> np.ndarray:
    """Return Σ ∂query/∂θ · shift over the recorded shifts of each datum, [Q, D].

    The derivative is that at the last checkpoint. Shifts that were not recorded count as 0.
    Raises ``RunError`` for a run without outliers.
    """
    shards = run.require_shards("outliers")
    gradient_QL = np.stack([captured(run, gradient) for gradient in gradients(run, queries)])
    found = np.zeros((len(queries), run.num_datums))
    for shard in shards:
        for batch in shard.batches(COLUMNS):
            datum_M = checked_datums(batch, run.num_datums, shard.where)
            place_M = parameter_columns(batch, run.layout, shard.where)
            shift_M = batch["shift"].to_numpy()
            for row, gradient_L in enumerate(gradient_QL):
                value_M = gradient_L[place_M] * shift_M
                found[row] += np.bincount(datum_M, value_M, minlength=run.num_datums)
    return found


def tallies(run: Run, queries: Sequence[Query]) -> np.ndarray:
    """Return how much tokens like those of each datum moved the neurons of the query, [Q, D].

    A datum scores Σ over its targets t and all neurons n of ‖∂query/∂(weights of n)‖ · (mean norm
    of the updates of n at positions with target t). It has no sign: a datum that lowers the query
    scores as much. For a query of which lower values are better, the score is negative.

    Raises ``RunError`` for a run without tallies.
    """
    moved_QV = np.zeros((len(queries), run.num_tokens))
    own_gradients = list(gradients(run, queries))
    for unit in tally_units(run):
        tally = read_tally(run, unit)
        mean_VI = tally.update_norm_VI / np.maximum(tally.count_V, 1)[:, None]
        for row, gradient in enumerate(own_gradients):
            moved_QV[row] += mean_VI @ neuron_norms(run, unit, gradient[unit])
    sign_Q = np.array([-1.0 if query.better == "lower" else 1.0 for query in queries])
    return sign_Q[:, None] * moved_QV[:, run.target_NT].sum(2)


def neuron_norms(run: Run, unit: str, gradient: Tensor) -> np.ndarray:
    """Return the norm of a query's gradient by neuron (input) of a weight, float64 [I]."""
    outputs = 1 if unit in run.layout.transposed else 0
    return gradient.double().norm(dim=outputs).numpy()


def gradients(run: Run, queries: Sequence[Query]) -> list[dict[str, Tensor]]:
    """Return the gradient of each query at the last checkpoint; that of a custom loop too."""
    if run.from_custom_loop:
        weights = {name: own for name, own in run.weights().items() if own.is_floating_point()}
    else:
        _, weights = model_and_weights(run)
    return [query.gradient(weights)[1] for query in queries]


def captured(run: Run, gradient: dict[str, Tensor]) -> np.ndarray:
    """Return a gradient over the captured units, flat in the order of the layout, float64."""
    parts = [gradient[name].double().flatten().numpy() for name in run.layout.names]
    return np.concatenate(parts)
