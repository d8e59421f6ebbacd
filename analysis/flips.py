"""What silencing did to each token: the study's flip table, its contexts, and whether both agree.

A flip is a position whose prediction differs without the neuron. For a token w, ``count`` is the
number of positions where the prediction before or after is w, and ``proportion`` the share of those
that are flips. ``notable`` marks the tokens that attribution found for the neuron, so a table in
which they stand on top says that data and ablation agree.

Shapes: K datum of a neuron, T position, M flip, V token of the vocabulary, W flipped token.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

CONTEXT_TOKENS = 20
"""Tokens of the window that a context shows, at most, on either side of the prediction."""


@dataclass(frozen=True, eq=False)
class NeuronFlips:
    """One neuron's evaluation: its datums, the predictions before, and what changed."""

    unit: str
    neuron: int
    notable: np.ndarray
    """Ids of the tokens that attribution found."""
    datum_K: np.ndarray
    """Evaluated datums, those with most outlier rows first."""
    before_KT: np.ndarray
    """Predictions before."""
    row_M: np.ndarray
    """Of each flip: place in ``datum_K`` …"""
    position_M: np.ndarray
    """… position …"""
    after_M: np.ndarray
    """… and the prediction after."""

    @property
    def before_M(self) -> np.ndarray:
        return self.before_KT[self.row_M, self.position_M]

    @property
    def labels(self) -> dict[str, object]:
        return {"unit": self.unit, "neuron": self.neuron}


def flip_table(found: NeuronFlips, tokens: Sequence[str]) -> pd.DataFrame:
    """Tokens with a flip: token, proportion, count, flips, notable; by proportion, then count."""
    V = len(tokens)
    after_V = np.bincount(found.after_M, minlength=V)
    flips_V = np.bincount(found.before_M, minlength=V) + after_V
    count_V = np.bincount(found.before_KT.ravel(), minlength=V) + after_V
    token_W = np.flatnonzero(flips_V)
    proportion_W = flips_V[token_W] / count_V[token_W]
    token_W = token_W[np.lexsort((token_W, -count_V[token_W], -proportion_W))]
    return pd.DataFrame(
        {
            **found.labels,
            "token": [tokens[token] for token in token_W],
            "proportion": flips_V[token_W] / count_V[token_W],
            "count": count_V[token_W],
            "flips": flips_V[token_W],
            "notable": np.isin(token_W, found.notable),
            "token_id": token_W,
        }
    )


def agreement(found: NeuronFlips) -> dict[str, object]:
    """How often predictions of notable tokens flip, against those of all other tokens.

    Judged by the prediction before, so that a flip counts once.
    """
    flips, notable_flips = len(found.before_M), int(np.isin(found.before_M, found.notable).sum())
    positions = found.before_KT.size
    notable = int(np.isin(found.before_KT, found.notable).sum())
    notable_share = share(notable_flips, notable)
    other_share = share(flips - notable_flips, positions - notable)
    flipped = np.union1d(found.before_M, found.after_M)
    return found.labels | {
        "datums": len(found.datum_K),
        "positions": positions,
        "flips": flips,
        "flipped_tokens": len(flipped),
        "notable_tokens": len(found.notable),
        "notable_flipped": len(np.intersect1d(flipped, found.notable)),
        "notable_share": notable_share,
        "other_share": other_share,
        "ratio": share(notable_share, other_share),
    }


def share(part: float, whole: float) -> float:
    """part / whole; NaN for a part of nothing."""
    if whole:
        return part / whole
    return math.inf if part else math.nan


def layer_table(neurons: pd.DataFrame, units: Sequence[str]) -> pd.DataFrame:
    """The study's table of layers: means over the neurons of a unit, from their ``agreement``.

    Units stand in the given order. A neuron without any flip has no share of notable tokens.
    """
    flipped = neurons["flipped_tokens"]
    shares = (neurons["notable_flipped"] / flipped).where(flipped > 0)
    table = (
        neurons.assign(share=shares)
        .groupby("unit")
        .agg(
            neurons=("neuron", "size"),
            flipped_tokens=("flipped_tokens", "mean"),
            notable_share=("share", "mean"),
        )
    )
    return table.reindex([unit for unit in units if unit in table.index]).reset_index()


# --- contexts -------------------------------------------------------------------------------------


def context_table(
    found: NeuronFlips,
    stream_KT: np.ndarray,
    tokens: Sequence[str],
    most: int,
) -> pd.DataFrame:
    """Flips to read, at most so many for every flipped token: those in the most attributed datums.

    ``stream_KT`` holds the evaluated datums' inputs and, at the end, their last target.
    """
    names = np.array(tokens, object)
    token_E = np.concatenate([found.before_M, found.after_M])
    event_E = np.tile(np.arange(len(found.row_M)), 2)
    order = np.lexsort((found.position_M[event_E], found.row_M[event_E], token_E))
    kept = order[place_in_run(token_E[order]) < most]
    event = event_E[kept]
    row, position = found.row_M[event], found.position_M[event]
    before, after = names[found.before_M[event]], names[found.after_M[event]]
    return pd.DataFrame(
        {
            **found.labels,
            "token": names[token_E[kept]],
            "datum": found.datum_K[row],
            "position": position,
            "before": before,
            "after": after,
            "target": names[stream_KT[row, position + 1]],
            "context": list(map(context, names[stream_KT[row]], position, before, after)),
        }
    )


def place_in_run(value_E: np.ndarray) -> np.ndarray:
    """0, 1, 2, … within every run of equal values."""
    start_E = np.flatnonzero(np.diff(value_E, prepend=-1))
    lengths = np.diff(start_E, append=len(value_E))
    return np.arange(len(value_E)) - np.repeat(start_E, lengths)


def context(words: Iterable[str], position: int, before: str, after: str) -> str:
    """ "… when the (<unk> war) english took …": the predictions stand before the true next word."""
    words, here = list(words), position + 1
    read, coming = words[max(0, here - CONTEXT_TOKENS) : here], words[here : here + CONTEXT_TOKENS]
    return " ".join(["…", *read, f"({before} {after})", *coming, "…"])
