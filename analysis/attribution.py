"""Which data taught a parameter, and through its parameters a neuron: the study's attribution.

1. Count the outlier rows of every captured parameter. The weights (units with two axes; biases and
   norms only add noise) with most rows are analysed.
2. Collect each one's sample: the datums of all its rows, with multiplicity.
3. Find the tokens that stand out in a sample against all datums that occur in any outlier
   (``analysis.tokens``).
4. A neuron is a column of an MLP weight. Its notable tokens are those of its analysed parameters.

Shapes: P captured parameter, R analysed parameter by rank, N datum, T position, V token of the
vocabulary, J notable token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.jobs import Runner
from analysis.run import Run
from analysis.samples import CountRows, SampleDatums, Samples
from analysis.tables import joined, write_tables
from analysis.tokens import count_tokens, notable_tokens
from capture.errors import ConfigError, RunError
from capture.gradients import Layout

JOB = "attribute"
MLP_UNITS = ("linear1.weight", "linear2.weight")
"""Endings of the units whose columns are neurons."""

PARAMETERS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("index", pa.int32()),  # flat index into the unit
        pa.field("row", pa.int32()),
        pa.field("column", pa.int32()),  # the neuron, in an MLP unit
        pa.field("rows", pa.int64()),  # outlier rows of the parameter
        pa.field("rank", pa.int32()),  # by rows among all weights, from 0
        pa.field("token", pa.string()),
        pa.field("count", pa.int64()),  # of the token, in the windows of all those rows
        pa.field("frequency", pa.float64()),  # count per token of those windows
        pa.field("train_frequency", pa.float64()),  # the same over all datums with outliers
        pa.field("relative_frequency", pa.float64()),  # frequency / train_frequency
        pa.field("token_id", pa.int32()),
    ]
)
"""One row a parameter and notable token; by rank, then count descending."""

NEURONS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neuron", pa.int32()),  # column of the unit
        pa.field("parameters", pa.int32()),  # analysed parameters of the neuron
        pa.field("rows", pa.int64()),  # their outlier rows
        pa.field("token", pa.string()),
        pa.field("named_by", pa.int32()),  # how many of these parameters the token is notable for
        pa.field("count", pa.int64()),  # the token's count in the samples of those, summed
        pa.field("relative_frequency", pa.float64()),  # count / what train_frequency would give
        pa.field("strength", pa.float64()),  # Σ log(relative frequency) over them, nats
        pa.field("token_id", pa.int32()),
    ]
)
"""One row a neuron and notable token; neurons by rows, tokens by strength, descending."""

SUMMARY = pa.schema(
    [
        *(NEURONS.field(name) for name in ("unit", "neuron", "parameters", "rows")),
        pa.field("tokens", pa.list_(pa.string())),  # notable tokens, strongest first; may be empty
    ]
)
"""One row a neuron with analysed parameters, by rows descending."""

DATUMS = pa.schema(
    [
        pa.field("unit", pa.dictionary(pa.int16(), pa.string())),
        pa.field("neuron", pa.int32()),
        pa.field("datum", pa.int32()),
        pa.field("rows", pa.int32()),  # outlier rows of the datum in the neuron's parameters
    ]
)
"""One row a neuron and datum of its sample; neurons by rows, datums by rows, descending."""

TABLES = {"parameters": PARAMETERS, "neurons": NEURONS, "summary": SUMMARY, "datums": DATUMS}


@dataclass(frozen=True, kw_only=True)
class AttributionConfig:
    """How many parameters are analysed, and what makes a token notable; as in the study."""

    max_parameters: int = 5000
    """Weights analysed: those with the most outlier rows."""
    min_count: int = 20
    """A notable token occurs at least this often in a parameter's sample."""
    most_frequent: int = 200
    """Of such tokens, so many with the highest relative frequency are considered."""
    most_counted: int = 5
    """Of these, so many with the highest count are notable."""

    def __post_init__(self) -> None:
        for name, found in vars(self).items():
            if found < 1:
                raise ConfigError(f"attribution.{name}", f"got {found}, must be at least 1")


@dataclass(frozen=True, eq=False)
class Attribution:
    """What taught the parameters and neurons of a run."""

    parameters: pd.DataFrame
    """``PARAMETERS``"""
    neurons: pd.DataFrame
    """``NEURONS``"""
    summary: pd.DataFrame
    """``SUMMARY``"""
    datums: pd.DataFrame
    """``DATUMS``"""


def attribute(run: Run, run_job: Runner, config: AttributionConfig) -> Attribution:
    """The study's attribution; raises ``RunError`` if the run has no outliers of weights yet."""
    shards = run.require_shards("outliers")
    layout = run.layout
    counts = run_job(CountRows(layout, run.num_datums), shards)
    place_R = most_moved(counts.parameter_P, layout, config.max_parameters)
    if not len(place_R):
        problem = "has no outliers of weights (units with two axes)"
        raise RunError(run.uri, problem, "Capture some with capture.units")
    group_P = np.full(layout.size, -1, np.int32)
    group_P[place_R] = np.arange(len(place_R))
    samples = run_job(SampleDatums(layout, run.num_datums, group_P), shards)
    seen = np.flatnonzero(counts.datum_N)
    train_V = count_tokens(run.token_NT, seen, np.ones_like(seen), run.num_tokens)
    analysed = describe(place_R, counts.parameter_P, layout)
    names = np.array(run.tokens, object)
    parameters = parameter_table(analysed, samples, run.token_NT, train_V, names, config)
    neurons = rank_neurons(analysed, layout)
    named = neuron_table(neurons, parameters)
    return Attribution(
        parameters=joined([parameters], PARAMETERS),
        neurons=joined([named], NEURONS),
        summary=joined([summarise(neurons, named)], SUMMARY),
        datums=joined([datum_table(neurons, analysed, samples)], DATUMS),
    )


def write_attribution(run: Run, found: Attribution) -> None:
    """Leave the tables in the run, under ``analysis/attribute/``."""
    write_tables(run, JOB, vars(found), TABLES)


# --- parameters -----------------------------------------------------------------------------------


def most_moved(rows_P: np.ndarray, layout: Layout, max_parameters: int) -> np.ndarray:
    """Places of the weights with the most rows (at least one), most first, ties by place, [R]."""
    is_weight = [len(shape) == 2 for shape in layout.shapes.values()]
    rows_P = rows_P * np.repeat(is_weight, layout.sizes)
    place_R = np.argsort(-rows_P, kind="stable")[:max_parameters]
    return place_R[rows_P[place_R] > 0]


def describe(place_R: np.ndarray, rows_P: np.ndarray, layout: Layout) -> pd.DataFrame:
    """unit, index, row, column, rows and rank of each analysed parameter."""
    unit_R = np.searchsorted(layout.offsets, place_R, side="right") - 1
    index_R = place_R - np.array(layout.offsets)[unit_R]
    fan_in_R = np.array([shape[-1] for shape in layout.shapes.values()])[unit_R]
    return pd.DataFrame(
        {
            "unit": np.array(layout.names, object)[unit_R],
            "index": index_R,
            "row": index_R // fan_in_R,
            "column": index_R % fan_in_R,
            "rows": rows_P[place_R],
            "rank": np.arange(len(place_R)),
        }
    )


def parameter_table(
    analysed: pd.DataFrame,
    samples: Samples,
    token_NT: np.ndarray,
    train_V: np.ndarray,
    names: np.ndarray,
    config: AttributionConfig,
) -> pd.DataFrame:
    """``PARAMETERS`` of the analysed parameters; one without notable tokens has no row."""
    found = stand_outs(len(analysed), samples, token_NT, train_V, config)
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    tokens = pd.DataFrame(dict(zip(("rank", "token_id", "count", "size"), columns, strict=True)))
    tokens["token"] = names[tokens["token_id"]]
    tokens["frequency"] = tokens["count"] / tokens["size"]
    tokens["train_frequency"] = train_V[tokens["token_id"]] / train_V.sum()
    tokens["relative_frequency"] = tokens["frequency"] / tokens["train_frequency"]
    return analysed.merge(tokens, on="rank")


def stand_outs(
    num_parameters: int,
    samples: Samples,
    token_NT: np.ndarray,
    train_V: np.ndarray,
    config: AttributionConfig,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Rank, token, count and size of the sample for each notable token, one parameter at a time."""
    for rank in range(num_parameters):
        sample_V = count_tokens(token_NT, *samples.of(rank), len(train_V))
        token_J = notable_tokens(
            sample_V,
            train_V,
            min_count=config.min_count,
            most_frequent=config.most_frequent,
            most_counted=config.most_counted,
        )
        rank_J = np.full_like(token_J, rank)
        yield rank_J, token_J, sample_V[token_J], np.full_like(token_J, sample_V.sum())


# --- neurons --------------------------------------------------------------------------------------


def rank_neurons(analysed: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """unit, neuron, parameters, rows: by rows descending, ties by unit (in order) and neuron."""
    mlp = analysed[analysed["unit"].str.endswith(MLP_UNITS)]
    neurons = (
        mlp.groupby(["unit", "column"])
        .agg(parameters=("rank", "size"), rows=("rows", "sum"))
        .reset_index(names=["unit", "neuron"])
    )
    place = neurons["unit"].map({name: place for place, name in enumerate(layout.names)})
    order = np.lexsort((neurons["neuron"], place, -neurons["rows"]))
    return neurons.iloc[order].reset_index(drop=True)


def neuron_table(neurons: pd.DataFrame, parameters: pd.DataFrame) -> pd.DataFrame:
    """``NEURONS``: the notable tokens of each neuron's parameters, together."""
    expected = parameters["count"] / parameters["relative_frequency"]
    named = (
        parameters.assign(
            neuron=parameters["column"],
            expected=expected,
            evidence=np.log(parameters["relative_frequency"]),
        )
        .groupby(["unit", "neuron", "token_id", "token"])
        .agg(
            named_by=("rank", "size"),
            count=("count", "sum"),
            expected=("expected", "sum"),
            strength=("evidence", "sum"),
        )
        .reset_index()
    )
    found = neurons.reset_index(names="place").merge(named, on=["unit", "neuron"])
    found["relative_frequency"] = found["count"] / found["expected"]
    order = np.lexsort((found["token_id"], -found["strength"], found["place"]))
    return found.iloc[order].reset_index(drop=True)


def summarise(neurons: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """``SUMMARY`` from the ranked neurons and their ``NEURONS``."""
    tokens = named.groupby("place")["token"].agg(list)
    lists = [tokens.get(place, []) for place in range(len(neurons))]
    return neurons.assign(tokens=pd.Series(lists, neurons.index, object))


def datum_table(neurons: pd.DataFrame, analysed: pd.DataFrame, samples: Samples) -> pd.DataFrame:
    """``DATUMS``: the samples of each neuron's parameters, together."""
    places = neurons[["unit", "neuron"]].reset_index(names="place")
    keys = analysed[["unit", "column"]].rename(columns={"column": "neuron"})
    place_R = keys.merge(places, on=["unit", "neuron"], how="left")["place"]
    pooled = samples.regrouped(place_R.fillna(-1).to_numpy(np.int64))
    order = np.lexsort((pooled.datum_K, -pooled.rows_K, pooled.group_K))
    place_K = pooled.group_K[order]
    return pd.DataFrame(
        {
            "unit": neurons["unit"].astype("category").array[place_K],
            "neuron": neurons["neuron"].to_numpy(np.int32)[place_K],
            "datum": pooled.datum_K[order].astype(np.int32),
            "rows": pooled.rows_K[order].astype(np.int32),
        }
    )
