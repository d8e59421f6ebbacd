"""Slow, obvious references for the computations of analysis."""

import io
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from analysis.attribution.config import AttributionConfig
from analysis.levels import MLP_UNITS
from analysis.run.run import Run
from capture.format.checkpoint import read_checkpoint


def read_everything(run: Run, kind: str) -> pd.DataFrame:
    """Read all rows of one kind of record with plain pandas."""
    keys = [file.key for segment in run.segments for file in segment.files_of(kind)]
    frames = [pd.read_parquet(io.BytesIO(run.store.get(key))) for key in keys]
    return pd.concat(frames, ignore_index=True)


def records(frame: pd.DataFrame) -> list[Any]:
    """Return the rows with their values as attributes."""
    return list(frame.itertuples())


def all_shifts(run: Run) -> pd.DataFrame:
    """Return every shift, joined with its step and its datum's text, in the order of capture."""
    rows = read_everything(run, "outliers").assign(abs_diff=lambda rows: rows["shift"].abs())
    rows = rows.merge(read_everything(run, "steps")[["step", "epoch", "batch"]], on="step")
    rows["text"] = rows["datum"].map(run.datums().set_index("datum")["text"])
    rows = rows.astype({"unit": str})
    rows = rows.sort_values(["step", "slot", "unit", "index"], ignore_index=True)
    names = {"slot": "datum_ix", "shift": "diff", "datum": "datum_id", "text": "datum"}
    columns = ["epoch", "batch", "datum_ix", "unit", "index", "diff", "abs_diff", "datum"]
    return rows.rename(columns=names)[[*columns, "step", "datum_id", "position"]]


# --- attribution ----------------------------------------------------------------------------------


def attributed_tokens(run: Run, config: AttributionConfig) -> list[tuple[str, int, int, str, int]]:
    """Return (unit, index, rows, token, count) of every parameter's notable tokens, in order."""
    rows = read_everything(run, "outliers")
    windows = {row.datum: [run.tokens[t] for t in row.tokens] for row in records(run.datums())}
    train = Counter(token for datum in set(rows["datum"]) for token in windows[datum])
    samples = defaultdict(list)
    for row in records(rows):
        if len(run.layout.shapes[row.unit]) == 2:
            samples[row.unit, row.index].append(row.datum)
    ranked = sorted(samples, key=lambda p: (-len(samples[p]), run.layout.names.index(p[0]), p[1]))
    found = []
    for parameter in ranked[: config.max_parameters]:
        sample = Counter(token for datum in samples[parameter] for token in windows[datum])
        found += [
            (*parameter, len(samples[parameter]), token, sample[token])
            for token in select(sample, train, run.tokens, config)
        ]
    return found


def select(
    sample: Counter[str], train: Counter[str], order: list[str], config: AttributionConfig
) -> list[str]:
    """Select by the univariate heuristic on plain counters; exact fractions settle ties."""

    def ratio(token: str) -> Fraction:
        return Fraction(sample[token], train[token])

    tokens = [token for token in sample if sample[token] >= config.selection.min_count]
    tokens.sort(key=lambda token: (-ratio(token), order.index(token)))
    tokens = tokens[: config.selection.most_frequent]
    tokens.sort(key=lambda token: (-sample[token], -ratio(token), order.index(token)))
    return tokens[: config.selection.most_counted]


def neuron_tokens(
    run: Run, parameters: list[tuple[str, int, int, str, int]]
) -> dict[tuple[str, int], set[str]]:
    """Return the notable tokens of each neuron: the union over its parameters."""
    found = defaultdict(set)
    for unit, index, _, token, _ in parameters:
        if unit.endswith(MLP_UNITS):
            found[unit, index % run.layout.shapes[unit][1]].add(token)
    return found


# --- evidence, row by row -------------------------------------------------------------------------


def rows_of_neurons(run: Run) -> pd.DataFrame:
    """Return the outlier rows of MLP columns with target, input and weight.

    ``target`` and ``input`` are the tokens at the row's position, ``weight`` is the parameter's
    value at the start of the row's segment.
    """
    rows = read_everything(run, "outliers").astype({"unit": str})
    rows = rows[rows["unit"].str.endswith(MLP_UNITS)].reset_index(drop=True)
    at = rows["datum"].to_numpy(), rows["position"].to_numpy()
    starts = [segment.first_step for segment in run.segments]
    weights = {start: read_checkpoint(run.store, start) for start in starts}
    found = [
        weights[max(start for start in starts if start <= row.step)][row.unit].flatten()[row.index_]
        for row in records(rows.rename(columns={"index": "index_"}))
    ]
    fan_in = rows["unit"].map({name: shape[-1] for name, shape in run.layout.shapes.items()})
    return rows.assign(
        neuron=rows["index"] % fan_in,
        target=run.target_NT[at],
        input=run.token_NT[at],
        weight=np.array(found, np.float64),
    )
