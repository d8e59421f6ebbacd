"""Tables of activations for some tokens and one neuron: the study's activation baseline.

For each token, the tables list the neurons with the lowest and highest mean activation, among the
inputs of the last weights of MLPs (other quantities: among all units). For one
neuron, they compare activations on its tokens with those on other words
(``analysis.activations.comparison``). If a neuron's attributed tokens do not stand out here, the
record contains information that activations do not show.

Shapes: N datum, T position, K asked token, A neuron of any unit, V token, I neuron of a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.activations.comparison import (
    COMPARISONS,
    compare,
    comparison_table,
    histogram_tables,
)
from analysis.activations.config import (
    ActivationConfig,
    attributed_tokens,
    choose_comparison,
    choose_tokens,
    of_level,
    require_known,
)
from analysis.activations.histograms import HISTOGRAMS, label_tokens
from analysis.activations.quantities import (
    Quantity,
    Report,
    blocks_of,
    ranked_units,
    units_of,
    with_progress,
)
from analysis.activations.scores import (
    MeasureActivations,
    MeasureBlock,
    Statistics,
    activation_scores,
)
from analysis.jobs.job import merge_all
from analysis.jobs.question import Question
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import concat_frames, table_set, write_tables
from analysis.run.run import Run
from capture.parts import KnownModel

JOB = "activations"
NUM_RANKS = 10
"""Number of neurons listed at each end."""

TOKEN = [pa.field("token", pa.string()), pa.field("token_id", pa.int32())]
NEURON = [pa.field("unit", pa.string()), pa.field("neuron", pa.int32())]
"""The unit, and the number in it of the neuron, or of the row, entry or head that is measured."""

RANKS = pa.schema(
    [
        *TOKEN,
        pa.field("rank", pa.int32()),  # 0: lowest, and highest
        pa.field("min_unit", pa.string()),
        pa.field("min_neuron", pa.int32()),
        pa.field("min_mean", pa.float64()),  # lowest means of the ranked neurons, ascending
        pa.field("max_unit", pa.string()),
        pa.field("max_neuron", pa.int32()),
        pa.field("max_mean", pa.float64()),  # highest means, descending
    ]
)
"""Ten rows per token, tokens in the given order, of neurons in ``ranked_units``: the study's table
of activations."""

STATISTICS = pa.schema(
    [
        *TOKEN,
        *NEURON,
        pa.field("count", pa.int64()),  # positions of the token
        pa.field("mean", pa.float64()),  # mean activation at these positions
        pa.field("std", pa.float64()),
        pa.field("min", pa.float64()),
        pa.field("max", pa.float64()),
        pa.field("score", pa.float64()),  # |mean - overall mean| / overall standard deviation
    ]
)
"""One row per token and neuron."""

ABOUT = pa.schema(
    [
        pa.field("quantity", pa.string()),  # what is measured: inputs, outputs, head-norm, …
        pa.field("by", pa.string()),  # label of a position: target or input token
        pa.field("step", pa.int32()),  # number of updates behind the model
        pa.field("datums", pa.int64()),
        pa.field("positions", pa.int64()),
        pa.field("tokens_from", pa.string()),  # asked, attribution or frequency
        pa.field("unit", pa.string()),  # the compared neuron
        pa.field("neuron", pa.int32()),
        pa.field("neuron_from", pa.string()),  # asked, attribution or activation (highest mean)
        pa.field(
            "tokens", pa.list_(pa.string())
        ),  # tokens of the comparison; figure 1 has the first
    ]
)
"""One row: the text, tokens and neuron of the analysis, and the origin of the choice."""

TABLES = {
    "ranks": RANKS,
    "statistics": STATISTICS,
    "comparisons": COMPARISONS,
    "histograms": HISTOGRAMS,
    "about": ABOUT,
}


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations on the chosen tokens and of the compared neuron."""

    ranks: pd.DataFrame
    """``RANKS``"""
    statistics: pd.DataFrame
    """``STATISTICS``"""
    comparisons: pd.DataFrame
    """``COMPARISONS``"""
    histograms: pd.DataFrame
    """``HISTOGRAMS``: the distributions of ``comparisons``, in the same order."""
    about: pd.DataFrame
    """``ABOUT``"""


def activations(
    run: Run,
    config: ActivationConfig,
    report: Report | None = None,
    sweep: Sweep = in_turn,
) -> Activations:
    """Measure the chosen tokens over all training datums, then compare one neuron.

    ``report`` is called with the number of datums done and their total. ``sweep`` decides on which
    machines the model runs. Raises ``RunError`` if the run has no committed segment, if there is no
    checkpoint at the step, or if attribution is needed but covers fewer steps than the run. Raises
    ``UnitError`` or ``ConfigError`` for an unknown neuron or token.
    """
    run.require_shards("steps")
    step = run.steps_done if config.step is None else config.step
    model, label_NT = run.parted(step), label_tokens(run, config.by)
    require_known(run, model, config)
    every = attributed_tokens(run, config.attribution) if config.wants_attribution else None
    attributed = of_level(every, config.quantity)
    count_V = np.bincount(label_NT.ravel(), minlength=run.num_tokens)
    any_level = every if attributed is None else attributed
    token_K, tokens_from = choose_tokens(run.tokens, count_V, config, any_level)
    found = statistics_of(model, run.token_NT, label_NT, token_K, config.quantity, report, sweep)
    statistics = statistics_table(found, token_K, run.tokens)
    ranked = {unit: found[unit] for unit in ranked_units(model, config.quantity)}
    ranks = rank_table(ranked, token_K, run.tokens)
    choice = choose_comparison(run.tokens, count_V, token_K, config, attributed, ranks)
    drawn = (choice, config.seed, report, sweep, config.quantity)
    compared = list(compare(model, run.token_NT, label_NT, *drawn))
    about = {
        "quantity": config.quantity,
        "by": config.by,
        "step": step,
        "datums": run.num_datums,
        "positions": label_NT.size,
        "tokens_from": tokens_from,
        "unit": choice.unit,
        "neuron": choice.neuron,
        "neuron_from": choice.neuron_from,
        "tokens": [run.tokens[token] for token in choice.tokens],
    }
    return Activations(
        ranks=concat_frames([ranks], RANKS),
        statistics=concat_frames([statistics], STATISTICS),
        comparisons=concat_frames([comparison_table(compared, run.tokens)], COMPARISONS),
        histograms=concat_frames(histogram_tables(compared, run.tokens), HISTOGRAMS),
        about=concat_frames([pd.DataFrame([about])], ABOUT),
    )


def write_activations(
    run: Run, found: Activations, question: Question | None = None, name: str = ""
) -> None:
    """Write the tables to ``run.tables``, as the set with this name."""
    write_tables(run, table_set(JOB, name), vars(found), TABLES, question)


# --- all neurons on some tokens -------------------------------------------------------------------


def statistics_of(
    model: KnownModel,
    token_NT: np.ndarray,
    label_NT: np.ndarray,
    token_K: np.ndarray,
    quantity: Quantity,
    report: Report | None,
    sweep: Sweep,
) -> dict[str, Statistics]:
    """Return unit → statistics by label; label K stands for all other tokens, [K + 1]."""
    label_V = np.full(max(token_K.max(), label_NT.max()) + 1, len(token_K))
    label_V[token_K] = np.arange(len(token_K))
    units = tuple(units_of(model, quantity))
    job = MeasureActivations(model, units, len(token_K) + 1, quantity)
    blocks = blocks_of(len(token_NT))
    partials = sweep(MeasureBlock(job, token_NT, label_V[label_NT]), blocks)
    return job.finish(merge_all(with_progress(partials, blocks, report), job.merge))


def statistics_table(
    found: dict[str, Statistics], token_K: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """Build ``STATISTICS``: tokens in order, and for each all neurons in the model's order."""
    scores = {unit: activation_scores(stats) for unit, stats in found.items()}
    frames = []
    for row, token in enumerate(token_K):
        for unit, stats in found.items():
            named = {"token": names[token], "token_id": token, "unit": unit}
            values = {
                "neuron": np.arange(stats.mean_VI.shape[1]),
                "count": stats.count_V[row],
                "mean": stats.mean_VI[row],
                "std": stats.std_VI[row],
                "min": stats.min_VI[row],
                "max": stats.max_VI[row],
                "score": scores[unit][row],
            }
            frames.append(pd.DataFrame(named | values))
    return pd.concat(frames, ignore_index=True)


def rank_table(
    found: dict[str, Statistics], token_K: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """Build ``RANKS``: for each token the neurons of extreme mean, ties in the model's order."""
    mean_KA = np.hstack([stats.mean_VI[: len(token_K)] for stats in found.values()])
    sizes = [stats.mean_VI.shape[1] for stats in found.values()]
    unit_A = np.repeat(list(found), sizes)
    neuron_A = np.concatenate([np.arange(size) for size in sizes])
    frames = []
    for token, mean_A in zip(token_K, mean_KA, strict=True):
        ends = {"min": np.argsort(mean_A, kind="stable"), "max": np.argsort(-mean_A, kind="stable")}
        columns = {"token": names[token], "token_id": token, "rank": np.arange(len(mean_A))}
        for end, order_A in ends.items():
            columns |= {f"{end}_unit": unit_A[order_A], f"{end}_neuron": neuron_A[order_A]}
            columns |= {f"{end}_mean": mean_A[order_A]}
        frames.append(pd.DataFrame(columns).head(NUM_RANKS))
    return pd.concat(frames, ignore_index=True)
