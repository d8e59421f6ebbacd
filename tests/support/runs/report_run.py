"""A small run with invented tables of every analysis, from which reports are written."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from tiny_run import copied, tiny_run

from analysis.jobs.tables import write_tables
from analysis.report.pages.sources import WANTED
from analysis.run.run import Run, open_run

UNITS = [f"layers.{layer}.linear{linear}.weight" for layer in (0, 1) for linear in (1, 2)]
NEURONS = [(unit, number) for unit in UNITS for number in (0, 3)]
"""Neurons with an attribution, most evidence first."""
TOKENS = 3
"""Tokens in the evidence of each neuron."""


def report_run(uri: str, *jobs: str) -> Run:
    """Copy the tiny run to ``uri`` with tables of these jobs, by default of all."""
    copied(tiny_run(), uri)
    run = open_run(uri)
    for job in jobs or WANTED:
        schemas = {name: pa.schema(columns.items()) for name, columns in WANTED[job].items()}
        write_tables(run, job, TABLES[job](run), schemas)
    return run


def frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def token_evidence(run: Run) -> list[dict[str, object]]:
    """Three tokens of each neuron, by rank: those after the index of the neuron in ``NEURONS``."""
    return [
        {"level": "neuron", "unit": unit, "group": number, "neuron": number, "rank": rank}
        | {"token_id": token, "token": run.tokens[token]}
        for index, (unit, number) in enumerate(NEURONS)
        for rank in range(TOKENS)
        for token in [1 + (index + rank) % 12]
    ]


def attribute(run: Run) -> dict[str, pd.DataFrame]:
    groups = [
        {"level": "neuron", "unit": unit, "group": number, "rows": 900 - index, "weight": 9.5}
        for index, (unit, number) in enumerate(NEURONS)
    ]
    numbers = {"score": 2.5, "q": 0.01, "count": 40, "weight": 40.0, "expected": 20.0}
    signs = {"up": 30.0, "down": 10.0, "strengthened": 25.0, "weakened": 15.0}
    tokens = [row | numbers | signs | {"relative_frequency": 2.0} for row in token_evidence(run)]
    windows = [
        row
        | {"window": window, "first_step": 6 * window, "end_step": 6 * window + 6}
        | {"weight": 10.0 + window, "expected": 5.0}
        for row in token_evidence(run)
        for window in range(4)
    ]
    datums = [
        group
        | {"datum": datum, "rows": 5, "weight": 5.0 - datum, "step": 3, "position": datum}
        | {"shift": -0.25}
        for group in groups
        for datum in range(4)
    ]
    effects = {"p": 0.001, "q": 0.01, "rms_change": 0.08, "positions": 20, "change": -0.4}
    effects |= {"low": -0.5, "high": -0.3, "alive": True, "first_step": 6, "end_step": 12}
    confirmed = [row | effects | {"confirmed": row["rank"] == 0} for row in token_evidence(run)]
    confirmed[-1] |= {"p": np.nan, "q": np.nan, "positions": 3}
    counts = {"pairs": 24, "groups": 8, "confirmed_pairs": 0, "confirmed_groups": 0}
    counts |= {"low": 0.0, "high": 0.32}
    found = counts | {"confirmed_pairs": 8, "confirmed_groups": 8, "low": 0.68, "high": 1.0}
    return {
        "confirmed": frame(confirmed),
        "nulls": frame([found | {"case": "record"}, counts | {"case": "untrained model"}]),
        "groups": frame(groups),
        "tokens": frame(tokens),
        "windows": frame(windows),
        "datums": frame(datums),
    }


def ablate(run: Run) -> dict[str, pd.DataFrame]:
    rows = [row | {"kind": "zero"} for row in token_evidence(run) if row["unit"] != UNITS[0]]
    counts = {"low": 0.4, "high": 0.6} | {
        "proportion": 0.5,
        "count": 20,
        "flips": 10,
        "notable": True,
    }
    words = {"before": "w1", "after": "w2", "count": 4, "context": "… w0 (w1 w2) w3 …"}
    totals = {"datums": 5, "positions": 40, "flips": 10, "flipped_tokens": 3}
    totals |= {"notable_tokens": 3, "notable_flipped": 2, "notable_share": 0.5}
    totals |= {"notable_low": 0.4, "notable_high": 0.6, "attributed": True}
    totals |= {"other_share": 0.1, "other_low": 0.05, "other_high": 0.15, "ratio": 5.0}
    totals |= {"change": -0.02, "change_low": -0.03, "change_high": -0.01}
    totals |= {"notable_positions": 16, "other_positions": 24, "rms_change": 0.08}
    for name, value in (("notable_change", -0.05), ("other_change", 0.0), ("difference", -0.05)):
        totals |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
    change = {"count": 20, "change": -0.3, "low": -0.4, "high": -0.2}
    layers = [
        {"level": "neuron", "unit": unit, "neurons": 2, "flipped_tokens": 3.0}
        | {"flipped_low": 2.0, "flipped_high": 4.0, "notable_share": 0.6}
        | {"notable_low": 0.5, "notable_high": 0.7}
        for unit in UNITS[1:]
    ]
    return {
        "flips": frame([row | counts for row in rows]),
        "contexts": frame([row | words for row in rows]),
        "neurons": frame([row | totals for row in rows if row["rank"] == 0]).assign(
            rms_change=lambda table: np.where(table.index == 0, 0.0001, 0.08)
        ),
        "layers": frame(layers),
        "tokens": frame([row | change for row in rows]),
        "moves": frame([row | words for row in rows]),
    }


def activations(run: Run) -> dict[str, pd.DataFrame]:
    ends = {"min_unit": UNITS[0], "min_neuron": 0, "min_mean": -1.5}
    ends |= {"max_unit": UNITS[1], "max_neuron": 1, "max_mean": 2.5}
    ranks = [{"token": run.tokens[1], "token_id": 1, "rank": rank} | ends for rank in range(2)]
    compared = [
        {"figure": figure, "unit": UNITS[0], "neuron": 3, "token": run.tokens[token]}
        | {"focus": token == 1, "count": 9, "q25": -1.0, "median": 0.0, "q75": 1.0}
        for figure in (1, 3)
        for token in (1, 2)
    ]
    histograms = [
        row | {"group": row["token"], "low": float(low), "high": low + 1.0, "share": 0.5}
        for row in compared
        for low in range(2)
    ]
    return {
        "ranks": frame(ranks),
        "comparisons": frame(compared),
        "histograms": frame(histograms),
    }


def neurons(run: Run) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    clustered = [
        {"unit": unit, "neuron": number, "cluster": index % 3 - 1, "membership": 0.5}
        | {"x": rng.normal(), "y": rng.normal(), "topics": 2, "topic_tokens": [["w1"], ["w2"]]}
        for index, (unit, number) in enumerate(NEURONS)
    ]
    clusters = [
        {"cluster": number, "size": 3, "stability": 0.8, "low": 0.6, "high": 0.9}
        | {"tokens": ["w1", "w2"], "units": UNITS[:2]}
        for number in (0, 1)
    ]
    return {"neurons": frame(clustered), "clusters": frame(clusters)}


def faithfulness(run: Run) -> dict[str, pd.DataFrame]:
    scores = [
        {"unit": unit, "evidence": evidence, "background": "unit"}
        | {"select": "odds", "neurons": 2, "baseline": evidence == "activations"}
        | {"auc": 0.8, "auc_low": 0.7, "auc_high": 0.9}
        | {"precision": 0.3, "precision_low": 0.2, "precision_high": 0.4}
        for unit in UNITS
        for evidence in ("target", "activations")
    ]
    own = [
        {"unit": unit, "neuron": number, "evidence": "target", "background": "unit"}
        | {"select": select, "auc": 0.75, "precision": 0.25}
        for unit, number in NEURONS
        for select in ("odds", "kl")
    ]
    return {"scores": frame(scores), "neurons": frame(own)}


TABLES = {
    "attribute": attribute,
    "ablate": ablate,
    "activations": activations,
    "neurons": neurons,
    "faithfulness": faithfulness,
}
