"""The data behind the pages: the tables of a run, grouped once by neuron and by token."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.jobs.neuron_influence import NeuronInfluence, neuron_influences
from analysis.report.pages.sources import Sources
from analysis.report.pages.website import Links, Neuron
from analysis.run.run import Run

if TYPE_CHECKING:
    from analysis.report.pages.comparison.compared_runs import Comparison

DATUMS_SHOWN = 8
"""Datums on a neuron's page."""
CONTEXTS_SHOWN = 12
"""Passages with a changed prediction on a neuron's page."""
TOP_TOKENS_SHOWN = 8
"""Tokens that describe a neuron in a table."""
NEIGHBOURS_SHOWN = 6
"""Nearest neurons on a neuron's page."""
ONE_STEP_SHIFTS = (
    "Shifts of one step are counted: what each gradient changed in its own step, without what "
    "momentum made of it later."
)
LIFETIME_SHIFTS = (
    "Lifetime shifts are counted: what each gradient still contributes to the last weights, "
    "through momentum and later steps."
)

DATA_FOLDER = "data"
TRAINING = "training"
"""Stands for the run itself beside the names of analyses."""


@dataclass(frozen=True)
class DataFile:
    """A file of raw data in the report's folder."""

    source: str
    """The analysis that made it, or ``TRAINING``."""
    name: str
    """Its name in ``data/SOURCE/``."""
    rows: int | None
    """Number of rows; None for the list of tables, which is JSON."""
    data: bytes | memoryview

    @property
    def key(self) -> str:
        return f"{DATA_FOLDER}/{self.source}/{self.name}"


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured for the report on the run's text and checkpoints.

    Empty for models that are missing (custom loops) or have no parts that are known.
    """

    histograms: pd.DataFrame
    """``analysis.activations.histograms.HISTOGRAMS`` of the report's neurons."""
    passages: pd.DataFrame
    """``analysis.report.measured.passages.PASSAGES``"""
    activation_datums: int
    """Number of datums on which activations were measured."""
    logits: pd.DataFrame
    """``analysis.report.measured.direct_logits.LOGITS``"""
    datums: pd.DataFrame
    """``analysis.report.measured.update_norms.DATUMS``; empty unless tallies chose the tokens."""
    searched: int
    """Number of datums that ``datums`` was chosen from."""
    steps: tuple[int, ...]
    """Steps of the checkpoints that update norms were computed with."""
    by_input: bool
    """Whether tokens are those of inputs, not of targets."""
    missing: str = ""
    """Why nothing was measured, as the end of a sentence about the run."""

    @cached_property
    def histograms_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.histograms)

    @cached_property
    def passages_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.passages)

    @cached_property
    def logits_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.logits)

    @cached_property
    def datums_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        """The datums in which the update norm of the named tokens arises, most first."""
        return by_neuron(self.datums)


@dataclass(frozen=True, eq=False)
class ReportData:
    """A run, its tables, and the neurons that have a page.

    Mappings by neuron hold the rows of that neuron; neurons without rows are absent.
    """

    run: Run
    sources: Sources
    timeline: pd.DataFrame
    """``analysis.report.timeline.TIMELINE``"""
    measured: Callable[[Neuron], Measured]
    """What was measured of a neuron, perhaps together with others."""
    groups: pd.DataFrame
    """``analysis.attribution.tables.GROUPS`` of the neurons with a page, most evidence first."""
    files: Sequence[DataFile] = ()
    """Raw data that is written beside the pages."""
    comparison: "Comparison | None" = None
    """Another run and what is compared with it."""
    counted: str = ""
    """A sentence that says which kind of shift the evidence of neurons counts; empty for evidence
    that has no shifts."""

    @cached_property
    def neurons(self) -> list[Neuron]:
        return list(zip(self.groups["unit"], self.groups["group"].tolist(), strict=True))

    @property
    def lifetime(self) -> bool:
        """Whether the attribution counts lifetime shifts."""
        return self.counted == LIFETIME_SHIFTS

    @cached_property
    def links(self) -> Links:
        """Links for a page in the report's folder itself."""
        known = set(self.neurons)
        tables = self.tokens_by_neuron
        ids = {
            token_id
            for neuron, table in tables.items()
            if neuron in known
            for token_id in table["token_id"]
        }
        return Links(frozenset(known), frozenset(ids))

    @cached_property
    def influences_by_neuron(self) -> Mapping[Neuron, Sequence[NeuronInfluence]]:
        """What unrolled influence says of a neuron's effect, from all sets of tables in the run."""
        return neuron_influences(self.run)

    @cached_property
    def tokens_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.sources["attribute", "tokens"].sort_values("rank", kind="stable"))

    @cached_property
    def neurons_by_token(self) -> Mapping[int, pd.DataFrame]:
        """Token id → rows of ``tokens``, by rank, then in the order of the report's neurons."""
        table = self.sources["attribute", "tokens"]
        index = {neuron: index for index, neuron in enumerate(self.neurons)}
        pairs = zip(table["unit"], table["group"].tolist(), strict=True)
        indexed = table.assign(index=[index.get(pair, -1) for pair in pairs])
        kept = indexed[indexed["index"] >= 0].sort_values(["rank", "index"], kind="stable")
        return {int(token): part for token, part in kept.groupby("token_id", sort=True)}  # pyright: ignore

    @cached_property
    def top_tokens(self) -> Mapping[Neuron, pd.DataFrame]:
        """The first tokens that are more frequent in a neuron's evidence than expected.

        If none is, the first tokens.
        """
        found = {}
        for neuron, table in self.tokens_by_neuron.items():
            # Not "> 1": a frequency that is unknown (NaN) counts as more than expected.
            more = table[~(table["relative_frequency"] <= 1)]
            found[neuron] = (more if len(more) else table).head(TOP_TOKENS_SHOWN)
        return found

    @cached_property
    def windows(self) -> Mapping[tuple[str, int, int], "WindowEvidence"]:
        """The evidence by window of training, by unit, column and token id."""
        return split_windows(self.sources["attribute", "windows"])

    @cached_property
    def datums_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        strongest = self.sources["attribute", "datums"].sort_values(
            "weight", ascending=False, kind="stable"
        )
        return by_neuron(strongest.groupby(["unit", "group"], sort=False).head(DATUMS_SHOWN))

    @cached_property
    def confirmed_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        """The test of each token by ablation; empty unless ``attribute --confirm`` was run."""
        return by_neuron(self.sources["attribute", "confirmed"])

    @cached_property
    def flips_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.sources["ablate", "flips"])

    @cached_property
    def contexts_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.sources["ablate", "contexts"])

    @cached_property
    def changes_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.sources["ablate", "tokens"])

    @cached_property
    def moves_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return by_neuron(self.sources["ablate", "moves"])

    @cached_property
    def ablated(self) -> Mapping[Neuron, pd.Series]:
        return row_by_neuron(self.sources["ablate", "neurons"])

    @cached_property
    def clustered(self) -> Mapping[Neuron, pd.Series]:
        """The cluster of each neuron, its position on the map and its topics."""
        return row_by_neuron(self.sources["neurons", "neurons"])

    @cached_property
    def faithfulness_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        """The scores of the methods in ``scores``, which has the best method of each evidence."""
        method = ["evidence", "background", "select"]
        best = self.sources["faithfulness", "scores"][method].drop_duplicates()
        return by_neuron(self.sources["faithfulness", "neurons"].merge(best, on=method))

    def nearest_neurons(self, neuron: Neuron) -> list[Neuron]:
        """Return the neurons nearest to one on the map, nearest first; none if it is not on it."""
        own, table = self.clustered.get(neuron), self.sources["neurons", "neurons"]
        if own is None:
            return []
        distance_R = (table["x"] - own.x) ** 2 + (table["y"] - own.y) ** 2
        order = distance_R.dropna().sort_values(kind="stable").index[: NEIGHBOURS_SHOWN + 1]
        near = table.loc[order]
        keys = zip(near["unit"], near["neuron"].tolist(), strict=True)
        return [key for key in keys if key != neuron][:NEIGHBOURS_SHOWN]


@dataclass(frozen=True, eq=False)
class WindowEvidence:
    """The evidence of one token for one neuron, by window of training steps."""

    token: str
    edge_B1: np.ndarray
    """First step of each window, and the step after the last window."""
    weight_B: np.ndarray
    """Weight of the token's evidence."""
    expected_B: np.ndarray
    """Weight that the background predicts."""


def split_windows(table: pd.DataFrame) -> dict[tuple[str, int, int], WindowEvidence]:
    """``analysis.attribution.tables.WINDOWS`` by unit, group and token id."""
    keys = ["unit", "group", "token_id"]
    table = table.sort_values([*keys, "window"], kind="stable", ignore_index=True)
    # Rows of one neuron and token are adjacent now: each such block is cut out whole.
    start_K = np.flatnonzero(~table.duplicated(keys).to_numpy())
    heads = table.loc[start_K, [*keys, "token"]].itertuples(index=False, name=None)
    columns = ("first_step", "end_step", "weight", "expected")
    split = [np.split(table[column].to_numpy(), start_K[1:]) for column in columns]
    return {
        (unit, group, token_id): WindowEvidence(
            token, np.append(first_B, end_B[-1]), weight_B, expected_B
        )
        for (unit, group, token_id, token), first_B, end_B, weight_B, expected_B in zip(
            heads, *split, strict=len(table) > 0
        )
    }


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Iterate over the rows; columns are attributes."""
    return table.itertuples(index=False)


def by_neuron(table: pd.DataFrame) -> dict[Neuron, pd.DataFrame]:
    """Group the rows by neuron, keeping their order.

    The column of the neuron's number is ``neuron`` if the table has one, else ``group``.
    """
    number = "group" if "group" in table.columns and "neuron" not in table.columns else "neuron"
    groups = table.groupby(["unit", number], sort=False, observed=True)
    return {(str(unit), int(index)): part for (unit, index), part in groups}  # pyright: ignore


def row_by_neuron(table: pd.DataFrame) -> dict[Neuron, pd.Series]:
    """The first row of each neuron."""
    return {neuron: part.iloc[0] for neuron, part in by_neuron(table).items()}


def counted_shifts(options: Mapping[str, Any]) -> str:
    """Return ``ReportData.counted`` for the options of an attribution."""
    if str(options.get("evidence", "")).endswith("ablation-estimate"):
        return ""
    return LIFETIME_SHIFTS if options.get("lifetime") else ONE_STEP_SHIFTS
