"""What a stored answer of ``ontogeny influence`` says, in words, for the terminal and the report.

Arguments are rows of its tables, so that nothing is computed again.

Shapes: T word of a datum (its tokens and the last target).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.run.run import Run
from capture.corpus.config import WORDS

Row = Mapping[Any, Any]
SWEEPS = ("unrolled", "path")
"""Methods whose numbers say what a datum did; all others score datums."""
MARKED = 0.5
"""Words are marked, strongest first, until they carry this share of the datum's influence."""
MOST_MARKED = 6
COMPLETE = 1e-3
"""Largest accepted incompleteness of path influence."""
KINDS = {"outliers": "A preview from recorded shifts at the last checkpoint alone"}
HELPS = {"higher": (" (helpful)", " (harmful)"), "lower": (" (harmful)", " (helpful)")}
REPLAYED = "Steps were replayed."
FROM_FACTORS = "Steps come from stored factors, which do not say which words carried it."
NO_BETTER = 1.0
"""Departure of a prediction that nothing changes."""
NOT_CONFIRMED = (
    "NOT CONFIRMED: predicting no change at all is no worse. Make no causal claim of it."
)
NOT_CHECKED = "Not confirmed by retraining: the horizon alone proves nothing. Use --checks, or lds."
"""The derivative of one query can stay small in training that is unstable in other directions."""
GIVEN_UP = (
    "The sweep ended there: the rounding of float32 has grown to the size of the weights, so that "
    "no digit of what earlier steps did would be right."
)


def datum_titles(query: Row) -> tuple[str, str]:
    """Return the titles of the datums with positive and with negative influence.

    Baselines say only how they score a datum: retraining does not confirm that they name causes.
    """
    if query["method"] not in SWEEPS:
        return "Datums with the highest scores", "Datums with the lowest scores"
    helps = HELPS.get(query["better"], ("", ""))
    return f"Datums that raised it most{helps[0]}", f"Datums that lowered it most{helps[1]}"


def explanation(query: Row, checks: pd.DataFrame) -> list[str]:
    """Return what the method says, and how far it can be trusted; ``checks``: of this query."""
    if query["method"] == "path":
        return path_lines(query)
    if query["method"] == "unrolled":
        lines = unrolled_lines(query)
        if query["reliable_from"] == query["end_step"]:  # nothing was predicted
            return lines
        return [*lines, *check_lines(checks, query["departure"], query["first_step"])]
    kind = KINDS.get(str(query["method"]), f"Scores of the method {query['method']}")
    return [f"{kind}; no claim about causes. Confirm with --method unrolled or ontogeny lds."]


def path_lines(query: Row) -> list[str]:
    first, last = query["first_step"], query["end_step"] - 1
    moved = f"It went from {query['before']:.5g} to {query['after']:.5g} in steps {first} to {last}"
    parts = f"datums {query['datums']:+.4g}"
    if query["decay"]:
        parts += f", weight decay {query['decay']:+.4g}"
    if query["inherited"]:
        parts += f", momentum from before {query['inherited']:+.4g}"
    known = not pd.isna(query["from_factors"])  # tables from before this column do not say
    source = (FROM_FACTORS if query["from_factors"] else REPLAYED) if known else ""
    closes = "complete" if query["incompleteness"] <= COMPLETE else "INCOMPLETE"
    return [
        f"{moved}: {parts}.",
        f"Influence: a datum's part in this change, as it happened. {source}".rstrip(),
        f"Books: {closes}; the parts miss the change by {query['incompleteness']:.1e} of their "
        f"absolute sum (limit {COMPLETE:.0e}; quadrature alone {query['quadrature']:.1e}).",
    ]


def unrolled_lines(query: Row) -> list[str]:
    end, reliable, first = query["end_step"], query["reliable_from"], query["computed_from"]
    if pd.isna(first):  # tables from before this column: the sweep never ended early
        first = query["first_step"]
    low, high = query["exponent_low"], query["exponent_high"]
    interval = f", 95 % {low:+.4f} to {high:+.4f}" if math.isfinite(low + high) else ""
    growth = (
        f"Horizon: going back {end - first} steps, the derivative grew × {query['growth']:.3g} "
        f"(at most × {query['largest_growth']:.3g}; {query['exponent']:+.4f} a step{interval})."
    )
    lines = ["Influence: without a datum the query would change by about minus this.", growth]
    if first > query["first_step"]:
        lines.append(GIVEN_UP)
    if reliable <= query["first_step"]:
        return [*lines, "All steps are within the horizon."]
    if reliable >= end:
        return [*lines, "No step is within the horizon: training is chaotic, nothing is shown."]
    note = (
        f"Steps before {reliable} are beyond the horizon; what they did is left out as unreliable."
    )
    return [*lines, note]


def check_lines(checks: pd.DataFrame, departure: float, first_step: int = 0) -> list[str]:
    """Return what retraining without random datums says about unrolled influence on one query.

    ``first_step``: of the steps that were asked about.
    """
    if checks.empty:
        return [NOT_CHECKED]
    left_out_from = checks["first_step"].min()
    where = f" from step {left_out_from} on" if left_out_from > first_step else ""
    changed, predicted = (
        ", ".join(f"{value:+.3g}" for value in checks[column]) for column in ("change", "predicted")
    )
    left_out = " and ".join(dict.fromkeys(str(count) for count in checks["left_out"]))
    without = f"Check: retraining without {left_out} random datums{where}"
    if checks["change"].isna().any():
        return [f"{without} diverged; predicted {predicted}.", NOT_CONFIRMED]
    if math.isinf(departure):  # such as of a neuron that never acts
        return [f"{without} did not change it at all; predicted {predicted}.", NOT_CONFIRMED]
    line = f"{without} changed it by {changed}; predicted {predicted}. "
    line += f"Off by {departure:.0%} of the change."
    return [line, *([] if departure < NO_BETTER else [NOT_CONFIRMED])]


# --- words of a datum -----------------------------------------------------------------------------


def words_of(run: Run, datum: int) -> list[str]:
    """Return the tokens of a datum and its last target, [T]; subwords with their spaces."""
    token_T = [int(run.token_NT[datum][0]), *map(int, run.target_NT[datum])]
    names = [run.tokens[token] for token in token_T]
    return names if joined_by(run) else [plain_token(name) for name in names]


def joined_by(run: Run) -> str:
    """Return what stands between two words of a datum."""
    return " " if run.config.corpus.tokenizer == WORDS else ""


def plain_token(token: str) -> str:
    """Return a subword token with spaces and line breaks as people write them."""
    return token.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "⏎")


def influence_of_words(num_words: int, positions: pd.DataFrame) -> np.ndarray:
    """Return the influence that came in at each word as a target, [T]; 0 at the first word."""
    influence_T = np.zeros(num_words)
    influence_T[1 + positions["position"].to_numpy()] = positions["influence"].to_numpy()
    return influence_T


def strongest_words(influence_T: np.ndarray) -> set[int]:
    """Return the positions that carry ``MARKED`` of the influence with the datum's own sign."""
    own_T = np.maximum(influence_T * np.sign(influence_T.sum()), 0)
    found: set[int] = set()
    for t in np.argsort(-own_T, kind="stable")[:MOST_MARKED].tolist():
        if not own_T[t] > 0 or own_T[list(found)].sum() >= MARKED * own_T.sum():
            break
        found.add(t)
    return found
