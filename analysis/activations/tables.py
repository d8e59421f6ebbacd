"""What activations alone say of some tokens and one neuron: the study's table and figures.

Of each token, the neurons that are least and most active where it stands; of one neuron, its
activations on its tokens beside those on others (``analysis.activations.comparison``). If the
tokens that taught a neuron do not stand out here, the record knows what activations hide.

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
    require_known,
)
from analysis.activations.histograms import HISTOGRAMS, label_tokens
from analysis.activations.scores import (
    MeasureActivations,
    MeasureBlock,
    Report,
    Statistics,
    activation_scores,
    blocks_of,
    mlp_units,
    with_progress,
)
from analysis.jobs.job import merge_all
from analysis.jobs.sweep import Sweep, in_turn
from analysis.jobs.tables import joined, write_tables
from analysis.run.run import Run
from capture.models.transformer import LanguageModel

JOB = "activations"
NUM_RANKS = 10
"""Neurons named at each end."""

TOKEN = [pa.field("token", pa.string()), pa.field("token_id", pa.int32())]
NEURON = [pa.field("unit", pa.string()), pa.field("neuron", pa.int32())]  # column of the unit

RANKS = pa.schema(
    [
        *TOKEN,
        pa.field("rank", pa.int32()),  # 0: lowest, and highest
        pa.field("min_unit", pa.string()),
        pa.field("min_neuron", pa.int32()),
        pa.field("min_mean", pa.float64()),  # lowest means of all neurons, ascending
        pa.field("max_unit", pa.string()),
        pa.field("max_neuron", pa.int32()),
        pa.field("max_mean", pa.float64()),  # highest means, descending
    ]
)
"""Ten rows a token, tokens in the order asked: the study's table of activations."""

STATISTICS = pa.schema(
    [
        *TOKEN,
        *NEURON,
        pa.field("count", pa.int64()),  # positions of the token
        pa.field("mean", pa.float64()),  # of the activation there
        pa.field("std", pa.float64()),
        pa.field("min", pa.float64()),
        pa.field("max", pa.float64()),
        pa.field("score", pa.float64()),  # |mean - that of all positions| / their deviation
    ]
)
"""One row an asked token and neuron."""

ABOUT = pa.schema(
    [
        pa.field("by", pa.string()),  # a token's positions: those that predict (target) or read it
        pa.field("step", pa.int32()),  # updates that the model had
        pa.field("datums", pa.int64()),
        pa.field("positions", pa.int64()),
        pa.field("tokens_from", pa.string()),  # asked, attribution or frequency
        pa.field("unit", pa.string()),  # the compared neuron
        pa.field("neuron", pa.int32()),
        pa.field("neuron_from", pa.string()),  # asked, attribution or activation (its highest mean)
        pa.field("tokens", pa.list_(pa.string())),  # that it is compared on; the first in figure 1
    ]
)
"""One row: what was looked at, and who chose it."""

TABLES = {
    "ranks": RANKS,
    "statistics": STATISTICS,
    "comparisons": COMPARISONS,
    "histograms": HISTOGRAMS,
    "about": ABOUT,
}


@dataclass(frozen=True, eq=False)
class Activations:
    """What activations say of the chosen tokens and neuron."""

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
    """Measure the asked tokens over all training datums, then compare one neuron.

    ``sweep`` says where the model is run. Raises ``RunError`` where nothing is committed, there is
    no checkpoint at the step, or attribution is wanted but older than the run; ``UnitError`` and
    ``ConfigError`` for a neuron and tokens that are not there.
    """
    run.require_shards("steps")
    step = run.steps_done if config.step is None else config.step
    model, label_NT = run.model(step), label_tokens(run, config.by)
    require_known(run, model, config)
    taught = attributed_tokens(run) if config.wants_attribution else None
    count_V = np.bincount(label_NT.ravel(), minlength=run.num_tokens)
    token_K, tokens_from = choose_tokens(run.tokens, count_V, config, taught)
    found = statistics_of(model, run.token_NT, label_NT, token_K, report, sweep)
    statistics = statistics_table(found, token_K, run.tokens)
    ranks = rank_table(found, token_K, run.tokens)
    choice = choose_comparison(run.tokens, count_V, token_K, config, taught, ranks)
    compared = list(compare(model, run.token_NT, label_NT, choice, config.seed, report, sweep))
    about = {
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
        ranks=joined([ranks], RANKS),
        statistics=joined([statistics], STATISTICS),
        comparisons=joined([comparison_table(compared, run.tokens)], COMPARISONS),
        histograms=joined(histogram_tables(compared, run.tokens), HISTOGRAMS),
        about=joined([pd.DataFrame([about])], ABOUT),
    )


def write_activations(run: Run, found: Activations) -> None:
    """Leave the tables in the run, under ``analysis/activations/``."""
    write_tables(run, JOB, vars(found), TABLES)


# --- all neurons on some tokens -------------------------------------------------------------------


def statistics_of(
    model: LanguageModel,
    token_NT: np.ndarray,
    label_NT: np.ndarray,
    token_K: np.ndarray,
    report: Report | None,
    sweep: Sweep,
) -> dict[str, Statistics]:
    """Statistics of some tokens, in their order, and after them of all others together, [K + 1]."""
    place_V = np.full(max(token_K.max(), label_NT.max()) + 1, len(token_K))
    place_V[token_K] = np.arange(len(token_K))
    job = MeasureActivations(model, tuple(mlp_units(model)), len(token_K) + 1)
    blocks = blocks_of(len(token_NT))
    partials = sweep(MeasureBlock(job, token_NT, place_V[label_NT]), blocks)
    return job.finish(merge_all(with_progress(partials, blocks, report), job.merge))


def statistics_table(
    found: dict[str, Statistics], token_K: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """``STATISTICS``: tokens in order, of each all neurons of the model in order."""
    scores = {unit: activation_scores(stats) for unit, stats in found.items()}
    frames = []
    for place, token in enumerate(token_K):
        for unit, stats in found.items():
            named = {"token": names[token], "token_id": token, "unit": unit}
            values = {
                "neuron": np.arange(stats.mean_VI.shape[1]),
                "count": stats.count_V[place],
                "mean": stats.mean_VI[place],
                "std": stats.std_VI[place],
                "min": stats.min_VI[place],
                "max": stats.max_VI[place],
                "score": scores[unit][place],
            }
            frames.append(pd.DataFrame(named | values))
    return pd.concat(frames, ignore_index=True)


def rank_table(
    found: dict[str, Statistics], token_K: np.ndarray, names: Sequence[str]
) -> pd.DataFrame:
    """``RANKS``: of each token the neurons of extreme mean, ties in the model's order."""
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
