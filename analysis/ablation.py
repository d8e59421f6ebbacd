"""Does silencing a neuron do what the data that taught it suggest? The study's zero ablation.

Each of the strongest attributed neurons is silenced on the datums that moved it most; the tokens
whose predictions flip are set beside the tokens that attribution found notable.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis import attribution
from analysis.flips import NeuronFlips, agreement, context_table, flip_table, layer_table
from analysis.run import Run
from analysis.silencing import Neuron, Report, Silencing, silence
from analysis.tables import joined, read_table, write_tables
from capture.errors import ConfigError, RunError

JOB = "ablate"
NEURON = [pa.field("unit", pa.string()), pa.field("neuron", pa.int32())]  # column of the unit

FLIPS = pa.schema(
    [
        *NEURON,
        pa.field("token", pa.string()),
        pa.field("proportion", pa.float64()),  # flips / count
        pa.field("count", pa.int64()),  # positions predicted as the token before or after
        pa.field("flips", pa.int64()),  # those where the predictions differ
        pa.field("notable", pa.bool_()),  # found for the neuron by attribution
        pa.field("token_id", pa.int32()),
    ]
)
"""One row a neuron and token with a flip; neurons strongest first, by proportion, then count."""

CONTEXTS = pa.schema(
    [
        *NEURON,
        pa.field("token", pa.string()),  # the flipped token that this is a context of
        pa.field("datum", pa.int32()),
        pa.field("position", pa.int16()),
        pa.field("before", pa.string()),  # predicted token, nothing silenced
        pa.field("after", pa.string()),  # predicted token without the neuron
        pa.field("target", pa.string()),  # the true one
        pa.field("context", pa.string()),  # … when the (before after) target took …
    ]
)
"""A few rows a neuron and flipped token; tokens by id, most attributed datums first."""

NEURONS = pa.schema(
    [
        *NEURON,
        pa.field("datums", pa.int32()),  # evaluated
        pa.field("positions", pa.int64()),  # evaluated
        pa.field("flips", pa.int64()),
        pa.field("flipped_tokens", pa.int32()),  # distinct, before or after
        pa.field("notable_tokens", pa.int32()),  # found by attribution
        pa.field("notable_flipped", pa.int32()),  # both
        pa.field("notable_share", pa.float64()),  # of positions predicted notable, those that flip
        pa.field("other_share", pa.float64()),  # of all other positions, those that flip
        pa.field("ratio", pa.float64()),  # notable_share / other_share; above 1 they agree
    ]
)
"""One row a silenced neuron, strongest first. A share of no positions is NaN."""

LAYERS = pa.schema(
    [
        pa.field("unit", pa.string()),
        pa.field("neurons", pa.int32()),  # silenced
        pa.field("flipped_tokens", pa.float64()),  # mean over these
        pa.field(
            "notable_share", pa.float64()
        ),  # mean share of the flipped tokens that are notable
    ]
)
"""One row a unit, in the model's order."""

TABLES = {"flips": FLIPS, "contexts": CONTEXTS, "neurons": NEURONS, "layers": LAYERS}


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """How much is silenced and looked at."""

    max_neurons: int = 50
    """Neurons silenced: the strongest of those with notable tokens."""
    max_datums: int = 2000
    """Datums a neuron is evaluated on: those with the most outlier rows in its parameters."""
    contexts_per_token: int = 3
    """Contexts kept for every flipped token of a neuron."""

    def __post_init__(self) -> None:
        for name, found in vars(self).items():
            if found < 1:
                raise ConfigError(f"ablation.{name}", f"got {found}, must be at least 1")


@dataclass(frozen=True, eq=False)
class Ablation:
    """What silencing the neurons of a run did."""

    flips: pd.DataFrame
    """``FLIPS``"""
    contexts: pd.DataFrame
    """``CONTEXTS``"""
    neurons: pd.DataFrame
    """``NEURONS``"""
    layers: pd.DataFrame
    """``LAYERS``"""
    certified: float
    """Share of predictions that were certain without computing logits."""


def ablate(run: Run, config: AblationConfig, report: Report | None = None) -> Ablation:
    """Silence the attributed neurons, one at a time, in the run's last model.

    Raises ``RunError`` where attribution has not been done on the run as it is, or found nothing.
    """
    notable = choose_neurons(run, config.max_neurons)
    datums = attributed_datums(run, list(notable), config.max_datums)
    silenced = silence(run.model(), run.token_NT, list(notable), datums, report)
    evaluated = list(by_neuron(silenced, notable, datums))
    neurons = pd.DataFrame([agreement(found) for found in evaluated])
    return Ablation(
        flips=joined([flip_table(found, run.tokens) for found in evaluated], FLIPS),
        contexts=joined(contexts(run, evaluated, config.contexts_per_token), CONTEXTS),
        neurons=joined([neurons], NEURONS),
        layers=joined([layer_table(neurons, run.layout.names)], LAYERS),
        certified=silenced.certified,
    )


def write_ablation(run: Run, found: Ablation) -> None:
    """Leave the tables in the run, under ``analysis/ablate/``."""
    write_tables(run, JOB, vars(found), TABLES)


def choose_neurons(run: Run, most: int) -> dict[Neuron, np.ndarray]:
    """The strongest neurons with notable tokens, strongest first, and the ids of these tokens."""
    table = read_table(run, attribution.JOB, "neurons", attribution.NEURONS)
    if table.empty:
        remedy = f"Attribute with lower thresholds: ontogeny {attribution.JOB} {run.uri} …"
        raise RunError(run.uri, "has an attribution that names no neuron's tokens", remedy)
    tokens = table.groupby(["unit", "neuron"], sort=False)["token_id"].agg(np.array)
    chosen = tokens.iloc[:most]
    units, columns = (chosen.index.get_level_values(level) for level in ("unit", "neuron"))
    return dict(zip(map(Neuron, units, columns), chosen, strict=True))


def attributed_datums(run: Run, neurons: list[Neuron], most: int) -> list[np.ndarray]:
    """Each neuron's datums with most outlier rows, most first, int32."""
    wanted = {
        "unit": sorted({neuron.unit for neuron in neurons}),
        "neuron": sorted({neuron.column for neuron in neurons}),
    }
    table = read_table(run, attribution.JOB, "datums", attribution.DATUMS, wanted)
    datums = table.groupby(["unit", "neuron"], observed=True)["datum"]
    return [datums.get_group((n.unit, n.column)).to_numpy()[:most] for n in neurons]


def by_neuron(
    silenced: Silencing, notable: dict[Neuron, np.ndarray], datums: list[np.ndarray]
) -> Iterator[NeuronFlips]:
    """The evaluation of each neuron, in order."""
    changes = silenced.changes
    bounds = np.searchsorted(changes.neuron_M, np.arange(len(datums) + 1))
    for place, (neuron, token_J) in enumerate(notable.items()):
        own, datum_K = slice(bounds[place], bounds[place + 1]), datums[place]
        ascending = np.argsort(datum_K)
        row_M = ascending[np.searchsorted(datum_K[ascending], changes.datum_M[own])]
        yield NeuronFlips(
            unit=neuron.unit,
            neuron=neuron.column,
            notable=token_J,
            datum_K=datum_K,
            before_KT=silenced.before(datum_K),
            row_M=row_M,
            position_M=changes.position_M[own],
            after_M=changes.after_M[own],
        )


def contexts(run: Run, evaluated: list[NeuronFlips], most: int) -> list[pd.DataFrame]:
    """Flips of every neuron, to read."""
    stream_NT = np.hstack([run.token_NT, run.target_NT[:, -1:]])
    return [context_table(found, stream_NT[found.datum_K], run.tokens, most) for found in evaluated]
