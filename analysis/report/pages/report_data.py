"""What the pages are made of: the tables of a run, cut up by neuron and by token, once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.report.pages.sources import Sources
from analysis.report.pages.website import Links, Neuron
from analysis.run.run import Run

DATUMS_SHOWN = 8
"""Of each neuron."""
CONTEXTS_SHOWN = 12
TOKENS_IN_BRIEF = 8


@dataclass(frozen=True, eq=False)
class Material:
    """A run, its tables and the neurons that get a page each."""

    run: Run
    sources: Sources
    timeline: pd.DataFrame
    """``analysis.report.timeline.TIMELINE``"""
    histograms: pd.DataFrame
    """``analysis.activations.histograms.HISTOGRAMS`` of the report's neurons."""
    groups: pd.DataFrame
    """The neurons of the report, strongest first."""

    @cached_property
    def neurons(self) -> list[Neuron]:
        return list(zip(self.groups["unit"], self.groups["group"].tolist(), strict=True))

    @cached_property
    def links(self) -> Links:
        """Links from a page in the report's folder itself."""
        known = set(self.neurons)
        tokens = self.tokens_by_neuron
        ids = {token for key, of in tokens.items() if key in known for token in of["token_id"]}
        return Links(frozenset(known), frozenset(ids))

    @cached_property
    def tokens_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return parts(self.sources["attribute", "tokens"].sort_values("rank", kind="stable"))

    @cached_property
    def neurons_by_token(self) -> Mapping[int, pd.DataFrame]:
        """Rows of ``tokens`` of the neurons with a page, those of the strongest first."""
        table = self.sources["attribute", "tokens"]
        place = {neuron: place for place, neuron in enumerate(self.neurons)}
        pairs = zip(table["unit"], table["group"].tolist(), strict=True)
        placed = table.assign(place=[place.get(pair, -1) for pair in pairs])
        kept = placed[placed["place"] >= 0].sort_values(["rank", "place"], kind="stable")
        return {int(token): part for token, part in kept.groupby("token_id", sort=True)}  # pyright: ignore

    @cached_property
    def brief(self) -> Mapping[Neuron, pd.DataFrame]:
        """The first tokens that a neuron's evidence has more of than expected, else the first."""
        brief = {}
        for neuron, table in self.tokens_by_neuron.items():
            more = table[~(table["relative_frequency"] <= 1)]
            brief[neuron] = (more if len(more) else table).head(TOKENS_IN_BRIEF)
        return brief

    @cached_property
    def windows(self) -> Mapping[tuple[str, int, int], "Windows"]:
        """By unit, column and token id."""
        return split_windows(self.sources["attribute", "windows"])

    @cached_property
    def datums_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        strongest = self.sources["attribute", "datums"].sort_values(
            "weight", ascending=False, kind="stable"
        )
        return parts(strongest.groupby(["unit", "group"], sort=False).head(DATUMS_SHOWN))

    @cached_property
    def flips_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return parts(self.sources["ablate", "flips"])

    @cached_property
    def contexts_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return parts(self.sources["ablate", "contexts"])

    @cached_property
    def changes_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return parts(self.sources["ablate", "tokens"])

    @cached_property
    def moves_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return parts(self.sources["ablate", "moves"])

    @cached_property
    def ablated(self) -> Mapping[Neuron, pd.Series]:
        return records(self.sources["ablate", "neurons"])

    @cached_property
    def placed(self) -> Mapping[Neuron, pd.Series]:
        """The neurons' clusters and places on the map."""
        return records(self.sources["neurons", "neurons"])

    @cached_property
    def faithfulness_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        """Rows of the claims that stand in ``scores``: of each evidence the best."""
        claim = ["evidence", "background", "select"]
        best = self.sources["faithfulness", "scores"][claim].drop_duplicates()
        return parts(self.sources["faithfulness", "neurons"].merge(best, on=claim))

    @cached_property
    def histograms_by_neuron(self) -> Mapping[Neuron, pd.DataFrame]:
        return parts(self.histograms)

    @cached_property
    def relatives(self) -> Mapping[Neuron, list[Neuron]]:
        """The six neurons nearest on the map to each."""
        table = self.sources["neurons", "neurons"].dropna(subset=["x", "y"])
        place_R2 = table[["x", "y"]].to_numpy()
        keys = list(zip(table["unit"], table["neuron"].tolist(), strict=True))
        relatives = {}
        for row, key in enumerate(keys):
            distance_R = np.square(place_R2 - place_R2[row]).sum(1)
            distance_R[row] = np.inf
            nearest = np.argsort(distance_R, kind="stable")[: min(6, len(keys) - 1)]
            relatives[key] = [keys[other] for other in nearest]
        return relatives


@dataclass(frozen=True, eq=False)
class Windows:
    """The evidence of one token for one neuron, by window of training."""

    token: str
    edge_B1: np.ndarray
    """First steps of the windows, and the end of the last."""
    weight_B: np.ndarray
    expected_B: np.ndarray


def split_windows(table: pd.DataFrame) -> dict[tuple[str, int, int], Windows]:
    """The rows of each neuron and token, by window."""
    keys = ["unit", "group", "token_id"]
    table = table.sort_values([*keys, "window"], kind="stable", ignore_index=True)
    start_K = np.flatnonzero(~table.duplicated(keys).to_numpy())
    heads = table.loc[start_K, [*keys, "token"]].itertuples(index=False, name=None)
    columns = ("first_step", "end_step", "weight", "expected")
    split = [np.split(table[column].to_numpy(), start_K[1:]) for column in columns]
    return {
        (unit, group, token_id): Windows(token, np.append(first_B, end_B[-1]), weight_B, expected_B)
        for (unit, group, token_id, token), first_B, end_B, weight_B, expected_B in zip(
            heads, *split, strict=len(table) > 0
        )
    }


def each(table: pd.DataFrame) -> Iterator[Any]:
    """Rows, with columns as attributes."""
    return table.itertuples(index=False)


def parts(table: pd.DataFrame) -> dict[Neuron, pd.DataFrame]:
    """The rows of each neuron, in their order."""
    number = "group" if "group" in table.columns and "neuron" not in table.columns else "neuron"
    groups = table.groupby(["unit", number], sort=False, observed=True)
    return {(str(unit), int(place)): part for (unit, place), part in groups}  # pyright: ignore


def records(table: pd.DataFrame) -> dict[Neuron, pd.Series]:
    """The one row of each neuron."""
    return {neuron: part.iloc[0] for neuron, part in parts(table).items()}
