"""Tables of the predictions that ablation flips, of notable tokens and of others.

A flip is a position whose prediction changes when the subject is ablated. (The subject is called a
neuron here, but may be a row or a head.) For a token w, ``count`` is the number of positions with w
as the prediction before or after, and ``proportion`` is the share of these that are flips.
``notable`` marks the tokens that attribution selected for the neuron. Rare tokens are never
predicted, so flips cannot show whether ablation agrees with attribution
(``analysis.measures.agreement`` can). Intervals are the wider of a bootstrap over datums and
Wilson's interval over positions.

Shapes: K datum of a neuron, T position, M flip, E entry of a table, V token of the vocabulary,
W flipped token.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.ablation.replacement import Value
from analysis.ablation.subjects import Subject
from analysis.measures.bootstrap import dense_intervals, intervals, mean_interval
from analysis.measures.shares import wider, wilson

CONTEXT_TOKENS = 20
"""Largest number of tokens that a context shows on either side of the prediction."""


@dataclass(frozen=True, eq=False)
class NeuronFlips:
    """One neuron's datums, their predictions before ablation, and the flips."""

    subject: Subject
    kind: Value
    """Replacement value."""
    notable: np.ndarray
    """Ids of the tokens that attribution selected."""
    datum_K: np.ndarray
    """Evaluated datums, largest attribution weight first."""
    before_KT: np.ndarray
    """Predictions before ablation."""
    row_M: np.ndarray
    """Index of each flip's datum in ``datum_K``."""
    position_M: np.ndarray
    """Position of each flip."""
    after_M: np.ndarray
    """Prediction of each flip after ablation."""

    @property
    def before_M(self) -> np.ndarray:
        return self.before_KT[self.row_M, self.position_M]

    @property
    def labels(self) -> dict[str, object]:
        return {
            "level": self.subject.level,
            "unit": self.subject.unit,
            "neuron": self.subject.group,
            "kind": self.kind,
        }


def flip_table(found: NeuronFlips, tokens: Sequence[str]) -> pd.DataFrame:
    """Build ``FLIPS`` of one neuron: one row per flipped token, by proportion, then count."""
    V = len(tokens)
    after_V = np.bincount(found.after_M, minlength=V)
    flips_V = np.bincount(found.before_M, minlength=V) + after_V
    count_V = np.bincount(found.before_KT.ravel(), minlength=V) + after_V
    token_W = np.flatnonzero(flips_V)
    proportion_W = flips_V[token_W] / count_V[token_W]
    token_W = token_W[np.lexsort((token_W, -count_V[token_W], -proportion_W))]
    of_datums = flip_intervals(found, token_W, V)
    low_W, high_W = wider(of_datums, wilson(flips_V[token_W], count_V[token_W]))
    gained_V = np.bincount(found.after_M, minlength=V)
    return pd.DataFrame(
        {
            **found.labels,
            "token": [tokens[token] for token in token_W],
            "proportion": flips_V[token_W] / count_V[token_W],
            "count": count_V[token_W],
            "flips": flips_V[token_W],
            "notable": np.isin(token_W, found.notable),
            "token_id": token_W,
            "low": low_W,
            "high": high_W,
            "lost": flips_V[token_W] - gained_V[token_W],
            "gained": gained_V[token_W],
        }
    )


def flip_intervals(
    found: NeuronFlips, token_W: np.ndarray, num_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval bounds of each flipped token's proportion, both [W]."""
    column_V = np.full(num_tokens, -1)
    column_V[token_W] = np.arange(len(token_W))
    K, T = found.before_KT.shape
    # A flip counts for both of its tokens, at one position of one datum.
    flip = column_V[np.concatenate([found.before_M, found.after_M])]
    row_E = np.concatenate([found.row_M, found.row_M])
    predicted = column_V[found.before_KT.ravel()]
    of_flipped = predicted >= 0
    count = np.concatenate([predicted[of_flipped], flip[len(found.after_M) :]])
    count_row = np.concatenate([np.repeat(np.arange(K), T)[of_flipped], found.row_M])
    part, whole = (row_E, flip, np.ones(len(flip))), (count_row, count, np.ones(len(count)))
    return intervals(K, len(token_W), part, whole)


def move_table(found: NeuronFlips, tokens: Sequence[str]) -> pd.DataFrame:
    """Build ``MOVES`` of one neuron: pairs of predictions before and after, most frequent first."""
    V = len(tokens)
    move_E, count_E = np.unique(
        found.before_M.astype(np.int64) * V + found.after_M, return_counts=True
    )
    order_E = np.lexsort((move_E, -count_E))
    names = np.array(tokens, object)
    labels = found.labels
    return pd.DataFrame(
        {
            "level": labels["level"],
            "unit": labels["unit"],
            "group": labels["neuron"],
            "kind": labels["kind"],
            "before": names[move_E[order_E] // V],
            "after": names[move_E[order_E] % V],
            "count": count_E[order_E],
        }
    )


def flip_shares(found: NeuronFlips) -> dict[str, object]:
    """Compare how often predictions of notable tokens and of all other tokens flip.

    A flip counts for the token predicted before ablation, so it counts once. Returns the columns of
    ``NEURONS`` that depend on flips.
    """
    flips, notable_flips = len(found.before_M), int(np.isin(found.before_M, found.notable).sum())
    positions = found.before_KT.size
    notable = int(np.isin(found.before_KT, found.notable).sum())
    notable_share = share(notable_flips, notable)
    other_share = share(flips - notable_flips, positions - notable)
    flipped = np.union1d(found.before_M, found.after_M)
    (notable_low, other_low), (notable_high, other_high) = share_intervals(found)
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
        "notable_low": notable_low,
        "notable_high": notable_high,
        "other_low": other_low,
        "other_high": other_high,
    }


def share_intervals(found: NeuronFlips) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval bounds of the share that flips: (notable, other) each, both [2].

    Positions of one datum depend on each other, so datums are resampled. Where no position or every
    position flips, all resamples are alike; Wilson's interval keeps the bounds apart there.
    """
    flip_KT = np.zeros(found.before_KT.shape, bool)
    flip_KT[found.row_M, found.position_M] = True
    notable_KT = np.isin(found.before_KT, found.notable)
    sides = (notable_KT, ~notable_KT)
    part_K2 = np.stack([(flip_KT & side_KT).sum(1) for side_KT in sides], 1)
    whole_K2 = np.stack([side_KT.sum(1) for side_KT in sides], 1)
    of_datums = dense_intervals(part_K2.astype(np.float32), whole_K2.astype(np.float32))
    return wider(of_datums, wilson(part_K2.sum(0), whole_K2.sum(0)))


def share(part: float, whole: float) -> float:
    """Return part / whole; 0 / 0 is NaN and any other part / 0 is ∞."""
    if whole:
        return part / whole
    return math.inf if part else math.nan


def layer_table(neurons: pd.DataFrame, units: Sequence[str]) -> pd.DataFrame:
    """Build ``LAYERS``: means over the neurons of each unit, with intervals over neurons.

    ``neurons`` has the columns of ``flip_shares``. Rows follow the order of ``units``; other units
    come last. A neuron without flips has no share of notable tokens and does not enter that mean.
    """
    flipped = neurons["flipped_tokens"]
    shares = (neurons["notable_flipped"] / flipped).where(flipped > 0)
    groups = neurons.assign(share=shares).groupby(["level", "unit", "kind"], sort=False)
    table = pd.DataFrame([{**labels_of(key), **layer_means(own)} for key, own in groups])
    rank = {unit: number for number, unit in enumerate(units)}
    order = table["unit"].map(lambda unit: (rank.get(unit, len(rank)), unit))
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def labels_of(key: object) -> dict[str, object]:
    assert isinstance(key, tuple)
    return dict(zip(("level", "unit", "kind"), key, strict=True))


def layer_means(own: pd.DataFrame) -> dict[str, float]:
    """Return the means over the neurons of one unit, and their intervals."""
    flipped_low, flipped_high = interval_of_unequal(own["flipped_tokens"])
    notable_low, notable_high = interval_of_unequal(own["share"])
    return {
        "neurons": len(own),
        "flipped_tokens": own["flipped_tokens"].mean(),
        "notable_share": own["share"].mean(),
        "flipped_low": flipped_low,
        "flipped_high": flipped_high,
        "notable_low": notable_low,
        "notable_high": notable_high,
    }


def interval_of_unequal(values: pd.Series) -> tuple[float, float]:
    """Return the interval of the mean; NaN if all are equal, which says nothing about others."""
    low, high = mean_interval(values.to_numpy(np.float64))
    return (math.nan, math.nan) if low == high else (low, high)


# --- contexts -------------------------------------------------------------------------------------


def context_table(
    found: NeuronFlips,
    stream_KT: np.ndarray,
    tokens: Sequence[str],
    most: int,
) -> pd.DataFrame:
    """Build ``CONTEXTS`` of one neuron: at most ``most`` flips for every flipped token.

    Flips in the datums of largest attribution weight come first. ``stream_KT`` holds the inputs of
    the evaluated datums followed by their last target, [K, T + 1].
    """
    names = np.array(tokens, object)
    token_E = np.concatenate([found.before_M, found.after_M])
    event_E = np.tile(np.arange(len(found.row_M)), 2)
    order = np.lexsort((found.position_M[event_E], found.row_M[event_E], token_E))
    kept = order[index_in_streak(token_E[order]) < most]
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


def index_in_streak(value_E: np.ndarray) -> np.ndarray:
    """Number the entries 0, 1, 2, … within every streak of equal values, [E]."""
    start_E = np.flatnonzero(np.diff(value_E, prepend=-1))
    lengths = np.diff(start_E, append=len(value_E))
    return np.arange(len(value_E)) - np.repeat(start_E, lengths)


def context(words: Iterable[str], position: int, before: str, after: str) -> str:
    """Return the text around a flip, as in "… when the (<unk> war) english took …".

    The predictions before and after ablation stand in parentheses before the true next word.
    """
    words, target = list(words), position + 1
    left = words[max(0, target - CONTEXT_TOKENS) : target]
    right = words[target : target + CONTEXT_TOKENS]
    return " ".join(["…", *left, f"({before} {after})", *right, "…"])
