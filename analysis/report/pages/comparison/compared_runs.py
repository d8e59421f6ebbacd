"""Compare a run with another one: how the two models came out, and which neurons got which tokens.

Neurons are paired by unit and number. Their named tokens agree as far as they overlap (Jaccard
similarity, tokens by text). Chance is the mean overlap with the *other* neurons of the unit in the
other run. Runs of different seeds start from different weights, so their neurons do not correspond,
and agreement by number should equal chance.

Shapes: R neuron of this run, S neuron of the other run, V token text, P pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from analysis.measures.bootstrap import mean_interval
from analysis.report.pages.sources import Sources, read_sources
from analysis.run.run import Run
from capture.errors import RunError

ALL = "all units"
TEXTS = ("datums", "validation", "test", "vocab")
"""Tables of the corpus that are compared by their checksums."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Another run, its tables, and what is compared with this one."""

    run: Run
    other: Run
    sources: Sources
    """The tables of the other run."""
    pairs: pd.DataFrame
    """One row per pair of neurons with tokens in both runs: unit, group, shared (tokens that both
    have), tokens, other_tokens (numbers), jaccard, chance (mean Jaccard with the unit's other
    neurons; NaN without any)."""

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """One row per unit, and one for all: unit, neurons, jaccard, chance, difference, low, high.

        The interval is that of the mean difference (jaccard − chance), bootstrap over neurons.
        """
        parts = [(str(unit), part) for unit, part in self.pairs.groupby("unit", sort=False)]
        if len(parts) > 1:
            parts.append((ALL, self.pairs))
        return pd.DataFrame([agreement_row(unit, part) for unit, part in parts])

    @cached_property
    def same_text(self) -> dict[str, bool]:
        """Table of the corpus → whether both runs hold the same bytes; those that both have."""
        own, others = checksums(self.run), checksums(self.other)
        return {name: own[name] == others[name] for name in TEXTS if name in own and name in others}

    @cached_property
    def same_start(self) -> bool:
        """Whether all captured weights of both runs were equal before the first step."""
        if self.run.layout.shapes != self.other.layout.shapes:
            return False
        own, others = self.run.checkpoint(0), self.other.checkpoint(0)
        return all(bool((own[name] == others[name]).all()) for name in self.run.layout.names)


def compare_runs(run: Run, sources: Sources, other: Run) -> Comparison:
    """Compare a run and its tables with another run.

    Raises ``RunError`` if the other run has no attribution of neurons.
    """
    if other.uri == run.uri:
        problem = "is the run itself"
        raise RunError(other.uri, problem, "Name another run after --compare")
    theirs = read_sources(other, {})
    if not len(theirs["attribute", "groups"]):
        problem = "has attributions, but none of neurons"
        raise RunError(other.uri, problem, f"Run: ontogeny attribute {other.uri} --level neuron")
    pairs = paired_neurons(sources["attribute", "tokens"], theirs["attribute", "tokens"])
    return Comparison(run, other, theirs, pairs)


def paired_neurons(tokens: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Return ``Comparison.pairs`` of two tables of tokens."""
    columns = ["unit", "group", "shared", "tokens", "other_tokens", "jaccard", "chance"]
    found = [pd.DataFrame(columns=columns)]
    for unit, own in tokens.groupby("unit", sort=False):
        theirs = others[others["unit"] == unit]
        if len(theirs):
            found.append(paired_in_unit(str(unit), own, theirs)[columns])
    return pd.concat(found[1:] or found, ignore_index=True)


def paired_in_unit(unit: str, own: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Return ``Comparison.pairs`` of one unit."""
    texts = pd.Index(pd.concat([own["token"], theirs["token"]]).unique())
    group_R, held_RV = incidence(own, texts)
    group_S, held_SV = incidence(theirs, texts)
    shared_RS = (held_RV @ held_SV.T).toarray()
    size_R, size_S = (held.sum(axis=1) for held in (held_RV, held_SV))
    jaccard_RS = shared_RS / (size_R[:, None] + size_S - shared_RS)
    group_P, row_P, column_P = np.intersect1d(group_R, group_S, return_indices=True)
    jaccard_P = jaccard_RS[row_P, column_P]
    others_P = jaccard_RS[row_P].sum(1) - jaccard_P
    return pd.DataFrame(
        {
            "unit": unit,
            "group": group_P,
            "shared": shared_RS[row_P, column_P].astype(int),
            "tokens": size_R[row_P].astype(int),
            "other_tokens": size_S[column_P].astype(int),
            "jaccard": jaccard_P,
            "chance": others_P / (len(group_S) - 1) if len(group_S) > 1 else np.nan,
        }
    )


def incidence(table: pd.DataFrame, texts: pd.Index) -> tuple[np.ndarray, csr_array]:
    """Return the numbers of the neurons, ascending, and which texts each has, float64 [R, V]."""
    pairs = table[["group", "token"]].drop_duplicates()
    group_R, row = np.unique(pairs["group"].to_numpy(), return_inverse=True)
    column = texts.get_indexer(pd.Index(pairs["token"]))
    shape = len(group_R), len(texts)
    return group_R, csr_array((np.ones(len(pairs)), (row, column)), shape=shape)


def agreement_row(unit: str, pairs: pd.DataFrame) -> Mapping[str, object]:
    """Return a row of ``Comparison.agreement``."""
    difference_P = (pairs["jaccard"] - pairs["chance"]).to_numpy(np.float64)
    low, high = mean_interval(difference_P)
    means = {name: float(pairs[name].mean()) for name in ("jaccard", "chance")}
    ends = {"difference": float(np.mean(difference_P)), "low": low, "high": high}
    return {"unit": unit, "neurons": len(pairs)} | means | ends


def checksums(run: Run) -> dict[str, str]:
    """Return table of the corpus → checksum of its file."""
    files = run.start.files_of("corpus")
    return {
        file.key.removeprefix("corpus/").removesuffix(".parquet"): file.sha256 for file in files
    }
